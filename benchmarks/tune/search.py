"""Sample the rungs of a search. What each rung has follows from the samples before it, so any stop is resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from steerdec.common.errors import SteerdecError
from steerdec.common.progress import RunProgress, announce
from steerdec.grading.pool import GradingPool
from steerdec.records.run import Settings
from steerdec.records.samples import NAME as SAMPLES
from steerdec.records.samples import read_samples

from ..design.plan import SamplingPlan
from ..run.endpoint_health import Retry
from ..run.endpoints import Endpoint
from ..run.folder import done_samples
from ..run.sampler import make_samples
from .halving import Budget, Rung, best, rung_after
from .records import RungResult


class FailedSamplesError(SteerdecError):
    """Samples of a stage failed, so that nothing can be decided from it."""

    resumable = True


@dataclass(frozen=True)
class Found:
    """The finalists of a search, and how they were found."""

    rungs: tuple[RungResult, ...]
    scores: dict[str, float]  # by arm, of its last rung
    steered: str
    plain: str
    tokens: int  # generated in the search
    mean_tokens: float  # of one sample in the last rung
    stopped_by_budget: bool


@dataclass(frozen=True)
class Counts:
    """Samples of a folder: right ones, all of them, and their tokens, by arm, up to a number of samples per problem."""

    right: Counter[str]
    samples: Counter[str]
    tokens: Counter[str]

    @classmethod
    def of(cls, folder: Path, below: int) -> Counts:
        counts = cls(Counter(), Counter(), Counter())
        for sample in read_samples(folder / SAMPLES):
            if sample.sample < below:
                counts.right[sample.arm] += sample.grade == "correct"
                counts.samples[sample.arm] += 1
                counts.tokens[sample.arm] += sample.completion_tokens or 0
        return counts

    def score(self, arm: str) -> float:
        return self.right[arm] / self.samples[arm]

    def mean_tokens(self, arms: Collection[str]) -> float:
        """Return the mean length of a sample, at least one token."""
        samples = sum(self.samples[arm] for arm in arms)
        return max(1.0, sum(self.tokens[arm] for arm in arms) / max(samples, 1))


@dataclass(frozen=True)
class Searched:
    """What samples the rungs: the folder of their run, its plan, and the servers."""

    folder: Path
    settings: Settings
    plan: SamplingPlan
    endpoints: Sequence[Endpoint]
    grade: GradingPool
    retry: Retry

    async def sample(self, rung: Rung) -> None:
        """Make what is missing of a rung. Raises FailedSamplesError, and what `make_samples` raises."""
        done = done_samples(self.folder, self.plan)
        skip, before = bytearray(b"\1") * len(done), sum(done)
        for sample in range(rung.samples):
            for problem in self.plan.problems:
                for name in rung.sampled:
                    number = self.plan.index(problem.id, name, sample)
                    skip[number] = done[number]
        missing = len(skip) - sum(skip)
        if not missing:
            return
        at_once = sum(endpoint.connections for endpoint in self.endpoints)
        with RunProgress(before + missing, before, at_once=at_once) as shown:
            await make_samples(
                self.folder, self.settings, self.plan, skip, self.endpoints, self.grade, self.retry, shown
            )
        if shown.failed:
            raise FailedSamplesError(f"{shown.failed} of {missing} samples failed (`error` in {self.folder / SAMPLES})")


async def search(searched: Searched, rung: Rung, budget: Budget, spent: int, mean_tokens: float) -> Found:
    """Sample rung after rung; return the finalists.

    Args:
        rung: the first one.
        spent: tokens generated before the search.
        mean_tokens: of a sample then.

    Raises:
        FailedSamplesError: samples failed; they are made again when the search is resumed.
        NoEndpointLeftError, NoGoodAnswerError, JournalError: it cannot continue.
    """
    results: list[RungResult] = []
    last_scores: dict[str, float] = {}
    n = len(searched.plan.problems)
    stopped = False
    while True:
        _announce(rung, n)
        await searched.sample(rung)
        counts = Counts.of(searched.folder, rung.samples)
        scores = {name: counts.score(name) for name in rung.sampled}
        results.append(RungResult(number=rung.number, samples=rung.samples, scores=scores))
        last_scores |= scores
        tokens = sum(counts.tokens.values())
        if rung.sampled:
            mean_tokens = counts.mean_tokens(rung.sampled)
        if rung.is_last:
            break
        following = rung_after(rung, scores)
        if not budget.allows(spent + tokens, mean_tokens, len(following.sampled) * (following.samples - rung.samples)):
            stopped = True
            announce(f"the search ends after rung {rung.number}: the next would not fit its half of --budget-tokens")
            break
        rung = following
    return Found(
        rungs=tuple(results),
        scores=last_scores,
        steered=best(rung.steered, last_scores),
        plain=best(rung.plain, last_scores),
        tokens=tokens,
        mean_tokens=mean_tokens,
        stopped_by_budget=stopped,
    )


def _announce(rung: Rung, problems: int) -> None:
    families = f"{len(rung.steered)} steered settings and {len(rung.plain)} plain temperatures"
    announce(f"rung {rung.number}: {families}, {rung.samples} samples of each of {problems} problems")
