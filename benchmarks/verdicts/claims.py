"""The verdicts of a run: the instrument, every claim in both populations, and what still has to be sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steerdec.records.summary import ClaimSummary, Look, Population

from ..stats.comparisons import PROBLEMS_LIKE_THESE, SCOPES, THESE_PROBLEMS, difference
from ..stats.estimators import Counts
from ..stats.looks import arms_needed
from ..stats.metrics import spread
from ..stats.pairing import pair_up
from . import judging
from . import verdict as verdicts
from .dose_matches import NOT_RECORDED
from .instrument import SEVERITY, Instrument, judge_instrument
from .judging import Compared, Judgement
from .run_data import RunData
from .summary_rows import dose_error_fields
from .verdict import Ruling
from .wording import plural


@dataclass(frozen=True)
class Judged:
    """The claims as they go into the summary.

    `claimed`: corrected p-values of the comparisons of claims, by population.
    """

    rows: tuple[ClaimSummary, ...]
    claimed: dict[tuple[Compared, Population], verdicts.Corrected]
    looks: tuple[Look, ...]
    arms_needed: tuple[str, ...]
    warnings: tuple[str, ...]


def judge(data: RunData, instrument: Instrument) -> Judged:
    """Judge every claim, and the combined ones, in both populations."""
    design = data.design
    judged = {
        population: judging.judge_all(
            design.claims, data.tables, data.looks, population, design.delta, data.groups, data.dose_matches
        )
        for population in SCOPES
    }
    rulings = {population: _rulings(data, judged[population], instrument) for population in SCOPES}
    rows = []
    for name, ruling in rulings[PROBLEMS_LIKE_THESE].items():
        claim = next((claim for claim in design.claims if claim.id == name), None)
        own = judged[PROBLEMS_LIKE_THESE].get(name)
        rows.append(_row(data, ruling, rulings[THESE_PROBLEMS][name], claim, own))
    claimed = {
        (claim.compared, population): judged[population][claim.id].corrected
        for population in SCOPES
        for claim in design.claims
    }
    primary, final = judged[PROBLEMS_LIKE_THESE], rulings[PROBLEMS_LIKE_THESE]
    settled = {name for name, own in primary.items() if _settled(own, final[name])}
    needed = _needed(data, settled)
    return Judged(tuple(rows), claimed, _looks(data, primary, settled), needed, _warnings(data, instrument))


def _settled(own: Judgement, ruling: Ruling) -> bool:
    return own.given_up or (own.look >= 0 and ruling.verdict not in ("undecided", "not applied"))


def _rulings(data: RunData, judged: dict[str, Judgement], instrument: Instrument) -> dict[str, Ruling]:
    design = data.design
    rulings: dict[str, Ruling] = {}
    for claim in design.claims:
        ruling = judged[claim.id].ruling
        for arm in (claim.arm, claim.against):
            applied = data.applied.get(arm)
            if applied is not None and applied.status == "not applied":
                ruling = verdicts.replaced(
                    ruling, "not applied", f"{arm} was not steered as requested: {applied.reason}"
                )
                break
        rulings[claim.id] = ruling
    for effect, place in design.combined:
        borrowed_from = effect.arm if effect.arm != place.arm else ""
        pair = verdicts.place_or_dose(rulings[effect.id], rulings[place.id], place.against, borrowed_from)
        rulings |= {ruling.id: ruling for ruling in pair}
    if instrument.verdict == "invalid":
        return {
            name: ruling
            if ruling.verdict == "not applied"
            else verdicts.replaced(ruling, "undecided", "the instrument is invalid")
            for name, ruling in rulings.items()
        }
    return rulings


def _row(
    data: RunData, ruling: Ruling, these: Ruling, claim: verdicts.Claim | None, own: Judgement | None
) -> ClaimSummary:
    row = ClaimSummary(
        id=ruling.id,
        statement=ruling.statement,
        verdict=ruling.verdict,
        reason=ruling.reason,
        scope=PROBLEMS_LIKE_THESE,
        verdict_these_problems=these.verdict,
    )
    if claim is None or own is None:
        return row
    samples = data.looks[own.look].samples if own.look >= 0 else None
    matching = own.evidence.dose_error if own.evidence is not None else None
    return row.model_copy(
        update={
            "metric": claim.metric,
            "arm": claim.arm,
            "baseline": claim.against,
            "direction": claim.direction,
            "diff": None if own.evidence is None else _known(own.evidence.estimate.value),
            "ci95": None if np.isnan(own.ci95[0]) else own.ci95,
            "p_adjusted": min(own.corrected.greater, own.corrected.less),
            "samples": samples,
            "decided_at": None if samples is None else samples / data.samples,
            "given_up": own.given_up,
            **dose_error_fields(matching),
        }
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _needed(data: RunData, settled: set[str]) -> tuple[str, ...]:
    design = data.design
    claims = {claim.id: (claim.arm, claim.against) for claim in design.claims}
    return arms_needed(design.arms, design.baseline, (*design.identities, *design.repeats), claims, settled)


def _looks(data: RunData, judged: dict[str, Judgement], settled: set[str]) -> tuple[Look, ...]:
    rows, before = [], data.design.arms
    reached = max((own.look for own in judged.values()), default=-1)
    for number, look in enumerate(data.looks):
        ended = {name for name in settled if judged[name].look <= number}
        after = _needed(data, ended) if number <= reached else before
        rows.append(
            Look(
                samples=look.samples,
                problems=look.problems,
                fraction=look.samples / look.planned,
                made=number <= reached,
                decided=tuple(name for name, own in judged.items() if name in settled and own.look == number),
                dropped=tuple(arm for arm in before if arm not in after),
            )
        )
        before = after
    return tuple(rows)


def _warnings(data: RunData, instrument: Instrument) -> tuple[str, ...]:
    """Return the sentences to read before the verdicts."""
    found = []
    for name, table in data.tables.items():
        ungraded = int(np.sum(table.present & np.isnan(table.correct)))
        if ungraded:
            found.append(
                f"{ungraded} of {int(table.present.sum())} samples of {name} are ungraded. Verdicts stand only where "
                "they are the same with all of these wrong and with all of them right."
            )
    for name, applied in data.applied.items():
        if applied.status == "not applied":
            found.append(f"{name} was not steered as requested: {applied.reason}. Claims about it are not applied.")
    unknown = [
        f"{claim.arm} − {claim.against}"
        for claim in data.design.claims
        if data.dose_matches.not_recorded(claim.arm, claim.against)
    ]
    if unknown:
        found.append(f"{', '.join(unknown)}: {NOT_RECORDED}.")
    if instrument.verdict == "not shown":
        found.append(f"That A/A equals the baseline is not shown: {instrument.reason}.")
    return tuple(found)


def interim_sentence(data: RunData, missing: int) -> str:
    """Return the sentence about an unfinished run; empty if it is finished."""
    if not missing:
        return ""
    at = list(dict.fromkeys(look.samples for look in data.looks))
    looks = plural(at[0], "sample") if len(at) == 1 else f"{', '.join(map(str, at))} samples"
    return (
        f"The run is not finished: {plural(missing, 'sample')} missing. All figures are interim; verdicts are "
        f"made only at the planned looks ({looks} of every problem)."
    )


def judge_instruments(data: RunData) -> Instrument:
    """Judge every A/A arm. The most doubtful verdict is the instrument's; if nothing moved, it is unchecked."""
    design = data.design
    if not design.identities:
        return Instrument("unchecked", "the arm set has no A/A arm (role identity)")
    judged = {name: _judge_identity(data, name) for name in design.identities}
    reasons = [one.reason for one in judged.values()]
    if len(judged) > 1 or design.controls[design.identities[0]] != design.baseline:
        reasons = [
            f"{name}, with {design.controls[name]} as its baseline: {one.reason}" for name, one in judged.items()
        ]
    verdict = max((one.verdict for one in judged.values()), key=SEVERITY.index)
    bias = max(one.bias for one in judged.values())
    if verdict in ("valid", "not shown") and not _something_moved(data):
        reasons.append("but no steered arm changed a single text either, so nothing shows that steering was on")
        verdict = "unchecked"
    return Instrument(verdict, "; ".join(reasons), bias)


def _something_moved(data: RunData) -> bool:
    """Return whether a steered arm wrote a text that its control did not at the same seed, or none can be compared."""
    pairs = [data.tally.differing(name, data.design.controls[name]) for name in data.design.asks]
    compared = sum(int(pair.graded.sum()) for pair in pairs)
    return compared == 0 or any(int(pair.correct.sum()) for pair in pairs)


def _judge_identity(data: RunData, name: str) -> Instrument:
    design, tally = data.design, data.tally
    # An arm that repeats the baseline with other seeds shares no seed with it, and so adds no pair.
    repeats = [tally.differing(repeat, design.baseline) for repeat in design.repeats]
    nothing = np.zeros(len(tally.problems), dtype=np.int64)
    floor = Counts(sum((r.correct for r in repeats), nothing), sum((r.graded for r in repeats), nothing))
    control = design.controls[name]
    pair = pair_up(data.tables[name], data.tables[control]).graded_only()
    accuracy = difference(spread(pair, "avg@k"), THESE_PROBLEMS)
    return judge_instrument(tally.differing(name, control), floor, accuracy, design.delta)
