"""How well each lens finds the true decisions: AUROC, precision and recall against the truth, with nulls. Pure.

Precision and recall are of a trace's top 20% by the lens, which is what "forking tokens" are taken to be. The truth is
`truth.labels`; a trace's numbers are averaged over problems, intervals resample problems. Two nulls turn or shuffle the
truth against the lens: circular shifts keep the truth's rhythm; shuffles within (third of the trace x token class) keep
where it lies and on what kind of token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from steerdec.analysis.agreement import Interval, auroc, over_problems, top_mask
from steerdec.analysis.lenses import matrix, names
from steerdec.common.multiplicity import holm
from steerdec.organism import truth

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

DRAWS: Final = 2000
PARTS: Final = 3
TOKEN_SCORES: Final = tuple(lens.name for lens in (*names.TOKEN_LENSES, *names.VARIANTS[:1], *names.BASELINES))


@dataclass(frozen=True)
class Trace:
    """One trace with its truth; every array [n_tokens]."""

    problem_id: str
    kinds: NDArray[np.str_]
    live: Bools
    classes: Sequence[str]
    scores: Mapping[str, Floats]

    @property
    def decisions(self) -> Bools:
        """Where the true decisions are."""
        return np.asarray(self.kinds == truth.DECISION)


def seed_of(*parts: str) -> int:
    """Return a seed made by hashing what it is for."""
    return int.from_bytes(hashlib.sha256("/".join(("lens truth", *parts)).encode()).digest()[:8], "big")


def traces(records: Sequence[Mapping[str, Any]], problems: Mapping[str, str]) -> list[Trace]:
    """Put the truth beside the records of `steerdec lenses`.

    Args:
        problems: the text of each problem by id.
    """
    table = matrix.read(records)
    texts = [list(record["tokens"]) for record in records if not record.get("skipped")]
    found = []
    for name, own, classes, scores in zip(table.problems, texts, table.classes, table.tokens, strict=True):
        labels = truth.labels(truth.puzzle(problems[name]), own)
        kinds, live = np.array([label.kind for label in labels]), np.array([label.live for label in labels])
        found.append(Trace(name, kinds, live, classes, scores))
    return found


def precision_recall(mask: Bools, score: Floats) -> tuple[float, float]:
    """Return (share of the top 20% in the mask, share of the mask in the top 20%); NaN where the mask is empty."""
    top = top_mask(score)
    hits = float((top & mask).sum())
    return hits / float(top.sum()), hits / float(mask.sum()) if mask.any() else np.nan


def measures(found: Sequence[Trace], name: str) -> dict[str, Interval]:
    """Return what one lens finds, over problems.

    `auroc`: decisions against all other tokens. `auroc_without_style`: against determined tokens alone. `auroc_live`:
    live decisions against all other tokens. `auroc_of_style`: style against determined tokens, which a lens for what
    *matters* should put near 0.5. `precision`, `recall`: of decisions; `recall_live`: of live ones.
    """
    rows: dict[str, list[float]] = {}
    for trace in found:
        score = trace.scores[name]
        style = trace.kinds == truth.STYLE
        precision, recall = precision_recall(trace.decisions, score)
        row = {
            "auroc": auroc(trace.decisions, score),
            "auroc_without_style": auroc(trace.decisions[~style], score[~style]),
            "auroc_live": auroc(trace.live, score),
            "auroc_of_style": auroc(style[~trace.decisions], score[~trace.decisions]),
            "precision": precision,
            "recall": recall,
            "recall_live": precision_recall(trace.live, score)[1],
        }
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
    owners = [trace.problem_id for trace in found]
    return {key: over_problems(values, owners, seed=seed_of(name)) for key, values in rows.items()}


@dataclass(frozen=True)
class Null:
    """The mean AUROC of decisions against what chance gives."""

    observed: float
    null_mean: float
    p: float  # two-sided, (1 + #) / (draws + 1) on the nearer side, doubled


def null_test(
    found: Sequence[Trace], name: str, moved: Callable[[Trace, np.random.Generator], Bools], kind: str
) -> Null:
    """Test the AUROC of decisions against truths that `moved` has put elsewhere; [DRAWS, n_tokens] of each trace."""
    rng = np.random.default_rng(seed_of(kind, name))
    observed, null = [], []
    for trace in found:
        mask = trace.decisions
        m, n = int(mask.sum()), len(mask)
        if m in (0, n):
            continue
        ranks = scipy.stats.rankdata(trace.scores[name])
        sums = moved(trace, rng) @ ranks
        observed.append(float((ranks[mask].sum() - m * (m + 1) / 2) / (m * (n - m))))
        null.append((sums - m * (m + 1) / 2) / (m * (n - m)))
    value, chance = float(np.mean(observed)), np.mean(null, axis=0)
    beyond = min(int((chance >= value - 1e-9).sum()), int((chance <= value + 1e-9).sum()))
    return Null(value, float(chance.mean()), min(1.0, 2 * (1 + beyond) / (DRAWS + 1)))


def turned(trace: Trace, rng: np.random.Generator) -> Bools:
    """Return the truth turned round by random offsets."""
    n = len(trace.kinds)
    at = (np.arange(n)[None, :] - rng.integers(0, n, size=DRAWS)[:, None]) % n
    return np.asarray(trace.decisions[at])


def shuffled(trace: Trace, rng: np.random.Generator) -> Bools:
    """Return the truth shuffled among tokens of one class in one third of the trace."""
    n = len(trace.kinds)
    cells = np.array([f"{PARTS * i // n}/{kind}" for i, kind in enumerate(trace.classes)])
    order = np.tile(np.arange(n), (DRAWS, 1))
    for cell in np.unique(cells):
        members = np.flatnonzero(cells == cell)
        order[:, members] = rng.permuted(np.tile(members, (DRAWS, 1)), axis=1)
    return np.asarray(trace.decisions[order])


def report(found: Sequence[Trace]) -> dict[str, Any]:
    """Return everything about the token lenses as JSON values, with Holm over the lenses for each null."""
    counts = {kind: int(sum((trace.kinds == kind).sum() for trace in found)) for kind in truth.KINDS}
    live = int(sum(trace.live.sum() for trace in found))
    nulls = {
        kind: [null_test(found, name, moved, kind) for name in TOKEN_SCORES]
        for kind, moved in (("shift", turned), ("shuffle", shuffled))
    }
    adjusted = {kind: holm([test.p for test in tests]) for kind, tests in nulls.items()}
    lenses = {
        name: {
            "measures": {key: asdict(value) for key, value in measures(found, name).items()},
            **{kind: asdict(nulls[kind][i]) | {"p_holm": adjusted[kind][i]} for kind in nulls},
        }
        for i, name in enumerate(TOKEN_SCORES)
    }
    return {"traces": len(found), "tokens": counts, "live_decisions": live, "null_draws": DRAWS, "lenses": lenses}
