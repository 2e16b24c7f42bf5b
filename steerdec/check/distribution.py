"""Whether tokens are drawn from the distribution that the reference says: chi-square in the real engine.

Every draw is a request of its own, for the first token after one prompt. The rows of logits are taken from the engine
in the same steps, so that the test asks about steering alone and not about how far the engine repeats itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerdec.check.engine import Engine
from steerdec.check.part import Reporter
from steerdec.check.results import ALPHA, Result, Skip
from steerdec.common.chi_square import chi_square, detectable
from steerdec.kernels import reference
from steerdec.policies import registry
from steerdec.softmax.reference import entropy_nats
from steerdec.steering import encoding, params

T: Final = 0.8
FIRST_SEED: Final = 10_000
MOST_ROWS: Final = 64  # different rows of logits for one prompt; a GPU's kernels may give a few
BUDGET_S: Final = 30.0  # for one case
FEWEST: Final = 500
EDGE: Final = 1e-4  # of a cumulative probability: where float32 may put the end of a nucleus elsewhere
EQUAL: Final = 1e-6  # relative; probabilities of tokens with the same logit


@dataclass(frozen=True)
class Case:
    """What is drawn. The steering gets a threshold of half the row's entropy, so that the token is a fork."""

    name: str
    steering: dict[str, Any]
    sampling: dict[str, Any] = field(default_factory=dict)


CASES: Final = (
    Case("split", {"fork_temperature": 1.3, "other_temperature": 0.5}),
    Case("entropy_target", {"policy": "entropy_target", "delta_nats": 0.3, "select": "entropy"}),
    Case("dynatemp", {"policy": "dynatemp"}),
    Case("edt", {"policy": "edt"}),
    Case("p_less", {"policy": "p_less", "fork_temperature": 1.6}),
    Case("uniform_top_k", {"policy": "uniform_top_k"}),
    Case("top-p", {"fork_temperature": 1.3, "other_temperature": 0.5}, {"top_p": 0.9}),
    Case("masked", {"fork_temperature": 1.6, "other_temperature": 0.5}, {"allowed_token_ids": []}),
)


class Rows:
    """The different rows of logits that came to the processor, and how often each did."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.times: list[int] = []

    def __call__(self, before: Tensor, after: Tensor, ctx: Any) -> None:
        """Take the rows of one step; padding has no slot."""
        if ctx is not None:
            before = before[ctx.expanded_idx_mapping[: len(before)] >= 0]
        left = before
        for i, row in enumerate(self.rows):
            same = (left == row).all(-1)
            self.times[i] += int(same.sum())
            left = left[~same]
        while len(left):
            if len(self.rows) == MOST_ROWS:
                raise RuntimeError(f"one prompt gave more than {MOST_ROWS} different rows of logits")
            same = (left == left[0]).all(-1)
            self.rows.append(left[0].clone())
            self.times.append(int(same.sum()))
            left = left[~same]


def results(reporter: Reporter, engine: Engine) -> Iterator[Result]:
    """Draw, case by case."""
    if engine.elsewhere:
        raise Skip(engine.elsewhere)
    prompt = engine.prompts(1)[0]
    row = _row(engine, prompt)
    h = entropy_nats(row[None].double()).item()
    draws = 2_000 if reporter.settings.quick or reporter.settings.interpreted else 10_000
    for case in CASES:
        yield _drawn(reporter, engine, prompt, row, h, case, draws)


def _row(engine: Engine, prompt: Any) -> Tensor:
    """Return the logits [vocab] of the prompt's next token."""
    seen = Rows()
    with engine.watching(seen):
        engine.generate([prompt], [engine.steered({"fork_temperature": 1.0}, temperature=1.0, max_tokens=1)])
    return seen.rows[-1].cpu()


