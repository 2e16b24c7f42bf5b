"""The loan of lanes to one request, in any front end: lent, read as its tokens are returned, and given back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from steerdec.common.json import nulls_if_nan
from steerdec.steering.memory import Rule
from steerdec.telemetry.lanes import LanePool, Records
from steerdec.telemetry.thresholds import Thresholds

DIGITS: Final = 7  # hold a float32's information, without the tail of noise that float64 would print


@dataclass(frozen=True)
class Telemetry(Records):
    """What was done to tokens of one sequence: the records, one entry per token, and what they were made with."""

    threshold_nats: float  # of the first token, if it moves
    probed: bool  # a second entropy was requested; else `probe_entropy_nats` is NaN
    guarded: bool = False
    guard_token: int | None = None  # of the sequence: the first that is not steered because the guard stopped
    thresholds_nats: NDArray[np.float64] | None = None  # that H was compared with; None where it does not move

    def summary(self) -> dict[str, float | int | None]:
        """Return the totals; a rate or mean of nothing is None."""
        moved = self.thresholds_nats
        forks, tokens = int(self.fork.sum()), len(self.fork)
        return {
            "tokens": tokens,
            "forks": forks,
            "fork_rate": forks / tokens if tokens else None,
            "mean_entropy_nats": _mean(self.entropy_nats),
            "threshold_nats": self.threshold_nats,
            **({} if moved is None else {"last_threshold_nats": float(moved[-1]) if len(moved) else None}),
            **({"guard_token": self.guard_token} if self.guarded else {}),
            **({"mean_probe_entropy_nats": _mean(self.probe_entropy_nats)} if self.probed else {}),
        }

    def lists(self) -> dict[str, list[float | None] | list[bool]]:
        """Return the records as lists for JSON, with None for NaN."""
        moved = self.thresholds_nats
        return {
            "entropy_nats": nulls_if_nan(self.entropy_nats, DIGITS),
            "fork": self.fork.tolist(),
            "temperature": nulls_if_nan(self.temperature, DIGITS),
            **({} if moved is None else {"thresholds_nats": nulls_if_nan(moved, DIGITS)}),
            **({"probe_entropy_nats": nulls_if_nan(self.probe_entropy_nats, DIGITS)} if self.probed else {}),
        }


def _mean(values: NDArray[np.float32]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else None


class Loan:
    """One lane per sequence of a request, and how many tokens of each were returned. It may be of no lanes."""

    def __init__(
        self,
        pool: LanePool | None,
        sequences: int,
        threshold_nats: float,
        *,
        probed: bool,
        rule: Rule | None = None,
    ) -> None:
        """Take the lanes from `pool`; without a pool, none. `rule`: of a request with a memory.

        Raises:
            LanesExhaustedError: fewer than `sequences` are free.
        """
        self._pool = pool
        self.lanes = [] if pool is None else pool.lend(sequences)
        self.threshold_nats, self._probed, self._rule = threshold_nats, probed, rule
        self.returned_tokens = [0] * len(self.lanes)
        self._guard_tokens: list[int | None] = [None] * len(self.lanes)
        moves = rule is not None and rule.moves
        self._thresholds = [Thresholds(rule) for _ in self.lanes] if rule is not None and moves else None

    def read(self, sequence: int, start: int, stop: int) -> Telemetry:
        """Return what was done to tokens `start` to `stop` (exclusive) of a sequence."""
        lane = self.lanes[sequence]
        records = lane.read(start, stop)
        if self._guard_tokens[sequence] is None and records.stopped.any():
            self._guard_tokens[sequence] = start + int(records.stopped.argmax())
        return Telemetry(
            **vars(records),
            threshold_nats=self.threshold_nats,
            probed=self._probed,
            guarded=self._rule is not None and self._rule.guarded,
            guard_token=self._guard_tokens[sequence],
            thresholds_nats=None if self._thresholds is None else self._thresholds[sequence].of(lane, start, stop),
        )

    def returned(self, sequence: int) -> Telemetry:
        """Return what was done to the tokens of a sequence that were returned."""
        return self.read(sequence, 0, self.returned_tokens[sequence])

    def following(self, sequence: int, tokens: int) -> Telemetry:
        """Count the next `tokens` tokens of a sequence as returned, and return what was done to them."""
        start = self.returned_tokens[sequence]
        self.returned_tokens[sequence] = start + tokens
        return self.read(sequence, start, start + tokens)

    def give_back(self, *, aborted: bool) -> None:
        """End the loan, once the engine has finished the sequences or was told to abort them; once only."""
        if self._pool is not None:
            self._pool.take_back(self.lanes, aborted=aborted)
        self._pool = None
