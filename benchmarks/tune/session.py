"""From a request to a result: pilot, search, and the test on held-out problems."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import FileError, FolderLock
from steerdec.common.progress import announce
from steerdec.grading.pool import GradingPool
from steerdec.problems.sets import ProblemSet
from steerdec.records.arms import Arm, ArmSet
from steerdec.records.calibration import Threshold
from steerdec.records.run import NAME as RUN_JSON
from steerdec.records.run import Settings, read_settings
from steerdec.records.samples import NAME as SAMPLES
from steerdec.records.samples import read_samples

from ..design.plan import SamplingPlan
from ..run import session as runs
from ..run.endpoint_health import Retry
from ..run.folder import open_folder
from ..run.preflight import check_prompt_lengths, probe_arms, survey
from ..run.run_request import RunRequest
from ..run.sample_requests import Prompting
from ..run.targets import Target
from ..verdicts.summary import summarize, write_summary
from . import final, space
from .halving import Budget, extent, first_rung
from .records import (
    PILOT,
    SEARCH,
    TEST,
    Cost,
    Setting,
    TuneResult,
    TuneSettings,
    open_settings,
    read_result,
    write_result,
)
from .search import FailedSamplesError, Found, Searched, search
from .split import Halves, write_problems


class BudgetError(InvalidInputError):
    """A token budget that holds no search and no test; the message is one plain line."""


@dataclass(frozen=True)
class TuneRequest:
    """A search to make, checked as far as possible without a server."""

    settings: TuneSettings
    halves: Halves
    arms: ArmSet | None  # the user's own settings


def run(request: TuneRequest, target: Target, folder: Path, retry: Retry) -> TuneResult:
    """Make, or finish, the search in `folder`.

    Raises:
        TuneFileError, SpaceError, BudgetError, SettingsError, ArmError: the request is wrong.
        FailedSamplesError, PreflightError, ServerError, FileError, NoEndpointLeftError, NoGoodAnswerError: it cannot
            continue.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise FileError(f"--out: {folder} cannot be created ({e.strerror})") from None
    with FolderLock(folder):
        open_settings(folder, request.settings)
        if (result := read_result(folder)) is not None:
            return result
        for name in (PILOT, SEARCH, TEST):
            (folder / name).mkdir(exist_ok=True)
        write_problems(folder / "tuning.jsonl", request.halves.tuning.problems)
        write_problems(folder / "held-out.jsonl", request.halves.held_out.problems)
        with target.urls(folder / "server.log") as urls, GradingPool() as pool:
            result = asyncio.run(_Tuning(request, target, urls, folder, pool, retry).result())
        write_result(folder, result)
    return result