def _drawn(reporter: Reporter, engine: Engine, prompt: Any, row: Tensor, h: float, case: Case, draws: int) -> Result:
    sampling = dict(case.sampling)
    if "allowed_token_ids" in sampling:
        sampling["allowed_token_ids"] = row.topk(min(8, len(row))).indices.tolist()
        h = entropy_nats(row[sampling["allowed_token_ids"]][None].double()).item()
    steering = case.steering if "policy" in case.steering else case.steering | {"threshold_nats": h / 2}
    seen, tokens = Rows(), np.zeros(0, np.int64)
    stop_at_s = time.monotonic() + BUDGET_S
    said_at_s = 0.0
    with engine.watching(seen):
        while len(tokens) < draws and (len(tokens) < FEWEST or time.monotonic() < stop_at_s):
            if time.monotonic() > said_at_s + 5.0:
                reporter.progress(f"distribution, {case.name}: {len(tokens):,} of {draws:,} draws")
                said_at_s = time.monotonic()
            n = min(engine.at_once, draws - len(tokens))
            seeds = range(FIRST_SEED + len(tokens), FIRST_SEED + len(tokens) + n)
            asked = [engine.steered(steering, temperature=T, max_tokens=1, seed=s, **sampling) for s in seeds]
            outputs = engine.generate([prompt] * n, asked)
            tokens = np.append(tokens, [output.token_ids[0] for output in outputs])
    shares = np.array(seen.times) / sum(seen.times)
    rows = [row.cpu() for row in seen.rows]
    top_p = sampling.get("top_p", 1.0)

    sure = ~np.any([at_the_edge(steered_logits(row, steering), top_p) for row in rows], axis=0)
    tokens = tokens[sure[tokens]]
    if not len(tokens):
        return Result(
            check=f"distribution: {case.name}",
            measured="every token drawn lies where the nucleus ends, so nothing can be compared",
            limit=f"p at least {ALPHA:g}",
            status="undecided",
            figures={"draws": 0, "entropy_nats": h},
        )

    def mixed(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """[vocab] what is drawn of the tokens that are compared."""
        whole = np.sum([share * part for share, part in zip(shares, parts, strict=True)], axis=0) * sure
        compared: NDArray[np.float64] = whole / whole.sum()
        return compared

    def mixture(off: float) -> NDArray[np.float64]:
        """[vocab] the same where every T' is off by that much."""
        return mixed([expected(row, steering, top_p, off) for row in rows])

    p, bins = chi_square(tokens, mixture(0.0))
    unsteered = mixed([plain(row, top_p) for row in rows])
    without, _ = chi_square(tokens, unsteered)
    seen_off = detectable(mixture, 0.0, len(tokens), alpha=ALPHA)
    if bins == 1:
        return _one_token(case, tokens, mixture(0.0), unsteered, h)
    power = "a T' off by 1 might be missed" if seen_off is None else f"would show a T' off by {seen_off:.2g}"
    return Result(
        check=f"distribution: {case.name}",
        measured=f"p {p:.2g} over {len(tokens):,} draws, {bins} bins; {power}; without steering p {without:.1g}",
        limit=f"p at least {ALPHA:g}",
        status="FAIL" if p < ALPHA else "pass",
        figures={
            "draws": len(tokens),
            "bins": bins,
            "p": p,
            "p_without_steering": without,
            "detectable_temperature": seen_off,
            "entropy_nats": h,
            "rows": len(rows),
        },
    )


def _one_token(
    case: Case, tokens: NDArray[np.int64], steered: NDArray[np.float64], unsteered: NDArray[np.float64], h: float
) -> Result:
    """Judge draws of a token that the reference leaves alone, as p_less may where few tokens are likely.

    Whether the steering was applied shows where draws without it would have given other tokens too.
    """
    left = int(steered.argmax())
    without = float(unsteered[left]) ** len(tokens)
    same, shown = bool((tokens == left).all()), without < ALPHA
    measured = f"{(tokens == left).sum():,} of {len(tokens):,} draws gave the one token that is left"
    return Result(
        check=f"distribution: {case.name}",
        measured=f"{measured}; without steering all would with p {without:.1g}",
        limit=f"p at least {ALPHA:g}",
        status="FAIL" if not same else "pass" if shown else "undecided",
        figures={"draws": len(tokens), "bins": 1, "p_without_steering": without, "entropy_nats": h},
    )


def expected(row: Tensor, steering: dict[str, Any], top_p: float, off: float = 0.0) -> NDArray[np.float64]:
    """Return the probabilities [vocab] that the reference gives a row of logits, T' off by `off`."""
    return truncated(steered_logits(row, steering, off), top_p)


def steered_logits(row: Tensor, steering: dict[str, Any], off: float = 0.0) -> Tensor:
    """Return what the reference makes of a row of logits [vocab], divided by T' + `off`, float64."""
    z = row.double()
    encoded = encoding.encode(registry.parse(steering), T, params.PAPER_THRESHOLD_NATS)
    table = torch.tensor([encoded.floats], dtype=torch.float64), torch.tensor([encoded.ints(0)])
    steered = z.clone()
    outcome = reference.steer_(steered[None], *table, torch.tensor([0]), torch.tensor([0]))
    return torch.where(steered.isneginf(), steered, z / (float(outcome.temperature[0]) + off))


def plain(row: Tensor, top_p: float) -> NDArray[np.float64]:
    """Return the probabilities [vocab] without steering."""
    return truncated(row.double() / T, top_p)


def at_the_edge(z: Tensor, top_p: float) -> NDArray[np.bool_]:
    """Return whether each token [vocab] lies where the nucleus ends, so that an engine may take it or not.

    Which of several equal logits are taken is a matter of the order in which they are sorted (a model in bfloat16 has
    many), and float32 sums may end one token sooner or later.
    """
    edge = torch.zeros(len(z), dtype=torch.bool)
    if top_p < 1.0:
        ordered, order = torch.softmax(z, -1).sort(descending=True)
        before = ordered.cumsum(0) - ordered
        kept, near = before < top_p, (before - top_p).abs() <= EDGE
        for p in {float(ordered[kept][-1]), *ordered[near].tolist()}:
            equal = (ordered - p).abs() <= EQUAL * p
            if (equal & near).any() or ((equal & kept).any() and (equal & ~kept).any()):
                edge[order] |= equal
    found: NDArray[np.bool_] = edge.numpy()
    return found


def truncated(z: Tensor, top_p: float) -> NDArray[np.float64]:
    """Return softmax of z [vocab], what lies beyond `top_p` left out."""
    p = torch.softmax(z, -1)
    if top_p < 1.0:
        ordered, order = p.sort(descending=True)
        p[order[ordered.cumsum(0) - ordered >= top_p]] = 0.0
        p /= p.sum()
    return p.numpy()
