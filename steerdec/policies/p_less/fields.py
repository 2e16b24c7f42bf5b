"""The fields of a request with policy p_less."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from pydantic import Field

from steerdec.steering.encoding import FIRST_PARAMETER, factor
from steerdec.steering.params import BESIDE_FORKS, Applied, Steering, Temperature

FORK_T: Final = FIRST_PARAMETER
FORK_FACTOR: Final = FIRST_PARAMETER + 1  # T / FORK_T, rounded once from float64; 0 where FORK_T is 0


class PLess(Steering):
    """At forks, keep token i if p_i >= sum_j p_j^2, where p = softmax(z / fork_temperature) (arXiv 2509.23234).

    The sum is the probability that two draws agree: the surer the model, the fewer tokens are kept. The most likely
    token always is.
    """

    kind: ClassVar[int] = 4
    policy: Literal["p_less"] = "p_less"
    fork_temperature: Temperature | None = Field(
        None,
        description="Temperature at forks; 0 is greedy there. Default: the request's temperature.",
        examples=[1.2],
    )
    other_temperature: Temperature | None = Field(
        None,
        description="Temperature at all other tokens, all of which are kept. Default: the request's temperature.",
        json_schema_extra=BESIDE_FORKS,
    )

    def temperatures(self, request_temperature: float) -> Applied:
        """Return None for forks, whose distribution does not follow from a temperature alone, and the other one."""
        return Applied(None, request_temperature if self.other_temperature is None else self.other_temperature)

    def parameters(self, request_temperature: float) -> tuple[float, ...]:
        """Return the temperature at forks and its factor."""
        fork = request_temperature if self.fork_temperature is None else self.fork_temperature
        return fork, factor(request_temperature, fork)
