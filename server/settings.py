"""What the launcher tells the server processes: the `server` entry of vLLM's additional config."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from steerdec.steering.params import PAPER_THRESHOLD_NATS
from steerdec.vllm_plugin.request import CONFIG_KEY


class LaneSettings(BaseModel):
    """Where the telemetry lanes are, and into how many server processes' parts they are split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    capacity_tokens: int
    parts: int = 1


class ServerSettings(BaseModel):
    """Everything the HTTP side needs beyond vLLM's own arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lanes: LaneSettings | None = None
    default: dict[str, Any] | None = None  # steering of requests that bring none
    threshold_nats: float = PAPER_THRESHOLD_NATS
    threshold_origin: str = "arXiv 2506.01939 (Qwen3-8B)"
    calibration: dict[str, Any] | None = None  # the file's content, shown by GET /v1/steering

    @classmethod
    def of(cls, additional_config: object) -> ServerSettings:
        """From vLLM's parsed `--additional-config`; the defaults when the launcher set nothing."""
        entry = additional_config.get(CONFIG_KEY, {}) if isinstance(additional_config, dict) else {}
        return cls.model_validate(entry.get("server", {}))
