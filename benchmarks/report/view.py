"""What the report shows, section by section, as objects for the templates.

A section that cannot be shown is a `Missing` with a reason, which the templates print in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerdec.pages import charts, forks, provenance, wording
from steerdec.records.arms import Arm
from steerdec.records.run import Settings
from steerdec.records.summary import ArmSummary, ClaimSummary, Comparison, Contrast, Summary

from . import doses, plots, sentences
from .run_folder import Cell, RunFolder

# Simulated for paired designs of this kind; printed in every report to put "undecided" into proportion.
_SIMULATED_POWER = (
    "In simulation, 60 problems with 16, 32 and 64 samples show a difference of 4.5, 3.2 and 2.2 points with 80% power "
    "if it is the same on every problem, and of 5.8, 4.9 and 4.3 points if it varies. One or two points on 60 problems "
    "cannot be settled."
)
_POINTS = ("avg@k", "pass@k", "maj@k", "truncation")  # metrics that are fractions
_CLAIMED = {"greater": "> 0", "less": "< 0", None: ""}


@dataclass(frozen=True)
class Missing:
    """Why a section is left out."""

    reason: str


@dataclass(frozen=True)
class ClaimRow:
    """One row of the first table: the claim, the verdict, and their population."""

    claim: ClaimSummary
    label: str  # the difference, such as "F-down − B"; "" for a claim that combines two others
    claimed: str  # "< 0" or "> 0"
    difference: str
    interval: str
    statement: str
    conclusion: str


@dataclass(frozen=True)
class Delivered:
    """The temperatures that an arm set, and the entropy of the distributions its tokens were drawn from."""

    arm: Arm
    dose: doses.Dose | None
    summary: ArmSummary


@dataclass(frozen=True)
class Replayed:
    """An arm that intervenes where a mask points, beside the plain arm after the same prefixes."""

    arm: str
    control: str
    lens: str
    mask: str
    positions: str  # which tokens of the mask: "fork", "other", "any"
    difference: Comparison  # from the control, over problems like these
    contrasts: Sequence[Contrast]  # minus the effect of the same steering after the prefixes of a placebo


def amount(value: float | None, metric: str) -> str:
    """Return a difference in the unit of its metric: points for scores, tokens for lengths."""
    return wording.points(value) if metric in _POINTS else wording.signed(value, 0)


def amount_interval(ci95: tuple[float, float] | None, metric: str) -> str:
    """Return the interval of a difference in the unit of its metric."""
    return wording.points_interval(ci95) if metric in _POINTS else wording.interval(ci95, 1, 0, signs=True)


def unit(metric: str) -> str:
    return "points" if metric in _POINTS else "tokens"


def claim_rows(summary: Summary, subject: str) -> list[ClaimRow]:
    """Return the claims as rows of a table, in the order they were declared."""
    return [_claim_row(claim, subject) for claim in summary.claims]


def _claim_row(claim: ClaimSummary, subject: str) -> ClaimRow:
    statement, conclusion = sentences.claim_parts(claim, subject)
    known = claim.arm is not None and claim.baseline is not None
    return ClaimRow(
        claim=claim,
        label=plots.label(str(claim.arm), str(claim.baseline)) if known else "",
        claimed=_CLAIMED[claim.direction],
        difference=amount(claim.diff, claim.metric) if known else "",
        interval=amount_interval(claim.ci95, claim.metric) if known else "",
        statement=statement,
        conclusion=conclusion,
    )


def page(folder: RunFolder) -> dict[str, Any]:
    """Return everything the report's templates read."""
    settings, summary = folder.settings, folder.summary
    curves = doses.dose_curves(settings, summary)
    return {
        "run": settings,
        "summary": summary,
        "model": folder.model,
        "set_name": folder.problem_set,
        "instrument": sentences.instrument_sentence(summary),
        "interim": sentences.interim_sentence(summary),
        "cautions": sentences.cautions(summary),
        "dropped": sentences.dropped_sentence(summary),
        "claims": claim_rows(summary, f"{folder.model} and {folder.problem_set}"),
        "forest": plots.forest_of_run(summary),
        "bounded": any(row.bounds for row in summary.comparisons),
        "accuracy_axis": _accuracy_axis(summary),
        "other_metrics": _other_metrics(summary),
        "replayed": _replayed(settings, summary),
        "trees": [sentences.branching_sentence(row) for row in summary.branching],
        "branch_gains": [(plots.label(row.arm, row.against), row) for row in summary.branch_contrasts],
        "delivered": _delivered(settings, summary),
        "measured": _measured(summary),
        "dose": plots.dose_chart(curves) if curves else Missing(_no_doses()),
        "paper_labels": doses.PAPER_LABELS_PERCENT,
        "paper_temperatures": doses.PAPER_TEMPERATURES,
        "problem_ids": list(dict.fromkeys(problem for problem, _ in folder.cells)),
        "cells": folder.cells,
        "empty_cell": Cell(),
        "strata": _strata(summary),
        "mediators": {plots.label(row.arm, row.baseline): row for row in summary.mediators},
        "heterogeneity": [(plots.label(row.arm, row.baseline), row) for row in summary.heterogeneity],
        "simulated_power": _SIMULATED_POWER,
        "provenance": provenance.rows(settings.model_dump(mode="json", exclude={"arms"})),
        **_token_sections(folder),
    }


