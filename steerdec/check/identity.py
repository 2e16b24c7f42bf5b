"""A/A: steering to the temperature that a request has anyway changes no bit of the logits; T' = 0 is greedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from vllm import SamplingParams

from steerdec.check.engine import Engine, bits
from steerdec.check.part import Reporter
from steerdec.check.results import Result, judged, not_applicable

T = 0.7
THRESHOLD_NATS = 0.5
SAME = {"fork_temperature": T, "other_temperature": T, "threshold_nats": THRESHOLD_NATS}
CHANGED = {"fork_temperature": 1.1, "other_temperature": 0.9, "threshold_nats": THRESHOLD_NATS}
GREEDY = {"fork_temperature": 0.0, "other_temperature": 0.0}


def results(reporter: Reporter, engine: Engine) -> Iterator[Result]:
    """Run the same requests plain, plain again, as A/A, and steered."""
    small = reporter.settings.quick or reporter.settings.interpreted
    n, tokens = min(8 if small else 32, engine.at_once), 12 if small else 48
    prompts = engine.prompts(n)
    sampling: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True}
    hot = [sampling | {"temperature": T, "seed": 1000 + i} for i in range(n)]
    reporter.progress(f"A/A: {n} requests of {tokens} tokens, four times")
    plain, again = ([o.token_ids for o in engine.generate(prompts, [SamplingParams(**s) for s in hot])] for _ in (0, 1))
    rows = changed = moved = 0

    def count(before: Tensor, after: Tensor, ctx: Any) -> None:
        nonlocal rows, changed
        rows += len(before)
        changed += int((bits(before) != bits(after)).any(-1).sum())

    with engine.watching(count):
        same = [o.token_ids for o in engine.generate(prompts, [engine.steered(SAME, **s) for s in hot])]
    identical, seen = changed, rows
    rows = changed = 0
    with engine.watching(count):
        engine.generate(prompts, [engine.steered(CHANGED, **s) for s in hot])
    moved = changed
    if engine.elsewhere:
        yield not_applicable("A/A: logits", engine.elsewhere)
    else:
        yield judged(
            "A/A: logits",
            f"{identical} of {seen:,} rows changed (steered to other temperatures: {moved:,} of {rows:,})",
            "0, and some when steered",
            identical == 0 and seen > 0 and moved > 0,
            rows=seen,
            rows_changed=identical,
            rows_changed_when_steered=moved,
        )
    equal, repeats = (sum(a == b for a, b in zip(plain, other, strict=True)) for other in (same, again))
    yield _texts("A/A: texts", equal, repeats, n, "plain")
    reporter.progress("T' = 0 beside greedy decoding")
    greedy, twice = (
        [o.token_ids for o in engine.generate(prompts, [SamplingParams(temperature=0.0, **sampling)] * n)]
        for _ in (0, 1)
    )
    zero = [engine.steered(GREEDY, temperature=1.0, seed=i, **sampling) for i in range(n)]
    found = [o.token_ids for o in engine.generate(prompts, zero)]
    equal, repeats = (sum(a == b for a, b in zip(greedy, other, strict=True)) for other in (found, twice))
    yield _texts("T' = 0: greedy texts", equal, repeats, n, "greedy")


def _texts(check: str, equal: int, repeats: int, n: int, what: str) -> Result:
    """Judge equal texts; an engine that does not repeat itself cannot be held to them."""
    return Result(
        check=check,
        measured=f"{equal} of {n} equal to the {what} ones ({what} again: {repeats} of {n})",
        limit="all, where the engine repeats itself",
        status="pass" if equal == n else "undecided" if repeats < n else "FAIL",
        figures={"texts": n, "equal": equal, "equal_when_repeated": repeats},
    )
