"""The test of a search's finalists on held-out problems: its arms and claims, and the advice that follows from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

from steerdec.records.arms import Arm, ArmSet, Claim
from steerdec.records.summary import ClaimSummary

from .records import Setting
from .space import BASELINE

TUNED, PLAIN = "tuned", "plain"
STEERING_HELPS: Final = "steering-beats-the-baseline"
STEERING_BEATS_PLAIN: Final = "steering-beats-plain-temperature"
PLAIN_HELPS: Final = "plain-temperature-beats-the-baseline"

Advice = Literal["steer", "temperature", "nothing"]


def test_set(steered: Setting, plain: Setting | None, base: float) -> ArmSet:
    """Return the arms and claims of the test, declared before a held-out problem is sampled."""
    identity = {"fork_temperature": "base", "other_temperature": "base"}
    arms = [
        Arm(name=BASELINE, role="baseline", about="plain requests at the base temperature"),
        Arm(name="A/A", role="identity", about="steering on, at the base temperature", steering=dict(identity)),
        Arm(
            name=TUNED,
            role="treatment",
            about=f"the best steered setting on the tuning problems, {steered.name}",
            temperature=steered.temperature,
            steering=served(steered),
        ),
    ]
    claims = [_claim(STEERING_HELPS, "The tuned steering scores higher than the baseline.", TUNED, BASELINE)]
    if plain is not None:
        about = f"the best plain temperature on the tuning problems, {plain.temperature:g}"
        arms.append(Arm(name=PLAIN, role="treatment", about=about, temperature=plain.temperature))
        claims += [
            _claim(STEERING_BEATS_PLAIN, "The tuned steering scores higher than the best plain temperature.",
                   TUNED, PLAIN),
            _claim(PLAIN_HELPS, "The best plain temperature scores higher than the baseline.", PLAIN, BASELINE),
        ]  # fmt: skip
    return ArmSet(
        name="tune",
        about="The finalists of a search, on problems that it has not seen.",
        temperature=base,
        baseline=BASELINE,
        arms=tuple(arms),
        claims=tuple(claims),
    )


def _claim(name: str, statement: str, arm: str, baseline: str) -> Claim:
    return Claim(id=name, statement=statement, arm=arm, baseline=baseline, direction="higher")


def served(setting: Setting) -> dict[str, Any]:
    """Return the steering to serve with: without the telemetry of the search."""
    return {name: value for name, value in (setting.steering or {}).items() if name != "telemetry"}


def advice(claims: Sequence[ClaimSummary]) -> Advice:
    """Return what the test supports: steering, a plain temperature, or neither."""
    holds = {claim.id for claim in claims if claim.verdict == "holds"}
    if STEERING_HELPS in holds:
        return "steer"
    return "temperature" if PLAIN_HELPS in holds else "nothing"


def steering_line(setting: Setting) -> str:
    """Return the option of `steerdec serve` that applies the setting."""
    return f"--steering '{json.dumps(served(setting))}'"
