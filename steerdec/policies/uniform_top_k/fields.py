"""The fields of a request with policy uniform_top_k."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from steerdec.steering.encoding import FIRST_PARAMETER
from steerdec.steering.params import BESIDE_FORKS, Applied, Steering, Temperature

K: Final = FIRST_PARAMETER
MAX_K: Final = 64  # a kernel reads a fork's logits once for each


class UniformTopK(Steering):
    """At forks, the k most likely tokens are equally likely, and no other is sampled.

    It raises choice without the noise of the tail, which a high temperature raises too. Tokens as likely as the k-th
    are kept as well.
    """

    kind: ClassVar[int] = 5
    reports_fork_temperature: ClassVar[bool] = False
    policy: Literal["uniform_top_k"] = "uniform_top_k"
    k: Annotated[int, Field(ge=1, le=MAX_K)] = Field(5, description="How many tokens are kept at forks.")
    other_temperature: Temperature | None = Field(
        None,
        description="Temperature at all other tokens, all of which are kept. Default: the request's temperature.",
        json_schema_extra=BESIDE_FORKS,
    )

    def temperatures(self, request_temperature: float) -> Applied:
        """Return None for forks, which have no temperature, and the other one."""
        return Applied(None, request_temperature if self.other_temperature is None else self.other_temperature)

    def parameters(self, request_temperature: float) -> tuple[float, ...]:
        """Return k."""
        return (float(self.k),)
