"""The fields of a request with policy split."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from pydantic import Field

from steerdec.steering.encoding import FIRST_PARAMETER, factor
from steerdec.steering.params import BESIDE_FORKS, Applied, Steering, Temperature

FORK_T: Final = FIRST_PARAMETER
FORK_FACTOR: Final = FIRST_PARAMETER + 1  # T / FORK_T, rounded once from float64; 0 where FORK_T is 0


class Split(Steering):
    """Two temperatures: one at forks, one everywhere else (arXiv 2506.01939, equation 5)."""

    kind: ClassVar[int] = 0
    policy: Literal["split"] = "split"
    fork_temperature: Temperature | None = Field(
        None,
        description="Temperature at forks; 0 is greedy there. Default: the request's temperature.",
        examples=[1.2],
    )
    other_temperature: Temperature | None = Field(
        None,
        description="Temperature at all other tokens; 0 is greedy there. Default: the request's temperature.",
        json_schema_extra=BESIDE_FORKS,
    )

    def temperatures(self, request_temperature: float) -> Applied:
        """Return the two temperatures; the request's own for one that is not set."""
        fork, other = self.fork_temperature, self.other_temperature
        return Applied(request_temperature if fork is None else fork, request_temperature if other is None else other)

    def parameters(self, request_temperature: float) -> tuple[float, ...]:
        """Return the temperature at forks and its factor."""
        fork = self.temperatures(request_temperature).fork
        assert fork is not None
        return fork, factor(request_temperature, fork)
