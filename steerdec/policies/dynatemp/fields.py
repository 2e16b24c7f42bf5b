"""The fields of a request with policy dynatemp."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from steerdec.steering.encoding import FIRST_PARAMETER
from steerdec.steering.params import Number, PositiveTemperature, Ranged, Select

LOW: Final = FIRST_PARAMETER
HIGH: Final = FIRST_PARAMETER + 1
EXPONENT: Final = FIRST_PARAMETER + 2


class DynaTemp(Ranged):
    """T = min + (max - min) (H / ln N)^exponent, N the vocabulary (llama.cpp's temp_ext, before any truncation)."""

    kind: ClassVar[int] = 2
    policy: Literal["dynatemp"] = "dynatemp"
    select: Select = Field("all", description="Which tokens get the dynamic temperature; all, as in the original.")
    min_temperature: PositiveTemperature = Field(0.5, description="Temperature at H = 0.")
    max_temperature: PositiveTemperature = Field(1.5, description="Temperature at H = ln N.")
    exponent: Annotated[Number, Field(gt=0.0, le=10.0)] = Field(1.0, description="Shape of the curve between.")

    def parameters(self, request_temperature: float) -> tuple[float, ...]:
        """Return both ends of the range and the exponent."""
        return self.min_temperature, self.max_temperature, self.exponent
