"""A run folder -> `summary.json`: every arm, every difference in two scopes, a verdict on every claim.

The names of the contract are `arms`, `comparisons`, `claims` and `instrument`; beside them stand intervals, strata,
trends, mediators and, under `methods`, how each number was made. A number that cannot be had is null.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from steerdec.common.journal import JournalError
from steerdec.common.multiplicity import holm

from . import comparisons, verdicts
from .comparisons import PROBLEMS_LIKE_THESE, SCOPES, THESE_PROBLEMS
from .estimators import Counts, Estimate
from .expectations import Design, DesignError, read_design
from .summary_rows import METHODS, arm_row, contrast_row, estimate_fields, mediator_row, strata_rows, trend_row
from .tally import SampleError, Tally, read_samples


class SummaryError(ValueError):
    """A run folder that cannot be summarised; one plain line."""


def write_summary(directory: str | Path) -> Path:
    """Summarise a run folder into its `summary.json`, replaced as a whole. Raises SummaryError."""
    target = Path(directory) / "summary.json"
    part = target.with_suffix(".json.part")
    part.write_text(json.dumps(summarise(directory), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return part.replace(target)


def summarise(directory: str | Path) -> dict[str, Any]:
    """The summary of a run folder, finished or not, as it goes into JSON.

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
    except JournalError as e:
        raise SummaryError(str(e)) from None
    except FileNotFoundError as e:
        raise SummaryError(f"{e.filename} is missing; a summary needs run.json and samples.jsonl") from None
    except KeyError as e:
        raise SummaryError(f"{path / 'run.json'} has no {e}") from None
    except (DesignError, SampleError) as e:
        raise SummaryError(f"{path}: {e}") from None
    except (OSError, ValueError, TypeError) as e:
        raise SummaryError(f"{path / 'run.json'} is no run: {e}") from None
    summary: dict[str, Any] = _plain(_summary(design, tally, k, str(run.get("seed"))))
    return summary


def _summary(design: Design, tally: Tally, k: int, seed: str) -> dict[str, Any]:
    counts = {name: tally.counts(name) for name in design.arms}
    rows = _comparisons(design, counts, seed)
    instrument = _instrument(design, tally, counts)
    return {
        "arms": {name: arm_row(tally, name, counts[name], k * len(tally.problems)) for name in design.arms},
        "comparisons": rows,
        "claims": _claims(design, counts, rows, instrument),
        "instrument": instrument.verdict,
        "instrument_reason": instrument.reason,
        "delta": design.delta,
        "contrasts": [contrast_row(contrast, counts) for contrast in design.contrasts],
        "trends": [trend_row(design, family, counts) for family in design.families],
        "strata": [row for pair in design.pairs for row in strata_rows(tally, *pair)],
        "mediators": [mediator_row(tally, counts, *pair) for pair in design.pairs],
        "repeated_lines": tally.repeated,
        "methods": METHODS,
    }


def _comparisons(design: Design, counts: Mapping[str, Counts], seed: str) -> list[dict[str, Any]]:
    claimed = list(dict.fromkeys((claim.arm, claim.against) for claim in design.claims))
    estimates = {(pair, scope): _difference(counts, pair, scope) for pair in design.pairs for scope in SCOPES}
    adjusted: dict[Any, float] = {}
    for scope in SCOPES:
        p_holm = holm([estimates[pair, scope].p for pair in claimed])
        adjusted |= {(pair, scope): p for pair, p in zip(claimed, p_holm, strict=True)}
    rows = []
    for (pair, scope), estimate in estimates.items():
        row = {
            "arm": pair[0],
            "baseline": pair[1],
            "scope": scope,
            **estimate_fields(estimate),
            "p_holm": adjusted.get((pair, scope), np.nan),
            "p_equivalence": comparisons.equivalence_p(estimate, design.delta),
            "mde": comparisons.minimum_detectable_effect(estimate.se, estimate.df),
        }
        if scope == PROBLEMS_LIKE_THESE:
            differences = comparisons.problem_differences(counts[pair[0]], counts[pair[1]])
            row["p_sign_flip"] = comparisons.sign_flip_p(differences, _rng(seed, *pair))
        rows.append(row)
    return rows


def _difference(counts: Mapping[str, Counts], pair: tuple[str, str], scope: comparisons.Scope) -> Estimate:
    return comparisons.difference(counts[pair[0]], counts[pair[1]], scope)


def _rng(*names: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(json.dumps(names).encode()).digest()))


def _claims(
    design: Design, counts: Mapping[str, Counts], rows: list[dict[str, Any]], instrument: verdicts.Instrument
) -> list[dict[str, Any]]:
    p_holm = {(row["arm"], row["baseline"], row["scope"]): row["p_holm"] for row in rows}
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
        {
            **vars(ruling),
            "scope": PROBLEMS_LIKE_THESE,
            "verdict_these_problems": rulings[THESE_PROBLEMS][name].verdict,
        }
        for name, ruling in rulings[PROBLEMS_LIKE_THESE].items()
    ]


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


def _plain(value: Any) -> Any:
    """As JSON has it: a NaN, or an interval with one, becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and any(isinstance(item, float) and math.isnan(item) for item in value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
