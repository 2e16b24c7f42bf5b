"""The problems of a run that exists: in its order, unchanged, and with more of them at the end where it is extended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from steerdec.problems.sets import ProblemSet
from steerdec.records.run import NAME as RUN_JSON
from steerdec.records.run import ProblemsUsed, SettingsError, read_settings


def in_order_of_run(folder: Path, problem_set: ProblemSet, *, extend: bool) -> ProblemSet:
    """Return the set with the problems of the run in `folder` first, in its order, and further ones after them.

    A set that has further problems must have all of the run's, unchanged. Where `extend` is false, one without some of
    them is returned as it is, for the settings to be compared.

    Raises:
        SettingsError: run.json cannot be read, or a problem of the run is missing or has changed.
    """
    if not (folder / RUN_JSON).exists():
        return problem_set
    used = read_settings(folder / RUN_JSON).problems
    by_id = {problem.id: problem for problem in problem_set.problems}
    if missing := [name for name in used.ids if name not in by_id]:
        if extend:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise SettingsError(
                f'--problems: {problem_set.name} lacks problem "{missing[0]}"{more} of the run in {folder}; --extend '
                "takes a set that contains all of them"
            )
        return problem_set
    own = replace(problem_set, problems=tuple(by_id[name] for name in used.ids))
    further = tuple(problem for problem in problem_set.problems if problem.id not in set(used.ids))
    if further and own.sha256 != used.sha256:
        raise SettingsError(f"--problems: {_changed(used, own)} than in the run in {folder}; --extend adds only others")
    return replace(problem_set, problems=own.problems + further)


def _changed(used: ProblemsUsed, own: ProblemSet) -> str:
    known = zip(used.hashes or (), own.problems, strict=False)
    names = [problem.id for digest, problem in known if digest != problem.digest]
    if not names:  # an older run.json, which has the hash of the set only
        return f"{own.name} has other texts, answers or groups of the same problems"
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f'{own.name} has another text, answer or group of problem "{names[0]}"{more}'
