"""What the report shows, section by section, as plain values for the templates.

A section that cannot be shown is a reason in words: the templates print it where the section would stand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerdec.pages import charts, forks, wording

from . import doses, plots
from .run_folder import Cell, RunFolder

_HIDDEN_PROVENANCE = ("arms",)

# Simulated for paired designs of this kind; stated in every report, because a reader of "undecided" has to know.
_SIMULATED_POWER = (
    "In simulation, 60 problems with 16, 32 and 64 samples show a difference of 4.5, 3.2 and 2.2 points with 80% power "
    "if it is the same on every problem, and of 5.8, 4.9 and 4.3 points if it varies. One or two points on 60 problems "
    "cannot be settled."
)


@dataclass(frozen=True)
class Missing:
    """Why a section is left out."""

    reason: str


@dataclass(frozen=True)
class Delivered:
    """What an arm asked for and what it got."""

    arm: str
    role: str
    dose: doses.Dose | None
    fork_rate: float | None
    mean_entropy_nats: float | None
    sampled_entropy_nats: float | None  # of the distributions drawn from
    shift_nats: float | None  # of that, against the reference arm


@dataclass(frozen=True)
class Replayed:
    """An arm that intervenes where a mask points, beside the plain arm after the same prefixes."""

    arm: str
    control: str
    lens: str
    mask: str
    positions: str  # which of the mask's: "fork", "other", "any"
    difference: Mapping[str, Any]  # to the control, over problems like these
    contrasts: Sequence[Mapping[str, Any]]  # less what the same steering does after the prefixes of a placebo


def model_name(run: Mapping[str, Any]) -> str:
    """The last part of a path or hub name; the whole name stands in the provenance."""
    return str(run["model"]).rstrip("/").rsplit("/", 1)[-1]


def set_name(run: Mapping[str, Any]) -> str:
    return str(run["problems"]["name"]).rstrip("/").rsplit("/", 1)[-1]


def page(folder: RunFolder) -> dict[str, Any]:
    """Everything the report's templates read."""
    run, summary = folder.run, folder.summary
    delta = summary.get("delta")
    subject = f"{model_name(run)} and {set_name(run)}"
    curves = doses.dose_curves(run, summary)
    return {
        "run": run,
        "summary": summary,
        "model": model_name(run),
        "set_name": set_name(run),
        "instrument": wording.instrument_sentence(summary),
        "claims": [(claim, *wording.claim_parts(claim, subject)) for claim in summary["claims"]],
        "delta": delta,
        "forest": plots.forest(summary, delta),
        "cut": wording.cut_sentence(summary),
        "accuracy_axis": _accuracy_axis(summary),
        "replayed": _replayed(run, summary),
        "delivered": _delivered(run, summary),
        "reference": _telemetry_reference(run, summary),
        "dose": plots.dose_chart(curves) if curves else Missing(_no_doses()),
        "paper_labels": doses.PAPER_LABELS_PERCENT,
        "paper_temperatures": doses.PAPER_TEMPERATURES,
        "problem_ids": list(dict.fromkeys(problem for problem, _ in folder.cells)),
        "cells": folder.cells,
        "empty_cell": Cell(),
        "missing_samples": sum(arm.get("missing") or 0 for arm in summary["arms"].values()),
        "strata": _by_pair(summary.get("strata") or [], "stratum"),
        "mediators": {f"{row['arm']} − {row['baseline']}": row for row in summary.get("mediators") or []},
        "trends": summary.get("trends") or [],
        "simulated_power": _SIMULATED_POWER,
        "sent_arms": doses.arm_list(run),
        "provenance": _provenance(run),
        **_token_sections(folder),
    }


def _accuracy_axis(summary: Mapping[str, Any]) -> charts.Axis:
    arms = summary["arms"].values()
    values = [v for arm in arms for v in (arm["avg_at_k"], *(arm.get("avg_at_k_ci95") or ())) if v is not None]
    return charts.axis(values or [0.0, 1.0], bins=4)


def _no_doses() -> str:
    return (
        f"no group of tokens was given {doses.MIN_DOSES} or more temperatures in this run; "
        "the arm set `figure3` holds the paper's grid"
    )


def _telemetry_reference(run: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    told = [name for name, arm in summary["arms"].items() if arm["mean_entropy_nats"] is not None]
    name = doses.reference_arm(run, told)
    asked = doses.doses(run).get(name or "")
    return name if asked and asked.undisturbed else None


def _delivered(run: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Delivered]:
    asked = doses.doses(run)
    reference = _telemetry_reference(run, summary)
    base = summary["arms"][reference].get("mean_sampled_entropy_nats") if reference else None
    rows = []
    for name, arm in summary["arms"].items():
        dose, sampled = asked.get(name), arm.get("mean_sampled_entropy_nats")  # runs of old have none
        # After a prefix there are other tokens than in the whole responses of the reference.
        known = sampled is not None and base is not None and not (dose and dose.replay)
        shift = sampled - base if known else None
        role = dose.role if dose else ""
        rows.append(Delivered(name, role, dose, arm["fork_rate"], arm["mean_entropy_nats"], sampled, shift))
    return rows


def _replayed(run: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Replayed]:
    replays = run["arms"].get("replays") or {}
    controls = {arm["replay"]: arm["name"] for arm in doses.arm_list(run) if arm["role"] == "replay"}
    last = {(row["arm"], row["baseline"]): row for row in summary["comparisons"]}  # the wider scope stands last
    rows = []
    for arm in doses.arm_list(run):
        replay, control = replays.get(arm.get("replay")), controls.get(arm.get("replay"))
        if replay is None or control is None or arm["role"] == "replay":
            continue
        about = replay.get("about") or {}
        contrasts = [row for row in summary.get("contrasts") or [] if row["arm"] == arm["name"]]
        rows.append(
            Replayed(
                arm["name"],
                control,
                str(about.get("lens")),
                replay["mask"],
                replay["positions"],
                last[arm["name"], control],
                contrasts,
            )
        )
    return rows


def _token_sections(folder: RunFolder) -> dict[str, Any]:
    """Histogram, fork tokens and the pair of traces, or why each is missing."""
    threshold = folder.run["threshold_nats"]
    with_data = list(dict.fromkeys(trace.arm for trace in folder.traces))
    reference = doses.reference_arm(folder.run, with_data)
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


def _by_pair(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Rows of the summary as {`arm − baseline`: {row[key]: row}}."""
    table: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        table.setdefault(f"{row['arm']} − {row['baseline']}", {})[str(row[key])] = row
    return table


def _provenance(run: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """`run.json` as dotted names and plain values; long lists by their length. The arms have a table of their own."""
    rows: list[tuple[str, Any]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(f"{name}.{key}" if name else str(key), inner)
        elif isinstance(value, list) and len(value) > 8:
            rows.append((name, f"{len(value)} entries"))
        elif isinstance(value, list):
            rows.append((name, ", ".join(str(item) for item in value) or wording.MISSING))
        else:
            plain = value if isinstance(value, str) else json.dumps(value)
            rows.append((name, wording.MISSING if value is None else plain))

    walk("", {key: value for key, value in run.items() if key not in _HIDDEN_PROVENANCE})
    return rows
