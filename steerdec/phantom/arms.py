"""The arms that a phantom is measured under, with their matched temperatures solved exactly.

They are those of the arm set `causal`, one for each other policy and selector, and, if a response has a thinking part,
one for each scope.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from scipy.optimize import brentq

from steerdec.phantom.kinds import Kind
from steerdec.phantom.truth import Truth

UP, DOWN = 1.667, 0.333  # times the base temperature, which is 1
FORK_RATE: Final = 0.2
DELTA: Final = 0.05  # scores closer than this count as equal
SOLVED_RANGE: Final = (0.05, 5.0)
Steering = dict[str, Any]

FIXED_ARMS: Final[dict[str, tuple[str, Steering | None]]] = {
    "B": ("baseline", None),
    "A/A": ("identity", {"fork_temperature": 1.0, "other_temperature": 1.0}),
    "B-other": ("replica", None),
    "F-up": ("treatment", {"fork_temperature": UP}),
    "F-down": ("treatment", {"fork_temperature": DOWN}),
    "N-up": ("treatment", {"other_temperature": UP}),
    "N-down": ("treatment", {"other_temperature": DOWN}),
    "P-up": ("placebo", {"select": "random", "fork_rate": FORK_RATE, "fork_temperature": UP}),
    "P-down": ("placebo", {"select": "random", "fork_rate": FORK_RATE, "fork_temperature": DOWN}),
    "F-greedy": ("treatment", {"fork_temperature": 0.0}),
    "first": ("treatment", {"select": "first", "first_tokens": 3, "fork_temperature": UP}),
    "entropy_target": ("treatment", {"policy": "entropy_target", "delta_nats": -0.2}),
    "dynatemp": ("treatment", {"policy": "dynatemp", "min_temperature": 0.5, "max_temperature": 2.5}),
    "edt": ("treatment", {"policy": "edt", "theta": 0.3, "base": 0.6}),
    "p_less": ("treatment", {"policy": "p_less", "fork_temperature": UP}),
    "uniform_top_k": ("treatment", {"policy": "uniform_top_k", "k": 2}),
}
THINKING_ARMS: Final[dict[str, tuple[str, Steering | None]]] = {
    f"{scope}-{name}": ("treatment", {"fork_temperature": temperature, "scope": scope})
    for scope in ("thinking", "answer")
    for name, temperature in (("up", UP), ("down", DOWN))
}
# arm: (role, the arm whose dose it has, what is solved, the rest of its steering)
MATCHED_ARMS: Final = {
    "G-up": ("global", "F-up", "fork_temperature", {"select": "all"}),
    "G-down": ("global", "F-down", "fork_temperature", {"select": "all"}),
    "N-up-m": ("matched", "F-up", "other_temperature", {}),
    "F-down-m": ("matched", "N-down", "fork_temperature", {}),
}
# As in the arm set `causal`: (id, arm, baseline, direction).
CLAIMS: Final = (
    ("lowering-forks-hurts", "F-down", "B", "lower"),
    ("raising-forks-helps", "F-up", "B", "higher"),
    ("forks-beat-others", "F-up", "N-up-m", "higher"),
    ("others-are-harmless-to-lower", "F-down-m", "N-down", "lower"),
)


class ArmsError(ValueError):
    """A phantom without a matched temperature; the message is one plain line."""


def solve(truth: Truth, arm: str) -> float:
    """Return the temperature at which `arm` adds as much entropy as the arm that it is matched to.

    Raises:
        ArmsError: there is none.
    """
    _, other, part, rest = MATCHED_ARMS[arm]
    target = truth.dose_nats(FIXED_ARMS[other][1], truth.threshold_nats)

    def excess(log_t: float) -> float:
        request = rest | {part: math.exp(log_t)}
        return truth.dose_nats(request, truth.threshold_nats) - target

    low, high = map(math.log, SOLVED_RANGE)
    if not excess(low) <= 0.0 <= excess(high):
        raise ArmsError(f"no temperature gives {arm} the dose of {other}, {target:+.4f} nats per token")
    return math.exp(brentq(excess, low, high, xtol=1e-9))


def steering_of_arms(truth: Truth, kind: Kind) -> dict[str, Steering | None]:
    """Return the `steering` of each arm's requests; None for a plain one."""
    fixed = FIXED_ARMS | (THINKING_ARMS if kind.thinking else {})
    solved = {arm: rest | {part: solve(truth, arm)} for arm, (_, _, part, rest) in MATCHED_ARMS.items()}
    return {name: steering for name, (_, steering) in fixed.items()} | solved


def arm_set(steering: dict[str, Steering | None], threshold_nats: float, name: str) -> dict[str, Any]:
    """Return the arms as `bench run --arms FILE` reads them."""
    matched = {arm: {"role": role, "matched": other} for arm, (role, other, _, _) in MATCHED_ARMS.items()}
    fixed = {arm: {"role": role} for arm, (role, _) in (FIXED_ARMS | THINKING_ARMS).items()}
    arms = [
        {"name": arm, **(fixed | matched)[arm]} | ({} if asked is None else {"steering": asked})
        for arm, asked in steering.items()
    ]
    claims = [
        {
            "id": claim,
            "statement": f"{arm} scores {direction} than {baseline}.",
            "arm": arm,
            "baseline": baseline,
            "direction": direction,
        }
        for claim, arm, baseline, direction in CLAIMS
    ]
    return {
        "name": name,
        "temperature": 1.0,
        "threshold_nats": threshold_nats,
        "delta": DELTA,
        "baseline": "B",
        "arms": arms,
        "claims": claims,
    }


def verdict(difference: float, direction: str) -> str:
    """Return the correct verdict on a claim, given its exact difference of scores."""
    if abs(difference) < DELTA / 10:
        return "no effect"
    return "holds" if np.sign(difference) == (1 if direction == "higher" else -1) else "reversed"
