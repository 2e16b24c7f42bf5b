"""What a run says, in sentences: the instrument, the claims, and the cautions to read first."""

from __future__ import annotations

from steerdec.pages.wording import number, percent, sentence
from steerdec.records.summary import Branching, ClaimSummary, Summary

MUCH_TRUNCATED = 0.1  # share of an arm's answers above which the token limit decides the score
MUCH_UNBOXED = 0.05  # difference between two arms

_VERDICTS = {
    "holds": "HOLDS",
    "reversed": "is REVERSED",
    "no effect": "shows NO EFFECT",
    "undecided": "is UNDECIDED",
    "not applied": "was NOT APPLIED",
}

_INSTRUMENT = {
    "valid": "The instrument is VALID: switched on at the base temperatures, steering answers as the baseline does.",
    "invalid": (
        "The instrument is INVALID: switched on at the base temperatures, steering already changes the answers, "
        "so every claim below that was applied is undecided."
    ),
    "not shown": (
        "The instrument is NOT SHOWN to be valid: this run can neither show nor refute that steering at the base "
        "temperatures answers as the baseline does."
    ),
    "unchecked": (
        "The instrument was NOT CHECKED: the run has no pair of arms that should agree, "
        "so an error in the steering itself would look like an effect."
    ),
}


def instrument_sentence(summary: Summary) -> str:
    """Say what the A/A arm means for every other number of the run."""
    verdict = _INSTRUMENT[summary.instrument]
    return f"{verdict} {sentence(summary.instrument_reason)}" if summary.instrument_reason.strip() else verdict


def claim_parts(claim: ClaimSummary, subject: str = "this model and set") -> tuple[str, str]:
    """Return the statement in quotation marks, and what the run says about it."""
    reason = claim.reason.strip().rstrip(".")
    conclusion = f"On {subject} this claim {_VERDICTS[claim.verdict]}" + (f": {reason}." if reason else ".")
    if claim.verdict_these_problems != claim.verdict:
        conclusion += f" For these problems alone, it {_VERDICTS[claim.verdict_these_problems]}."
    return f"“{sentence(claim.statement)}”", conclusion


def claim_sentence(claim: ClaimSummary, subject: str = "this model and set") -> str:
    """Return `“Lowering the forks lowers the score.” On this model and set this claim is REVERSED: <reason>.`"""
    return " ".join(claim_parts(claim, subject))


def branching_sentence(row: Branching) -> str:
    """Say what a tree is, and what it costs."""
    places = {"highest": "the fork with the highest entropy", "fork": "a random fork", "other": "a random other token"}
    sentence = (
        f"{row.arm}: a tree is a response of {row.roots} and {row.continuations} that begin at "
        f"{places.get(row.place, row.place)} of it; it costs as much as {number(row.plain_samples)} samples of "
        f"{row.baseline} ({number(row.tree_tokens, 0)} tokens); {row.trees:,} trees of {row.n_problems} problems"
    )
    return f"{sentence}; {row.note}." if row.note else f"{sentence}."


def missing_samples(summary: Summary) -> int:
    """Return how many samples are still to be made."""
    return sum(arm.missing for arm in summary.arms.values())


def interim_sentence(summary: Summary) -> str | None:
    """Return a sentence that the figures are not final, and why; None if they are."""
    missing = missing_samples(summary)
    if not (summary.interim or missing):
        return None
    counted = f"{missing:,} sample{' is' if missing == 1 else 's are'} missing"
    if not missing:
        counted = "the verdicts are not final"
    reason = summary.interim_reason.strip() or f"this run is not finished; {counted}"
    return sentence(f"Interim: {reason[0].lower()}{reason[1:]}")


def dropped_sentence(summary: Summary) -> str | None:
    """Return which arms were dropped at which planned look; None if none was."""
    dropped = {look.samples: [arm for arm in look.dropped if summary.arms[arm].not_needed] for look in summary.looks}
    named = [f"{', '.join(arms)} after {samples} per problem" for samples, arms in dropped.items() if arms]
    if not named:
        return None
    return f"Not sampled to the end, as no claim needed more samples of them: {'; '.join(named)}."


def truncation_sentence(summary: Summary) -> str | None:
    """Return what to do if the token limit decides many of the scores; None if it does not."""
    rates = {name: arm.truncation_rate or 0.0 for name, arm in summary.arms.items()}
    worst = max(rates, key=lambda name: rates[name], default=None)
    if worst is None or rates[worst] <= MUCH_TRUNCATED:
        return None
    return (
        f"The token limit cut off {percent(rates[worst])} of the answers of {worst}, which count as wrong; with a "
        "larger --max-tokens more of them would finish."
    )


def box_sentence(summary: Summary) -> str | None:
    """Return how often arms box their answers if that differs between arms; None otherwise."""
    rates = {name: arm.unboxed_rate for name, arm in summary.arms.items() if arm.unboxed_rate is not None}
    if not rates or min(rates.values()) == 1.0:
        return None
    least, most = min(rates, key=lambda name: rates[name]), max(rates, key=lambda name: rates[name])
    if rates[most] - rates[least] <= MUCH_UNBOXED:
        return None
    return (
        f"Of the complete answers of {most}, {percent(rates[most])} have no box, of {least} {percent(rates[least])}: "
        "part of a difference in scores may be one of form."
    )


def cautions(summary: Summary) -> list[str]:
    """Return the sentences to read before the verdicts."""
    candidates = [
        interim_sentence(summary),
        *map(sentence, summary.warnings),
        truncation_sentence(summary),
        box_sentence(summary),
    ]
    return [one for one in candidates if one]
