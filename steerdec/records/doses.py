"""What an arm changes, per token, in the distributions that tokens are drawn from: entropy, and distance.

Both are those of the baseline's text, measured by a calibration. A token belongs to one part of the text; a part is
sampled at one temperature.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from steerdec.policies.registry import parse
from steerdec.records.arms import Arm

Tokens = Literal["forks", "others", "all"]
_SAME_NATS = 1e-9


class Part(BaseModel):
    """`share` of the forks, of the other tokens, or of all of them, sampled at `temperature`."""

    model_config = ConfigDict(frozen=True)

    tokens: Tokens
    share: Annotated[FiniteFloat, Field(ge=0.0, le=1.0)] = 1.0
    temperature: Annotated[FiniteFloat, Field(ge=0.0)]


class ArmDose(BaseModel):
    """The dose of an arm in two currencies, means over all tokens of the baseline's text.

    `dose_nats`: of H(softmax(z / T')) - H(softmax(z / T)). `kl_nats`: of KL(softmax(z / T') || softmax(z / T)). The
    intervals are a bootstrap over the calibration's problems. Where the arm's temperature was solved, `mismatch_nats`
    is its dose minus that of the arm `matched`, and `mismatch_se_nats` the standard error of that.
    """

    model_config = ConfigDict(frozen=True)

    parts: tuple[Part, ...]
    dose_nats: FiniteFloat
    dose_ci95: tuple[FiniteFloat, FiniteFloat] | None = None
    kl_nats: Annotated[FiniteFloat, Field(ge=0.0)]
    kl_ci95: tuple[FiniteFloat, FiniteFloat] | None = None
    matched: str | None = None
    mismatch_nats: FiniteFloat | None = None
    mismatch_se_nats: Annotated[FiniteFloat, Field(ge=0.0)] | None = None


def parts_of(arm: Arm, threshold_nats: float) -> tuple[Part, ...] | None:
    """Return the parts of the text as a resolved arm samples them; None where fixed temperatures do not say it.

    That is: after a prefix, under a policy that decides token by token, inside a scope, at the first tokens, at a
    threshold other than `threshold_nats`, or with what depends on earlier tokens (a moving threshold, hysteresis, a
    guard).

    Raises:
        ArmError: the arm is not in numbers.
    """
    fork, other = arm.applied()
    if fork is None or other is None or arm.replay is not None or arm.branch is not None:
        return None
    if arm.steering is None:
        return (Part(tokens="all", temperature=fork),)
    steering = parse(dict(arm.steering))
    if steering.scope != "all" or steering.remembers:
        return None
    if steering.select == "all" or fork == other:
        return (Part(tokens="all", temperature=fork),)
    if steering.select == "random" and steering.fork_rate is not None:
        return (
            Part(tokens="all", share=steering.fork_rate, temperature=fork),
            Part(tokens="all", share=1.0 - steering.fork_rate, temperature=other),
        )
    used = steering.threshold_nats
    if steering.select != "entropy" or used is None or abs(used - threshold_nats) > _SAME_NATS:
        return None
    return Part(tokens="forks", temperature=fork), Part(tokens="others", temperature=other)
