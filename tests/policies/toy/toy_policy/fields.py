"""What a request with policy toy may set."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from steerdec.steering.encoding import FIRST_PARAMETER
from steerdec.steering.params import Number, PositiveTemperature, Steering

WARM: Final = FIRST_PARAMETER
GAIN: Final = FIRST_PARAMETER + 1


class Toy(Steering):
    """T' = warm_temperature + gain * H at forks."""

    kind: ClassVar[int] = 1000
    policy: Literal["toy"] = "toy"
    warm_temperature: PositiveTemperature = Field(description="Temperature at H = 0.")
    gain: Annotated[Number, Field(ge=0.0, le=10.0)] = Field(0.5, description="Kelvin per nat, so to speak.")

    def parameters(self, request_temperature: float) -> tuple[float, ...]:
        return self.warm_temperature, self.gain
