"""The fields of a request with policy edt."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from steerdec.steering.encoding import FIRST_PARAMETER
from steerdec.steering.params import Number, Select, Steering

THETA: Final = FIRST_PARAMETER
BASE: Final = FIRST_PARAMETER + 1
LOWEST: Final = 0.01  # T' is never below it: base^(theta / H) -> 0 as H -> 0


class Edt(Steering):
    """T = T0 base^(theta / H), T0 the request's temperature, never below 0.01 (arXiv 2403.14541)."""

    kind: ClassVar[int] = 3
    policy: Literal["edt"] = "edt"
    select: Select = Field("all", description="Which tokens get the dynamic temperature; all, as in the original.")
    theta: Annotated[Number, Field(gt=0.0, le=100.0)] = Field(0.1, description="Strength of the cooling.")
    base: Annotated[Number, Field(gt=0.0, lt=1.0)] = Field(0.8, description="Base of the power.")

    def parameters(self, request_temperature: float) -> tuple[float, ...]:
        """Return theta and the base."""
        return self.theta, self.base
