"""The folder of a run: how it is started, resumed or extended, and which samples it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from steerdec.common.files import FileError
from steerdec.common.progress import announce
from steerdec.records.run import NAME as RUN_JSON
from steerdec.records.run import Look, Settings, SettingsError, changes, read_settings
from steerdec.records.samples import NAME as SAMPLES
from steerdec.records.samples import Sample, read_samples, repair_samples

from ..design.plan import SamplingPlan


def open_folder(folder: Path, settings: Settings, *, extend: bool = False) -> Settings:
    """Write `run.json`, or check that the run in the folder may be resumed, or extended, under `settings`.

    The caller has to lock the folder. Returns the settings in force.

    Raises:
        SettingsError: the folder holds something else, or a run under other settings.
    """
    if (folder / RUN_JSON).exists():
        old = read_settings(folder / RUN_JSON)
        if extend and not (differences := changes(old, settings, extension=True)):
            return _extended(folder, old, settings)
        if differences := changes(old, settings, extension=extend):
            if not extend and not changes(old, settings, extension=True):
                raise SettingsError(
                    f"{folder} holds a smaller run: {'; '.join(differences[:3])}; --extend continues it"
                )
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise SettingsError(
                f"{folder} holds a run under other settings: {'; '.join(differences[:3])}{more}; "
                "give the same settings or another --out"
            )
        if old.planned_looks != settings.planned_looks:
            announce(f"looks stay as planned before: after {_numbers(old.planned_looks)} samples per problem and arm")
        return old
    if (folder / SAMPLES).exists():
        raise SettingsError(f"{folder} holds {SAMPLES} but no {RUN_JSON}; choose another --out")
    settings.write(folder)
    return settings


def done_samples(folder: Path, plan: SamplingPlan) -> bytearray:
    """Repair the folder's `samples.jsonl`; return one byte per sample of the plan, 1 where the file has it.

    Raises:
        JournalError: the file cannot be read or repaired.
        FileError: it holds a sample twice, or one that is not of this plan.
    """
    path, done = folder / SAMPLES, bytearray(len(plan))

    def keep(sample: Sample) -> None:
        try:
            index = plan.index(sample.problem_id, sample.arm, sample.sample)
        except KeyError:
            raise FileError(f"{path} holds a sample that is not of this run: {sample.where}") from None
        if done[index]:
            raise FileError(f"{path} holds a sample twice: {sample.where}")
        done[index] = 1

    repair_samples(path, keep)
    return done


def _extended(folder: Path, old: Settings, new: Settings) -> Settings:
    """Write and return the settings of an extended run: past looks stay, the coming ones are planned anew."""
    had, has = old.problems.n, new.problems.n
    if old.samples == new.samples and old.arms == new.arms and had == has:
        return old
    made = [look for look in old.planned_looks if _made(folder, old, look)]
    if has > had:
        made = [look.model_copy(update={"problems": look.problems or had}) for look in made]
    to_come = [look for look in new.planned_looks if not made or _later(look, made[-1], has)]
    ended = any(look.at_the_end for look in made)
    if ended:  # no error is left to spend, so nothing can be decided before the new end
        to_come = to_come[-1:]
    extended = new.model_copy(update={"looks": (*made, *to_come), "created": old.created})
    extended.write(folder)
    arms = f"{len(old.arms.arms)} -> {len(new.arms.arms)} arms"
    announce(f"the run is extended: {had} -> {has} problems, {old.samples} -> {new.samples} samples, {arms}")
    if ended and to_come:
        announce("its last look was made, so verdicts stay as they are; more samples only narrow the intervals")
    return extended


def _later(look: Look, before: Look, n_problems: int) -> bool:
    """Return whether a look at all `n_problems` has all samples of an earlier one, and more."""
    had = before.problems or n_problems
    return look.samples >= before.samples and look.samples * n_problems > before.samples * had


def _numbers(looks: Iterable[Look]) -> str:
    return ", ".join(str(look.samples) for look in looks)


def _made(folder: Path, settings: Settings, look: Look) -> bool:
    """Return whether samples beyond a look exist, or all of its own: then its decisions may have been seen."""
    problems = set(settings.problems.ids[: look.problems])
    have: Counter[str] = Counter()
    for sample in read_samples(folder / SAMPLES):
        have[sample.arm] += sample.sample < look.samples and sample.problem_id in problems
    return max(have.values(), default=0) >= look.samples * len(problems)
