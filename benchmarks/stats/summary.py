"""A run folder -> `summary.json`: every arm, every difference in two scopes, a verdict on every claim.

The names of the contract are `arms`, `comparisons`, `claims` and `instrument`; beside them stand intervals, strata,
trends, mediators and, under `methods`, how each number was made. A number that cannot be had is null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import FileError
from steerdec.common.multiplicity import holm
from steerdec.records import summary as records
from steerdec.records.summary import ClaimSummary, Comparison, Summary

from . import comparisons, verdicts
from .comparisons import PROBLEMS_LIKE_THESE, SCOPES, THESE_PROBLEMS
from .estimators import Counts, Estimate
from .expectations import Design, DesignError, read_design
from .summary_rows import METHODS, arm_row, contrast_row, difference_of, mediator_row, strata_rows, trend_row
from .tally import SampleError, Tally, read_samples


class SummaryError(InvalidInputError):
    """A run folder that cannot be summarised; one plain line."""


def write_summary(directory: str | Path) -> Path:
    """Summarise a run folder into its `summary.json`, replaced as a whole. Raises SummaryError."""
    try:
        return records.write_summary(summarise(directory), Path(directory))
    except FileError as e:
        raise SummaryError(str(e)) from None


def summarise(directory: str | Path) -> Summary:
    """The summary of a run folder, finished or not.

    Raises:
        SummaryError: run.json or samples.jsonl is missing or not what it should be; one line that says where.
    """
    path = Path(directory)
    try:
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
        design = read_design(run["arms"])
        problems, k = [str(name) for name in run["problems"]["ids"]], int(run["samples"])
        (path / "samples.jsonl").stat()  # to the journal, no file is a run without samples
        tally = read_samples(path / "samples.jsonl", problems, design.arms)
    except FileError as e:
        raise SummaryError(str(e)) from None
    except FileNotFoundError as e:
        raise SummaryError(f"{e.filename} is missing; a summary needs run.json and samples.jsonl") from None
    except KeyError as e:
        raise SummaryError(f"{path / 'run.json'} has no {e}") from None
    except (DesignError, SampleError) as e:
        raise SummaryError(f"{path}: {e}") from None
    except (OSError, ValueError, TypeError) as e:
        raise SummaryError(f"{path / 'run.json'} is no run: {e}") from None
    return _summary(design, tally, k)


def _summary(design: Design, tally: Tally, k: int) -> Summary:
    counts = {name: tally.counts(name) for name in design.arms}
    rows = _comparisons(design, counts)
    instrument = _instrument(design, tally, counts)
    return Summary(
        arms={name: arm_row(tally, name, counts[name], k * len(tally.problems)) for name in design.arms},
        comparisons=tuple(rows),
        claims=tuple(_claims(design, counts, rows, instrument)),
        instrument=instrument.verdict,
        instrument_reason=instrument.reason,
        delta=design.delta,
        contrasts=tuple(contrast_row(contrast, counts) for contrast in design.contrasts),
        trends=tuple(trend_row(design, family, counts) for family in design.families),
        strata=tuple(row for pair in design.pairs for row in strata_rows(tally, *pair)),
        mediators=tuple(mediator_row(tally, counts, *pair) for pair in design.pairs),
        repeated_lines=tally.repeated,
        methods=METHODS,
    )


def _comparisons(design: Design, counts: Mapping[str, Counts]) -> list[Comparison]:
    claimed = list(dict.fromkeys((claim.arm, claim.against) for claim in design.claims))
    estimates = {(pair, scope): _difference(counts, pair, scope) for pair in design.pairs for scope in SCOPES}
    adjusted: dict[tuple[tuple[str, str], comparisons.Scope], float] = {}
    for scope in SCOPES:
        p_holm = holm([estimates[pair, scope].p for pair in claimed])
        adjusted |= {(pair, scope): p for pair, p in zip(claimed, p_holm, strict=True)}
    return [
        Comparison(
            arm=pair[0],
            baseline=pair[1],
            scope=scope,
            **vars(difference_of(estimate)),
            p_holm=adjusted.get((pair, scope)),
            p_equivalence=comparisons.equivalence_p(estimate, design.delta),
            mde=comparisons.minimum_detectable_effect(estimate.se, estimate.df),
        )
        for (pair, scope), estimate in estimates.items()
    ]


def _difference(counts: Mapping[str, Counts], pair: tuple[str, str], scope: comparisons.Scope) -> Estimate:
    return comparisons.difference(counts[pair[0]], counts[pair[1]], scope)


def _claims(
    design: Design, counts: Mapping[str, Counts], rows: list[Comparison], instrument: verdicts.Instrument
) -> list[ClaimSummary]:
    p_holm = {(row.arm, row.baseline, row.scope): np.nan if row.p_holm is None else row.p_holm for row in rows}
    rulings: dict[str, dict[str, verdicts.Ruling]] = {scope: {} for scope in SCOPES}
    for scope in SCOPES:
        for claim in design.claims:
            estimate = _difference(counts, (claim.arm, claim.against), scope)
            p = p_holm[claim.arm, claim.against, scope]
            rulings[scope][claim.id] = verdicts.judge(claim, estimate, p, design.delta)
        for effect, place in design.combined:
            borrowed_from = effect.arm if effect.arm != place.arm else ""
            pair = verdicts.place_or_dose(
                rulings[scope][effect.id], rulings[scope][place.id], place.against, borrowed_from
            )
            rulings[scope] |= {ruling.id: ruling for ruling in pair}
        if instrument.verdict == "invalid":
            rulings[scope] = {name: verdicts.voided(ruling) for name, ruling in rulings[scope].items()}
    return [
        ClaimSummary(
            **vars(ruling),
            scope=PROBLEMS_LIKE_THESE,
            verdict_these_problems=rulings[THESE_PROBLEMS][name].verdict,
            **_difference_claimed(design, rows, name),
        )
        for name, ruling in rulings[PROBLEMS_LIKE_THESE].items()
    ]


def _difference_claimed(design: Design, rows: list[Comparison], claim_id: str) -> dict[str, Any]:
    """Return the fields of a claim's own difference; none for a claim that combines two others."""
    for claim in design.claims:
        for row in rows:
            if claim.id == claim_id and (row.arm, row.baseline, row.scope) == (
                claim.arm,
                claim.against,
                PROBLEMS_LIKE_THESE,
            ):
                ends = {"arm": claim.arm, "baseline": claim.against, "direction": claim.direction}
                return {**ends, "diff": row.diff, "ci95": row.ci95, "p_adjusted": row.p_holm}
    return {}


