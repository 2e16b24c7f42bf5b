"""Compute the numerical rank of an update matrix whose rows come in chunks, in bounded memory and time.

Singular values come from a Gram matrix in float64, which resolves them down to about 1e-7 of the largest. Those above
max(m, n) x 2^-23 of the largest count, which is the tolerance of `matrix_rank` for a float32 matrix. If both sides of a
matrix are longer than EXACT_SIDE, SKETCH random combinations of its rows take its place. Their rank is that of the
matrix if it is lower than SKETCH, else only a lower bound.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

EXACT_SIDE: Final = 2048
SKETCH: Final = 1024
_MOST_HELD: Final = 1 << 26  # numbers of a wide matrix, 512 MiB in float64
_EPSILON: Final = 2.0**-23


@dataclass(frozen=True)
class Rank:
    rank: int
    of: int  # the shorter side
    at_least: bool  # from a sketch whose own rank is full


class RankOfRows:
    """Accumulate a matrix [m, n] by its rows, in order."""

    def __init__(self, m: int, n: int, name: str) -> None:
        self._m, self._n, self._begin = m, n, 0
        self._tall = n <= min(m, EXACT_SIDE)
        self._held = not self._tall and m <= EXACT_SIDE and m * n <= _MOST_HELD
        if self._tall:
            self._sum = torch.zeros(n, n, dtype=torch.float64)
        elif self._held:
            self._sum = torch.zeros(m, n, dtype=torch.float64)
        else:
            self._sum = torch.zeros(min(m, SKETCH), n)
            seed = int.from_bytes(hashlib.sha256(f"update-rank/{name}".encode()).digest()[:7], "big")
            self._draws = torch.Generator().manual_seed(seed)

    def add(self, rows: Tensor) -> None:
        """Add the next rows, [k, n] in float64."""
        end = self._begin + len(rows)
        if self._tall:
            self._sum += rows.T @ rows
        elif self._held:
            self._sum[self._begin : end] = rows
        else:
            self._sum += torch.randn(len(self._sum), len(rows), generator=self._draws) @ rows.float()
        self._begin = end

    def result(self) -> Rank:
        if self._tall:
            gram = self._sum
        else:
            whole = self._sum.double()
            gram = whole @ whole.T
        squares = torch.linalg.eigvalsh(gram).clamp_min(0)
        tolerance = max(self._m, self._n) * _EPSILON
        found = int((squares > tolerance**2 * squares.max()).sum())
        sketched = not self._tall and not self._held
        return Rank(found, min(self._m, self._n), sketched and found == len(self._sum))
