"""Turn a run folder into `summary.json`: every arm, every difference in two populations, a verdict on every claim.

The names of the contract are `arms`, `comparisons`, `claims` and `instrument`; beside them are intervals, looks,
strata, trends, mediators and, under `methods`, how each number was computed. A number that cannot be computed is null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import FileError
from steerdec.records import summary as records
from steerdec.records.doses import ArmDose
from steerdec.records.summary import Summary

from ..stats.looks import PlannedLook
from ..stats.tally import SampleError, read_samples
from . import claims
from .branching import branching_rows
from .expectations import DesignError, read_design
from .run_data import RunData
from .summary_rows import (
    METHODS,
    arm_row,
    comparison_rows,
    contrast_row,
    heterogeneity_row,
    mediator_row,
    other_metric_rows,
    strata_rows,
    trend_row,
)


class SummaryError(InvalidInputError):
    """A run folder that cannot be summarized; one plain line."""


def write_summary(directory: str | Path) -> Path:
    """Summarize a run folder into its `summary.json`, replaced as a whole. Raises SummaryError."""
    try:
        return records.write_summary(summarize(directory), Path(directory))
    except FileError as e:
        raise SummaryError(str(e)) from None


def summarize(directory: str | Path) -> Summary:
    """Return the summary of a run folder, finished or not. Raises SummaryError."""
    return _summary(read_run_data(directory))


def read_run_data(directory: str | Path) -> RunData:
    """Return what a run was planned to show, and the samples it has so far.

    Raises:
        SummaryError: run.json or samples.jsonl is missing or malformed; one line that says where.
    """
    path = Path(directory)
    try:
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
        return _data(run, path)
    except FileError as e:
        raise SummaryError(str(e)) from None
    except FileNotFoundError as e:
        raise SummaryError(f"{e.filename} is missing; a summary needs run.json and samples.jsonl") from None
    except OSError as e:
        raise SummaryError(f"{e.filename} cannot be read ({e.strerror})") from None
    except KeyError as e:
        raise SummaryError(f"{path / 'run.json'} has no {e}") from None
    except (DesignError, SampleError) as e:
        raise SummaryError(f"{path}: {e}") from None
    except (ValueError, TypeError, RecursionError) as e:
        raise SummaryError(f"{path / 'run.json'} is not a run: {e}") from None


def _data(run: Mapping[str, Any], path: Path) -> RunData:
    design = read_design(run["arms"])
    problems, k = [str(name) for name in run["problems"]["ids"]], int(run["samples"])
    planned = read_looks(run.get("looks"), k, len(problems))
    groups = run["problems"].get("groups")
    (path / "samples.jsonl").stat()  # for the journal, a missing file is a run without samples
    tally = read_samples(path / "samples.jsonl", problems, design.arms)
    doses = {name: ArmDose.model_validate(dose) for name, dose in (run.get("doses") or {}).items()}
    return RunData.of(design, tally, planned, _group_numbers(groups, problems), doses)


def read_looks(value: Any, samples: int, n_problems: int) -> tuple[PlannedLook, ...]:
    """Return the planned looks of a `run.json`; without any, one at the end.

    A look is the number of samples per problem, or {"samples", "planned"} if the run was extended since: `planned` is
    then the size of the run when the look was planned. If problems were added later, it also has "problems".

    Raises:
        ValueError: a look is not possible.
    """
    if not value:
        return (PlannedLook(samples, samples),)
    planned = []
    for look in value:
        one = look if isinstance(look, Mapping) else {"samples": look, "planned": samples}
        problems = one.get("problems")
        planned.append(
            PlannedLook(int(one["samples"]), int(one["planned"]), None if problems is None else int(problems))
        )
    if any(look.problems is not None for look in planned):
        planned = [replace(look, problems=n_problems) if look.problems is None else look for look in planned]
    at = [look.samples for look in planned]
    rising = all(a.information < b.information and a.samples <= b.samples for a, b in pairwise(planned))
    if not rising or at[0] < 1 or any(look.samples > look.planned for look in planned):
        raise ValueError(f"looks are at {at} samples; rising numbers from 1 to the samples planned are allowed")
    if any(look.problems is not None and not 0 < look.problems <= n_problems for look in planned):
        raise ValueError(f"a look is at more or fewer problems than the run has, which are {n_problems}")
    return tuple(planned)


def _group_numbers(groups: Any, problems: list[str]) -> np.ndarray | None:
    """Return the group of each problem, [n_problems]; a problem without a group is one of its own."""
    if not groups:
        return None
    names = [f"group {groups[name]}" if groups.get(name) is not None else f"problem {name}" for name in problems]
    numbers: np.ndarray = np.unique(names, return_inverse=True)[1].astype(np.int64)
    return numbers


def _summary(data: RunData) -> Summary:
    design, tally = data.design, data.tally
    counts = {name: tally.counts(name) for name in design.arms}
    instrument = claims.judge_instruments(data)
    judged = claims.judge(data, instrument)
    rows = {name: arm_row(data, name, counts[name], name in judged.arms_needed) for name in design.arms}
    missing = sum(row.missing for row in rows.values())
    branching, branch_contrasts = branching_rows(data)
    return Summary(
        arms=rows,
        comparisons=comparison_rows(data, judged.claimed),
        claims=judged.rows,
        instrument=instrument.verdict,
        instrument_reason=instrument.reason,
        delta=design.delta,
        contrasts=tuple(contrast_row(contrast, counts) for contrast in design.contrasts),
        trends=tuple(trend_row(design, family, counts) for family in design.families),
        strata=tuple(row for pair in design.pairs for row in strata_rows(tally, *pair)),
        mediators=tuple(mediator_row(tally, counts, *pair) for pair in design.pairs),
        repeated_lines=tally.repeated,
        methods=METHODS,
        interim=missing > 0,
        interim_reason=claims.interim_sentence(data, missing),
        warnings=judged.warnings,
        instrument_bias=instrument.bias,
        other_metrics=other_metric_rows(data, judged.claimed),
        heterogeneity=tuple(heterogeneity_row(data, *pair) for pair in design.pairs),
        branching=branching,
        branch_contrasts=branch_contrasts,
        looks=judged.looks,
        arms_needed=judged.arms_needed if missing else (),
    )
