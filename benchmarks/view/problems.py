"""The problems of a run and their samples, without any score: a list to filter, and one problem under every arm."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .index import Index, Seen
from .progress import per_token

PER_PAGE: Final = 100
FILTERS: Final[dict[str, tuple[str, Callable[[ProblemRow], bool]]]] = {
    "all": ("all problems", lambda row: True),
    "tokens": ("with tokens kept", lambda row: row.kept_tokens > 0),
    "truncated": ("with a truncated sample", lambda row: row.truncated > 0),
    "failed": ("with a failed sample", lambda row: row.failed > 0),
    "missing": ("with samples to come", lambda row: row.made < row.planned),
}


@dataclass(frozen=True)
class ProblemRow:
    """One problem, over all arms."""

    id: str
    made: int
    planned: int
    failed: int
    truncated: int
    kept_tokens: int
    mean_tokens: float | None
    fork_rate: float | None


@dataclass(frozen=True)
class Listing:
    """One page of the problems that pass a filter."""

    rows: Sequence[ProblemRow]
    found: int
    page: int  # from 1
    pages: int


def listing(index: Index, query: str, wanted: str, page: int) -> Listing:
    """Return the problems whose id contains `query`, in the run's order.

    Args:
        wanted: a name in `FILTERS`; another one filters nothing.
        page: from 1; outside the pages there are, the nearest.
    """
    by_problem: dict[str, list[Seen]] = {name: [] for name in index.settings.problems.ids}
    for one in index.seen.values():
        by_problem[one.problem_id].append(one)
    passes = FILTERS.get(wanted, FILTERS["all"])[1]
    matching = ((name, seen) for name, seen in by_problem.items() if query.lower() in name.lower())
    rows = [row for row in (_row(index, name, seen) for name, seen in matching) if passes(row)]
    pages = max(1, -(-len(rows) // PER_PAGE))
    at = min(max(1, page), pages)
    return Listing(rows[(at - 1) * PER_PAGE : at * PER_PAGE], len(rows), at, pages)


def _row(index: Index, name: str, seen: Sequence[Seen]) -> ProblemRow:
    lengths = [one.tokens for one in seen if one.tokens is not None]
    return ProblemRow(
        id=name,
        made=len(seen),
        planned=index.settings.samples * len(index.arms),
        failed=len(seen) - len(lengths),
        truncated=sum(one.truncated for one in seen),
        kept_tokens=sum(one.kept_tokens for one in seen),
        mean_tokens=statistics.fmean(lengths) if lengths else None,
        fork_rate=per_token(seen, lambda one: None if one.forks is None or not one.tokens else one.forks / one.tokens),
    )


def table(index: Index, problem_id: str) -> list[tuple[int, list[Seen | None]]]:
    """Return (sample, its numbers under each arm in the run's order) of one problem; None where there is none yet."""
    known = {(one.sample, one.arm): one for one in index.of_problem(problem_id)}
    numbers = sorted({sample for sample, _ in known})
    return [(sample, [known.get((sample, arm)) for arm in index.arms]) for sample in numbers]