def _instrument(design: Design, tally: Tally, counts: Mapping[str, Counts]) -> verdicts.Instrument:
    """Of several A/A arms, the most doubtful verdict."""
    if not design.identities:
        return verdicts.Instrument("unchecked", "the arm set has no A/A arm (role identity)")
    judged = {name: _judge_identity(design, tally, counts, name) for name in design.identities}
    reasons = [one.reason for one in judged.values()]
    if len(judged) > 1 or design.controls[design.identities[0]] != design.baseline:
        reasons = [
            f"{name}, with {design.controls[name]} as its baseline: {one.reason}" for name, one in judged.items()
        ]
    verdict = max((one.verdict for one in judged.values()), key=("valid", "unchecked", "invalid").index)
    return verdicts.Instrument(verdict, "; ".join(reasons))


def _judge_identity(design: Design, tally: Tally, counts: Mapping[str, Counts], name: str) -> verdicts.Instrument:
    # An arm that repeats the baseline with other seeds shares no seed with it, and so adds no pair.
    repeats = [tally.differing(name, design.baseline) for name in design.repeats]
    nothing = np.zeros(len(tally.problems), dtype=np.int64)
    floor = Counts(sum((r.correct for r in repeats), nothing), sum((r.graded for r in repeats), nothing))
    control = design.controls[name]
    accuracy = _difference(counts, (name, control), THESE_PROBLEMS)
    return verdicts.judge_instrument(tally.differing(name, control), floor, accuracy)