def _accuracy_axis(summary: Summary) -> charts.Axis:
    values = [v for arm in summary.arms.values() for v in (arm.avg_at_k, *(arm.avg_at_k_ci95 or ())) if v is not None]
    return charts.axis(values or [0.0, 1.0], bins=4)


def _no_doses() -> str:
    return (
        f"no group of tokens has {doses.MIN_DOSES} or more temperatures in this run; "
        "the arm set `figure3` has the paper's grid"
    )


@dataclass(frozen=True)
class Outcome:
    """A difference in a metric other than avg@k, in the unit of that metric."""

    comparison: Comparison
    difference: str
    interval: str


def _other_metrics(summary: Summary) -> tuple[list[tuple[str, str]], dict[str, list[Outcome | None]]]:
    """Return (metric, unit) of every column, and the cells of every difference; over problems like these."""
    rows = [row for row in summary.other_metrics if row.scope == "problems like these"]
    metrics = list(dict.fromkeys(row.metric for row in rows))
    table: dict[str, list[Outcome | None]] = {}
    for row in rows:
        cells = table.setdefault(plots.label(row.arm, row.baseline), [None] * len(metrics))
        cells[metrics.index(row.metric)] = Outcome(
            row, amount(row.diff, row.metric), amount_interval(row.ci95, row.metric)
        )
    return [(metric, unit(metric)) for metric in metrics], table


def _delivered(settings: Settings, summary: Summary) -> list[Delivered]:
    by_arm = doses.doses(settings)
    return [
        Delivered(arm, by_arm.get(arm.name), summary.arms[arm.name])
        for arm in settings.arms.arms
        if arm.name in summary.arms
    ]


@dataclass(frozen=True)
class Measured:
    """Which of the optional columns have a number in at least one row."""

    shift: bool
    dose: bool
    texts: bool
    applied: bool
    per_correct: bool
    boxes: bool  # some answers are boxed


def _measured(summary: Summary) -> Measured:
    arms = summary.arms.values()
    return Measured(
        shift=any(arm.entropy_shift_nats is not None for arm in arms),
        dose=any(arm.kl_nats is not None for arm in arms),
        texts=any(arm.texts_changed is not None for arm in arms),
        applied=any(arm.applied is not None for arm in arms),
        per_correct=any(arm.tokens_per_correct is not None for arm in arms),
        boxes=any(arm.unboxed_rate is not None and arm.unboxed_rate < 1.0 for arm in arms),
    )


def _replayed(settings: Settings, summary: Summary) -> list[Replayed]:
    controls = {arm.replay: arm.name for arm in settings.arms.arms if arm.role == "replay"}
    pairs = plots.by_pair(summary)
    rows = []
    for arm in settings.arms.arms:
        if arm.replay is None or arm.role == "replay":
            continue
        replay, control = settings.arms.replays[arm.replay], controls[arm.replay]
        rows.append(
            Replayed(
                arm=arm.name,
                control=control,
                lens=str((replay.about or {}).get("lens")),
                mask=replay.mask,
                positions=replay.positions,
                difference=pairs[arm.name, control]["problems like these"],
                contrasts=[row for row in summary.contrasts if row.arm == arm.name],
            )
        )
    return rows


def _token_sections(folder: RunFolder) -> dict[str, Any]:
    """Return the histogram, the fork tokens and the pair of traces, or why each is missing."""
    threshold = folder.settings.threshold_nats
    with_data = list(dict.fromkeys(trace.arm for trace in folder.traces))
    reference = doses.reference_arm(folder.settings, with_data)
    if reference is None:
        lost = f" ({folder.dropped_traces} had lists of unequal length)" if folder.dropped_traces else ""
        missing = Missing(f"no sample of this run kept its per-token lists{lost}")
        return {"token_arm": None, "histogram": missing, "fork_tokens": missing, "pair": missing}
    own = [trace for trace in folder.traces if trace.arm == reference]
    data = forks.histogram(own, threshold)
    no_text = Missing("the samples with per-token lists kept no token text")
    texts = any(trace.token_text for trace in own)
    pair = forks.pair_of_traces(folder.traces, reference)
    frequent = forks.frequent_fork_tokens(own, threshold)
    tokens = frequent or (Missing("no token exceeded the threshold") if texts else no_text)
    return {
        "token_arm": reference,
        "token_samples": len(own),
        "histogram_data": data,
        "histogram": charts.histogram_chart(data, threshold) if data else Missing("no entropy of the traces is finite"),
        "fork_tokens": tokens,
        "pair": pair or no_text,
    }


def _strata(summary: Summary) -> Mapping[str, Mapping[str, Any]]:
    """Return {difference: {stratum: row}}."""
    table: dict[str, dict[str, Any]] = {}
    for row in summary.strata:
        table.setdefault(plots.label(row.arm, row.baseline), {})[row.stratum] = row
    return table
