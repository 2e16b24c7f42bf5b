"""Compare two runs of the same experiment, usually of two models: what differs between the runs and their effects.

Everything is computed from the samples, never from an older summary. Problems are paired: the first run's effect is
subtracted from the second's on each problem that both have, so that a problem's difficulty drops out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import write_atomically
from steerdec.common.multiplicity import holm
from steerdec.pages import html, wording
from steerdec.records.folder import load_run
from steerdec.records.run import Settings
from steerdec.records.summary import Comparison, Summary

from ..stats import comparisons
from ..stats.estimators import Counts, Estimate, mean_over_problems
from ..verdicts.summary import summarize
from . import plots
from .run_folder import Cell, RunFolder, read_run

_TEMPLATE = Path(__file__).parent / "templates" / "comparison.html.j2"
_POPULATION = "problems like these"


class NotComparableError(InvalidInputError):
    """Two runs cannot be compared."""


@dataclass(frozen=True)
class Response:
    """How differently two runs respond to the same steering: (arm − baseline) in the second minus that in the first."""

    label: str
    first: Comparison
    second: Comparison
    change: Estimate  # over the problems that both runs have
    p_holm: float  # over all differences that both runs have


def write_comparison(dir_a: str | Path, dir_b: str | Path, out: str | Path) -> Path:
    """Write one page with the verdicts, differences and arms of two runs, and with the test of their difference.

    Returns:
        `out`.

    Raises:
        SettingsError, JournalError, SummaryError: a file of either run is missing or malformed; one line.
        NotComparableError: the runs share no problem, or no difference.
    """
    for folder in (dir_a, dir_b):
        load_run(folder)  # says what is wrong with a run.json before anything is computed from it
    folders = tuple(read_run(folder, summarize(folder)) for folder in (dir_a, dir_b))
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html.render(_TEMPLATE, _page(*folders)))
    return path


def responses(a: RunFolder, b: RunFolder) -> list[Response]:
    """Test each difference that both runs have for a change in the second.

    Raises:
        NotComparableError: the runs share no problem, or no difference.
    """
    shared = shared_problems(a, b)
    pairs = [plots.by_pair(folder.summary) for folder in (a, b)]
    both = [pair for pair in pairs[0] if pair in pairs[1]]
    if not both:
        raise NotComparableError(f"{a.path} and {b.path} share no difference: their arms have other names")
    changes = [mean_over_problems(_effects(b, *pair, shared) - _effects(a, *pair, shared)) for pair in both]
    adjusted = holm([change.p for change in changes])
    return [
        Response(plots.label(*pair), pairs[0][pair][_POPULATION], pairs[1][pair][_POPULATION], change, p)
        for pair, change, p in zip(both, changes, adjusted, strict=True)
    ]


def shared_problems(a: RunFolder, b: RunFolder) -> list[str]:
    """Return the problems of both runs, in the order of the first. Raises NotComparableError if there are none."""
    there = set(b.settings.problems.ids)
    shared = [problem for problem in a.settings.problems.ids if problem in there]
    if not shared:
        raise NotComparableError(
            f"{a.path} ({a.settings.problems.name}) and {b.path} ({b.settings.problems.name}) share no problem, so "
            "a difference between the models could be one between the problems"
        )
    return shared


def _effects(folder: RunFolder, arm: str, baseline: str, problems: list[str]) -> np.ndarray[Any, Any]:
    """Return the effects by problem, [n_problems]; NaN where an arm has no graded sample."""
    one, other = (_counts(folder, name, problems) for name in (arm, baseline))
    return comparisons.problem_differences(one, other)


def _counts(folder: RunFolder, arm: str, problems: list[str]) -> Counts:
    cells = [folder.cells.get((problem, arm), Cell()) for problem in problems]
    return Counts(np.array([cell.correct for cell in cells]), np.array([cell.graded for cell in cells]))


def unlike(a: Settings, b: Settings) -> list[tuple[str, str, str]]:
    """Return (what, in the first, in the second) for every setting but the model that could make a difference."""
    first, second = _settings(a), _settings(b)
    shared = [what for what in first if what in second]
    return [(what, first[what], second[what]) for what in shared if first[what] != second[what]]


def _settings(run: Settings) -> dict[str, str]:
    """Return what samples depend on, by name; an arm that only one of two runs has makes no difference."""
    problems = run.problems
    return {
        "dtype": str(run.server.get("dtype")),
        "vLLM": str(run.server.get("vllm")),
        "model runner": str(run.server.get("runner")),
        "steerdec": run.steerdec,
        "batch-invariant kernels": str(run.server.get("batch_invariant")),
        "problem set": f"{problems.name} ({problems.n} problems), sha256 {problems.sha256[:12]}",
        "prompt": run.prompt,
        "thinking": str(run.thinking),
        "base temperature": f"{run.temperature:g}",
        "threshold, nats": f"{run.threshold_nats:.3f}",
        "longest answer, tokens": f"{run.max_tokens:,}",
        "samples per problem": str(run.samples),
        "seed": str(run.seed),
        **{name: str(value) for name, value in run.sampling.items()},
        **{f"arm {arm.name}": f"temperature {arm.temperature}, steering {arm.steering}" for arm in run.arms.arms},
    }


def _page(a: RunFolder, b: RunFolder) -> dict[str, Any]:
    found = responses(a, b)
    folders = (a, b)
    summaries = [folder.summary for folder in folders]
    names = [f"{folder.model} on {folder.problem_set}" for folder in folders]
    runs = ("A", "B")
    return {
        "folders": folders,
        "summaries": summaries,
        "names": names,
        "runs": runs,
        "titled": [f"{letter}: {name}" for letter, name in zip(runs, names, strict=True)],
        "unlike": unlike(a.settings, b.settings),
        "shared": len(shared_problems(a, b)),
        "responses": [(one, *_written(one)) for one in found],
        "forest": _forest(summaries, runs),
        "claims": _claims(summaries),
        "arm_names": list(dict.fromkeys(name for summary in summaries for name in summary.arms)),
        "interim": [
            bool(summary.interim or any(arm.missing for arm in summary.arms.values())) for summary in summaries
        ],
        "population": _POPULATION,
    }


def _written(one: Response) -> tuple[str, str, str]:
    interval = None if np.isnan(one.change.ci95[0]) else one.change.ci95
    value = None if np.isnan(one.change.value) else one.change.value
    return wording.points(value), wording.points_interval(interval), wording.p_value(one.p_holm)


def _forest(summaries: list[Summary], runs: tuple[str, ...]) -> plots.Forest:
    rows = [
        {plots.label(*pair): found.get(_POPULATION) for pair, found in plots.by_pair(summary).items()}
        for summary in summaries
    ]
    labels = dict.fromkeys(label for found in rows for label in found)
    deltas = {summary.delta for summary in summaries}
    joint = {label: tuple(found.get(label) for found in rows) for label in labels}
    return plots.forest(joint, runs, deltas.pop() if len(deltas) == 1 else None)


def _claims(summaries: list[Summary]) -> list[tuple[str, list[str | None]]]:
    """Return (statement, verdict in each run). One id may have two statements; those are two claims."""
    verdicts = [{(claim.id, claim.statement): claim.verdict for claim in summary.claims} for summary in summaries]
    keys = dict.fromkeys(key for found in verdicts for key in found)
    return [(key[1], [found.get(key) for found in verdicts]) for key in keys]
