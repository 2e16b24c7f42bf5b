"""Measure how much of a checkpoint training changed (arXiv 2505.11711), from two checkpoints read in chunks.

The trap (arXiv 2509.04259): the distance between two neighboring bf16 numbers is 2^-8 to 2^-7 of their size. A change
of less than half of that was rounded away when the checkpoint was stored, whatever the optimizer did. "Unchanged" means
unchanged as stored. Where the spacing is wider than a tolerance, being within the tolerance means equality: `wider`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import floor, log2, sqrt
from typing import Any, Final

import torch

from steerdec.analysis.compare.checkpoints import CHUNK_ELEMENTS, MANTISSA_BITS, Stored, chunks
from steerdec.analysis.compare.update_rank import RankOfRows
from steerdec.common.errors import AnalysisError

TOLERANCES: Final = (0.0, 1e-6, 1e-5, 1e-4)
_BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by itemsize, to compare bit for bit


@dataclass(frozen=True)
class Update:
    """The change of one tensor from base to tuned. Counts are counts of its numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    bit_equal: int
    within: tuple[int, ...]  # |change| <= each of TOLERANCES
    wider: tuple[int, ...]  # whose neighbor in this dtype is further away than the tolerance
    change_squares: float  # summed
    base_squares: float
    largest_change: float
    rank: int | None  # of the change; None for what is not a matrix
    rank_of: int | None
    rank_at_least: bool


def update(base: Stored, tuned: Stored, *, chunk_elements: int = CHUNK_ELEMENTS) -> Update:
    """Compare a tensor with the same tensor in the other checkpoint, in float64, with one chunk of each in memory.

    Raises:
        AnalysisError: a number is NaN or infinite.
    """
    rank = RankOfRows(base.shape[0], base.shape[1], base.name) if len(base.shape) == 2 else None
    equal, squares, base_squares, largest = 0, 0.0, 0.0, 0.0
    within, wider = [0] * len(TOLERANCES), [0] * len(TOLERANCES)
    limits = [spacing_limit(base.dtype, tolerance) for tolerance in TOLERANCES]
    for one, two in zip(chunks(base, chunk_elements), chunks(tuned, chunk_elements), strict=True):
        bits = _BITS[one.element_size()]
        equal += int((one.view(bits) == two.view(bits)).sum())
        before = one.double()
        change = two.double() - before
        del one, two
        size = change.abs()
        if not bool(torch.isfinite(size).all()):
            broken = tuned if bool(torch.isfinite(before).all()) else base
            raise AnalysisError(f"{broken.path}: {base.name} holds NaN or infinity; it cannot be compared")
        for i, tolerance in enumerate(TOLERANCES):
            within[i] += int((size <= tolerance).sum())
            wider[i] += int((before.abs() >= limits[i]).sum())
        squares += float(change.square().sum())
        base_squares += float(before.square().sum())
        largest = max(largest, float(size.max()))
        if rank is not None:
            rank.add(change)
    found = rank.result() if rank is not None else None
    return Update(
        name=base.name,
        shape=base.shape,
        dtype=base.dtype,
        parameters=base.parameters,
        bit_equal=equal,
        within=tuple(within),
        wider=tuple(wider),
        change_squares=squares,
        base_squares=base_squares,
        largest_change=largest,
        rank=None if found is None else found.rank,
        rank_of=None if found is None else found.of,
        rank_at_least=found is not None and found.at_least,
    )


def line(found: Update) -> dict[str, Any]:
    """Return the change as a line of the analysis's folder, whose lines have these three keys."""
    return {"problem_id": found.name, "arm": "update", "sample": 0} | asdict(found)


def of_line(line: dict[str, Any]) -> Update:
    kept: dict[str, Any] = {key: value for key, value in line.items() if key not in ("problem_id", "arm", "sample")}
    return Update(**kept | {key: tuple(kept[key]) for key in ("shape", "within", "wider")})


def spacing_limit(dtype: str, tolerance: float) -> float:
    """Return the size from which on the next larger number in `dtype` is more than `tolerance` away.

    The spacing at w is 2^(floor(log2 |w|) - mantissa bits). Subnormal numbers are closer together than every tolerance
    here.
    """
    return 2.0 ** (floor(log2(tolerance) + MANTISSA_BITS[dtype]) + 1) if tolerance > 0 else 0.0


@dataclass(frozen=True)
class Total:
    """The changes of several tensors together, with every parameter counting the same. Shares are 0 to 1."""

    tensors: int
    unchanged_tensors: int  # bit for bit
    parameters: int
    bit_equal: float
    within: dict[str, float]  # by tolerance
    wider: dict[str, float]
    relative_change: float | None  # ||change|| / ||base||, Frobenius; None for a base of zeros
    largest_change: float
    rank: float | None  # rank over shorter side of the changed matrices, weighted by parameters; None without one
    matrices: int  # changed ones
    rank_at_least: int  # number of those with only a lower bound, which is taken as the rank


def total(updates: Sequence[Update]) -> Total:
    n = sum(u.parameters for u in updates)
    base, changed = sum(u.base_squares for u in updates), [u for u in updates if u.rank_of and u.change_squares > 0]
    weight = sum(u.parameters for u in changed)
    ranks = sum(u.parameters * (u.rank or 0) / (u.rank_of or 1) for u in changed)

    def shares(counts: Callable[[Update], tuple[int, ...]]) -> dict[str, float]:
        return {f"{t:g}": sum(counts(u)[i] for u in updates) / n for i, t in enumerate(TOLERANCES)}

    return Total(
        tensors=len(updates),
        unchanged_tensors=sum(u.bit_equal == u.parameters for u in updates),
        parameters=n,
        bit_equal=sum(u.bit_equal for u in updates) / n,
        within=shares(lambda u: u.within),
        wider=shares(lambda u: u.wider),
        relative_change=sqrt(sum(u.change_squares for u in updates) / base) if base else None,
        largest_change=max(u.largest_change for u in updates),
        rank=ranks / weight if weight else None,
        matrices=len(changed),
        rank_at_least=sum(u.rank_at_least for u in changed),
    )


def by_kind(updates: Sequence[Update]) -> dict[str, list[Update]]:
    """Group tensors whose names differ only in a number, such as that of the layer."""
    kinds: dict[str, list[Update]] = {}
    for u in updates:
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", u.name), []).append(u)
    return kinds


def as_json(updates: Sequence[Update]) -> dict[str, Any]:
    """Return everything as JSON: the total, each kind, each tensor."""
    return {
        "total": asdict(total(updates)),
        "kinds": {kind: asdict(total(group)) for kind, group in by_kind(updates).items()},
        "tensors": {u.name: {"shape": list(u.shape), "dtype": u.dtype} | asdict(total([u])) for u in updates},
    }
