"""Which samples a run consists of, in which order, each with which seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from steerdec.benchmarks.arms import Arm
from steerdec.benchmarks.problems import Problem


class Item(NamedTuple):
    """One sample to make; `number` numbers the items of a plan in their order."""

    number: int
    problem: Problem
    arm: Arm
    sample: int
    seed: int


def _hash(*identifiers: object, bits: int = 53) -> int:
    """`bits` bits of blake2b over the identifiers as JSON, so that ("a", "bc") and ("ab", "c") differ."""
    digest = hashlib.blake2b(json.dumps(identifiers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - bits)


def sample_seed(run_seed: int, problem_id: str, sample: int, replica: str = "") -> int:
    """53 bits (exact in JSON everywhere), the same in every arm: common random numbers.

    Hashed, never `seed + i`: neighbouring seeds would share samples between neighbouring runs.
    `replica` names an arm that has to draw anew.
    """
    return _hash("sample", run_seed, problem_id, sample, replica)


@dataclass(frozen=True)
class Plan:
    """Every (sample, problem, arm), the arm varying fastest.

    All arms of one (problem, sample) stand together, so that whatever drifts while a run lasts
    (load, a second endpoint, a restarted server) hits all arms alike and cancels in the paired
    differences. Samples vary slowest, so that a run cut short holds k' < k samples of every problem.
    Within a group the arms are rotated by a hash, so that none is always sent first.
    """

    problems: Sequence[Problem]
    arms: Sequence[Arm]
    samples: int
    seed: int
    _places: dict[tuple[str, str], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        places = {
            (problem.id, arm.name): p * len(self.arms) + a
            for p, problem in enumerate(self.problems)
            for a, arm in enumerate(self.arms)
        }
        object.__setattr__(self, "_places", places)

    def __len__(self) -> int:
        return self.samples * len(self.problems) * len(self.arms)

    def index(self, problem_id: str, arm: str, sample: int) -> int:
        """Where the sample stands. Raises KeyError where it is not part of this plan."""
        if not 0 <= sample < self.samples:
            raise KeyError(sample)
        return sample * len(self._places) + self._places[problem_id, arm]

    def items(self, done: Sequence[int] | bytearray | None = None) -> Iterator[Item]:
        """The items in order, made one at a time, without those whose `done[index]` is true."""
        arms = len(self.arms)
        for sample in range(self.samples):
            for p, problem in enumerate(self.problems):
                first = _hash("order", self.seed, problem.id, sample) % arms
                for a in range(arms):
                    place = (first + a) % arms
                    index = (sample * len(self.problems) + p) * arms + place
                    if done is not None and done[index]:
                        continue
                    arm = self.arms[place]
                    replica = "" if arm.shares_seeds else arm.name
                    yield Item(index, problem, arm, sample, sample_seed(self.seed, problem.id, sample, replica))
