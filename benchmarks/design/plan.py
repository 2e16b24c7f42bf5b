"""Which samples a run consists of, in which order, and the seed and prefix of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from steerdec.common.seeds import hashed_bits, sample_seed
from steerdec.problems.sets import Problem
from steerdec.records.arms import Arm

from .masks import Places, Prefix


class PlannedSample(NamedTuple):
    """One sample to make; `number` counts the samples of a plan in order."""

    number: int
    problem: Problem
    arm: Arm
    sample: int
    seed: int
    prefix: Prefix | None = None


def drawn_prefix(places: Places, run_seed: int, problem_id: str, sample: int) -> Prefix:
    """Draw a recorded response to the problem and one of its `places`, each uniformly, by a hash.

    The hash does not depend on the mask: over the same responses, two masks give positions of the same response, with
    the same rank among the positions that each of them has there. So they differ less by chance.
    """
    responses = places.of(problem_id)
    trace, positions = responses[_uniform(len(responses), "trace", run_seed, problem_id, sample)]
    return Prefix(trace, int(positions[_uniform(len(positions), "position", run_seed, problem_id, sample)]))


def _uniform(n: int, *identifiers: object) -> int:
    """Return one of 0 .. n - 1, each equally likely."""
    return hashed_bits(*identifiers) * n >> 53


@dataclass(frozen=True)
class SamplingPlan:
    """Every (sample, problem, arm), the arm varying fastest.

    All arms of one (problem, sample) are adjacent, so that anything that drifts during a run (load, a second endpoint,
    a restarted server) affects all arms alike and cancels in the paired differences. Samples vary slowest, so that a
    run cut short has k' < k samples of every problem. Within a group the arms are rotated by a hash, so that none is
    always sent first.

    A sample of a branching arm has no prefix until its root has been sampled: `branches` has those that exist.
    """

    problems: Sequence[Problem]
    arms: Sequence[Arm]
    samples: int
    seed: int
    replays: Mapping[str, Places] = field(default_factory=dict)  # by their names in the arm set
    branches: Mapping[tuple[str, str, int], Prefix] = field(default_factory=dict)  # by (arm, problem, root)
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
        """Return the number of a sample. Raises KeyError if it is not part of this plan."""
        if not 0 <= sample < self.samples:
            raise KeyError(sample)
        return sample * len(self._places) + self._places[problem_id, arm]

    def items(self, done: Sequence[int] | bytearray | None = None) -> Iterator[PlannedSample]:
        """Yield the samples in order, without those whose `done[number]` is true."""
        arms = len(self.arms)
        for sample in range(self.samples):
            for p, problem in enumerate(self.problems):
                first = hashed_bits("order", self.seed, problem.id, sample) % arms
                for a in range(arms):
                    place = (first + a) % arms
                    index = (sample * len(self.problems) + p) * arms + place
                    if done is not None and done[index]:
                        continue
                    arm = self.arms[place]
                    yield self._planned(index, problem, arm, sample)

    def _planned(self, number: int, problem: Problem, arm: Arm, sample: int) -> PlannedSample:
        seed, prefix = sample_seed(self.seed, problem.id, sample, arm.seed_group), None
        if arm.replay is not None:
            prefix = drawn_prefix(self.replays[arm.replay], self.seed, problem.id, sample)
        if arm.branch is not None:
            prefix = self.branches.get((arm.name, problem.id, arm.branch.root_of(sample)))
        return PlannedSample(number=number, problem=problem, arm=arm, sample=sample, seed=seed, prefix=prefix)
