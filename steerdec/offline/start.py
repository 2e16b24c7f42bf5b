"""What an engine needs at its start to report telemetry: a lane file, and two of vLLM's arguments that name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any, Final

from vllm.engine.arg_utils import EngineArgs

from steerdec.common.errors import InvalidInputError, SteerdecError
from steerdec.telemetry import lanes as telemetry
from steerdec.telemetry.lanes import LaneFile
from steerdec.vllm_plugin.settings import CONFIG_KEY, Settings, named_first

MOST_LANES: Final = 1024
MOST_LANE_BYTES: Final = 512 * 2**20
# Part of the engine's configuration, whose hash names the folder of its compiled kernels: the same at every start.
_NAME: Final = "offline"


def context_tokens(options: Mapping[str, Any]) -> int:
    """Return how many tokens the context of an engine started with these arguments has: no answer is longer."""
    given = options.get("max_model_len")
    if isinstance(given, int) and given > 0:
        return given
    known = {field.name for field in fields(EngineArgs)}
    args = EngineArgs(**{name: value for name, value in options.items() if name in known and value is not None})
    return int(args.create_model_config().max_model_len)


@contextmanager
def lanes(capacity_tokens: int, most: int) -> Iterator[LaneFile]:
    """Yield a file of at most `most` lanes to lend, each with a record for `capacity_tokens`; remove it at the end.

    Raises:
        SteerdecError: there is no room for it.
    """
    if most < 1:
        raise InvalidInputError(f"telemetry_lanes: {most} is below 1")
    try:
        with telemetry.created(capacity_tokens, most + 1, MOST_LANE_BYTES, name=_NAME) as file:
            yield file
    except OSError as e:
        raise SteerdecError(f"no room for telemetry: {e}") from None


def arguments(given: Mapping[str, Any], file: LaneFile) -> dict[str, Any]:
    """Return vLLM's arguments `additional_config` and `logits_processors`: the given ones, with ours in them.

    Raises:
        InvalidInputError: `additional_config` is not a dict, or has lanes already.
        ValueError: its entry for steerdec is invalid; one line.
    """
    config = given.get("additional_config") or {}
    entry = config.get(CONFIG_KEY, {}) if isinstance(config, Mapping) else None
    if not isinstance(entry, Mapping) or "lanes" in entry:
        raise InvalidInputError(f"additional_config: its entry {CONFIG_KEY!r} must be a dict without 'lanes', if given")
    settings = Settings.read({**entry, "lanes": asdict(file)})
    return {
        "additional_config": {**config, CONFIG_KEY: settings.entry()},
        "logits_processors": named_first(given.get("logits_processors")),
    }
