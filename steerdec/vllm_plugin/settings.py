"""The settings of the engine and the server: one entry of vLLM's `--additional-config`, written and read here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError

from steerdec.policies.registry import parse
from steerdec.steering.params import PAPER_THRESHOLD_NATS, Number, Steering, SteeringError, shown
from steerdec.telemetry.lanes import LaneFile

CONFIG_KEY: Final = "steerdec"
PROCESSOR: Final = "steerdec.processor:EntropySteering"

Default = Annotated[SerializeAsAny[Steering], BeforeValidator(parse)]


class Lanes(BaseModel):
    """Where the telemetry lanes are, and how many server processes share them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    capacity_tokens: int
    parts: int = 1

    @property
    def file(self) -> LaneFile:
        return LaneFile(self.path, self.capacity_tokens)


class Settings(BaseModel):
    """The settings of a whole engine. `steerdec serve` writes them; offline programs may."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold_nats: Annotated[Number, Field(ge=0.0)] = PAPER_THRESHOLD_NATS
    threshold_origin: str = "arXiv 2506.01939 (Qwen3-8B)"
    calibration: dict[str, Any] | None = None  # the file's content, shown by GET /v1/steering
    lanes: Lanes | None = None
    # Steering of requests without any. The HTTP side knows the tokenizer and lends lanes, so a server's default is
    # applied there; `default` is applied where vLLM admits a request from any source.
    default: Default | None = None
    http_default: Default | None = None

    @classmethod
    def of(cls, vllm_config: object) -> Settings:
        """Read the entry of an engine's configuration; the defaults without one.

        Raises:
            ValueError: the entry is invalid; one line, so that the engine does not start.
        """
        config = getattr(vllm_config, "additional_config", None)
        entry = config.get(CONFIG_KEY, {}) if isinstance(config, Mapping) else {}
        return cls.read(entry)

    @classmethod
    def read(cls, entry: object) -> Settings:
        """Read the entry itself. Raises ValueError."""
        try:
            return cls.model_validate(entry)
        except ValidationError as e:
            first = e.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        place = ".".join(map(str, first["loc"]))
        if isinstance(cause, SteeringError):
            reason = str(cause)
        elif first["type"] == "extra_forbidden":
            reason = f"is not a setting (there are: {', '.join(cls.model_fields)})"
        else:
            reason = f"{shown(first['input'])}: {first['msg']}"
        raise ValueError(f"additional-config {CONFIG_KEY}: {place}: {reason}")

    def entry(self) -> dict[str, Any]:
        """Return the entry in the form of vLLM's `--additional-config`."""
        return self.model_dump(mode="json", exclude_none=True)


def named_first(processors: Iterable[Any] | None) -> list[Any]:
    """Return vLLM's `logits_processors` with ours named first.

    It is named in addition to its entry point: only then does vLLM refuse speculative decoding on the V1 runner instead
    of dropping the processor, and keep output tokens for it under async scheduling.
    """
    return [PROCESSOR, *(processor for processor in processors or [] if processor != PROCESSOR)]
