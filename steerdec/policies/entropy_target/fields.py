"""The fields of a request with policy entropy_target."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from steerdec.steering.encoding import FIRST_PARAMETER
from steerdec.steering.params import Number, PositiveTemperature, Ranged

DELTA: Final = FIRST_PARAMETER
LOW: Final = FIRST_PARAMETER + 1
HIGH: Final = FIRST_PARAMETER + 2

SOLVED_NATS: Final = 1e-4  # how far from the target the compiled solvers may stop
NEWTON_STEPS: Final = 10  # 4 or 5 are usual; after that, bisection takes over
MAX_STEPS: Final = 60


class EntropyTarget(Ranged):
    """At forks, the temperature at which the entropy of the sampled distribution changes by `delta_nats`.

    The change is counted from softmax(z / T) at the request's own temperature T. A target outside
    what [`min_temperature`, `max_temperature`] can reach gets the nearer end.
    """

    kind: ClassVar[int] = 1
    policy: Literal["entropy_target"] = "entropy_target"
    delta_nats: Annotated[Number, Field(ge=-20.0, le=20.0)] = Field(
        description="Rise of the entropy at forks; negative lowers it.", examples=[0.5]
    )
    min_temperature: PositiveTemperature = Field(0.05, description="Lower end of the search.")
    max_temperature: PositiveTemperature = Field(5.0, description="Upper end of the search.")

    def parameters(self, request_temperature: float) -> tuple[float, ...]:
        """Return the change in nats and the ends of the search."""
        return self.delta_nats, self.min_temperature, self.max_temperature