class _Tuning:
    def __init__(
        self,
        request: TuneRequest,
        target: Target,
        urls: tuple[str, ...],
        folder: Path,
        pool: GradingPool,
        retry: Retry,
    ) -> None:
        self._request, self._target, self._urls = request, target, urls
        self._folder, self._pool, self._retry = folder, pool, retry
        self._asked, self._halves = request.settings, request.halves
        n, held_out = len(self._halves.tuning.problems), len(self._halves.held_out.problems)
        self._budget = Budget(self._asked.budget_tokens, n, held_out)

    async def result(self) -> TuneResult:
        pilot = await self._run(PILOT, self._pilot_set(), self._halves.tuning, 1, self._given_threshold())
        spent, mean_tokens = tokens_in(self._folder / PILOT)
        thresholds = self._thresholds()
        threshold = Threshold(thresholds.get("p80", next(iter(thresholds.values()))), "the pilot of steerdec tune")
        found, settings = await self._search(thresholds, threshold, spent, mean_tokens)
        steered = setting_of(settings.arms.arm(found.steered), found)
        plain = None if found.plain == space.BASELINE else setting_of(settings.arms.arm(found.plain), found)
        samples = self._budget.test_samples(spent + found.tokens, found.mean_tokens, self._asked.test_samples)
        if samples < 1:
            raise BudgetError(
                f"--budget-tokens: {self._budget.tokens} is used up by the search ({spent + found.tokens} tokens), "
                "whose answers were longer than the pilot's; nothing is left for the test"
            )
        announce(f"test: {steered.name} against the baseline on {self._budget.held_out} held-out problems")
        finalists = final.test_set(steered, plain, self._asked.temperature)
        await self._run(TEST, finalists, self._halves.held_out, samples, threshold)
        summary = summarize(self._folder / TEST)
        write_summary(self._folder / TEST)
        tuned = summary.arms[final.TUNED]
        return TuneResult(
            model=pilot.model,
            thresholds_nats=thresholds,
            rungs=found.rungs,
            stopped_by_budget=found.stopped_by_budget,
            baseline_temperature=self._asked.temperature,
            steered=steered,
            plain=plain,
            tuning_problems=self._budget.problems,
            held_out_problems=self._budget.held_out,
            test_samples=samples,
            instrument=summary.instrument,
            claims=summary.claims,
            advice=final.advice(summary.claims),
            entropy_shift_nats=tuned.entropy_shift_nats,
            cost=Cost(pilot=spent, search=found.tokens, test=tokens_in(self._folder / TEST)[0]),
        )

    def _pilot_set(self) -> ArmSet:
        identity = {"fork_temperature": "base", "other_temperature": "base"}
        return ArmSet(
            name="pilot",
            temperature=self._asked.temperature,
            baseline=space.BASELINE,
            arms=(
                Arm(name=space.BASELINE, role="baseline"),
                Arm(name="A/A", role="identity", steering=dict(identity)),
            ),
        )

    def _given_threshold(self) -> Threshold | None:
        nats = self._asked.threshold_nats
        return None if nats is None else Threshold(nats, "given")

    def _thresholds(self) -> dict[str, float]:
        """Return the thresholds to try by name, each once; raise SpaceError if no token is uncertain."""
        if self._asked.threshold_nats is not None:
            return {f"{self._asked.threshold_nats:g}": self._asked.threshold_nats}
        nats = [h for s in read_samples(self._folder / PILOT / SAMPLES) for h in s.entropy_nats or () if h is not None]
        quantiles = {f"p{q}": round(float(np.percentile(nats, q)), 4) for q in space.QUANTILES} if nats else {}
        distinct = {value: name for name, value in quantiles.items() if value >= space.LEAST_NATS}
        if not distinct:
            raise space.SpaceError(
                f"the 90th percentile of the model's entropies on these problems is below {space.LEAST_NATS:g} nats: "
                "there are no forks to steer; give a --threshold, or other problems"
            )
        return {name: value for value, name in distinct.items()}

    async def _search(
        self, thresholds: dict[str, float], threshold: Threshold, spent: int, mean_tokens: float
    ) -> tuple[Found, Settings]:
        asked, base = self._asked, self._asked.temperature
        plain = space.plain_arms(base)
        own = None if self._request.arms is None else space.arms_from(self._request.arms)
        steered = own or space.drawn(space.steered_arms(thresholds, base), asked.candidates, asked.seed)
        fit = self._budget.first_candidates(spent, mean_tokens, len(plain), asked.first_samples)
        least = self._budget.least(spent, mean_tokens, len(plain), asked.first_samples)
        if self._budget.tokens is not None and self._budget.tokens < least:
            raise BudgetError(
                f"--budget-tokens: {self._budget.tokens} is too few: the smallest search and its test take about "
                f"{least} tokens here ({mean_tokens:.0f} per answer)"
            )
        tried = [arm.name for arm in steered[: int(min(fit, len(steered)))]]
        names = [arm.name for arm in plain]
        size = extent(len(tried), len(names), asked.first_samples)
        arm_set = ArmSet(name="search", temperature=base, baseline=space.BASELINE, arms=(*plain, *steered))
        request = self._run_request(SEARCH, arm_set, self._halves.tuning, size.most, threshold)
        planned = size.samples * self._budget.problems
        announce(
            f"search: {len(tried)} steered settings and {len(names)} plain temperatures on {self._budget.problems} "
            f"problems, {planned} samples, about {planned * mean_tokens:.0f} tokens"
        )
        async with self._target.opened(self._urls) as endpoints:
            server, endpoints = await survey(endpoints)
            settings = open_folder(self._folder / SEARCH, runs.settings_of(request, self._target, self._urls, server))
            plan = SamplingPlan(request.problem_set.problems, settings.arms.arms, settings.samples, settings.seed)
            prompting = Prompting(settings.model, settings.prompt, settings.thinking)
            await check_prompt_lengths(
                endpoints[0],
                plan.problems,
                prompting,
                context_tokens=server.max_model_len,
                max_tokens=settings.max_tokens,
            )
            await probe_arms(endpoints, plan, prompting)
            searched = Searched(self._folder / SEARCH, settings, plan, endpoints, self._pool, self._retry)
            found = await search(
                searched, first_rung(tried, names, asked.first_samples), self._budget, spent, mean_tokens
            )
        return found, settings

    async def _run(
        self, name: str, arm_set: ArmSet, problems: ProblemSet, samples: int, threshold: Threshold | None
    ) -> Settings:
        request = self._run_request(name, arm_set, problems, samples, threshold)
        folder = self._folder / name
        finished = await runs.run_on(request, self._target, self._urls, folder, self._pool, self._retry)
        if finished.failed:
            raise FailedSamplesError(
                f"{finished.failed} of {finished.samples} samples failed (`error` in {folder / SAMPLES})"
            )
        return read_settings(folder / RUN_JSON)

    def _run_request(
        self, name: str, arm_set: ArmSet, problems: ProblemSet, samples: int, threshold: Threshold | None
    ) -> RunRequest:
        file = "held-out.jsonl" if name == TEST else "tuning.jsonl"
        return RunRequest(
            problem_set=replace(problems, name=f"{problems.name} ({Path(file).stem})"),
            source=str((self._folder / file).resolve()),
            limit=None,
            prompt=self._asked.prompt,
            thinking=self._asked.thinking,
            arms=arm_set,
            samples=samples,
            seed=self._asked.seed,
            temperature=self._asked.temperature,
            max_tokens=self._asked.max_tokens,
            threshold=threshold,
        )


def setting_of(arm: Arm, found: Found) -> Setting:
    """Return a resolved arm of the search as a finalist."""
    assert isinstance(arm.temperature, float)
    return Setting(
        name=arm.name, temperature=arm.temperature, steering=arm.steering, tuning_score=found.scores.get(arm.name)
    )


def tokens_in(folder: Path) -> tuple[int, float]:
    """Return the generated tokens of a run, and their mean per sample, at least 1."""
    lengths = [sample.completion_tokens or 0 for sample in read_samples(folder / SAMPLES)]
    return sum(lengths), max(1.0, float(np.mean(lengths)) if lengths else 1.0)
