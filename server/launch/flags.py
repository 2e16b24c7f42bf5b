"""vLLM's flags, as far as the launcher reads or adds them.

vLLM's own parser takes seconds to import, so a small one reads the same spellings: underscores for dashes,
`--flag=value`, short names, `--additional-config.key value`, repetition (the last one counts), and a `--config` file.
The user's flags are passed on unchanged; the launcher's come after them and therefore win.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from steerdec.common.files import read_at_most

from .errors import LaunchUsageError

ADDITIONAL_CONFIG: Final = "--additional-config"
SPECULATIVE_CONFIG: Final = "--speculative-config"
_SPECULATIVE_NAMES: Final = (SPECULATIVE_CONFIG, "-sc")

# Flags that the launcher reads or adds, by the number of their values.
_ONE_VALUE: Final = (
    *(("--host",), ("--port",), ("--model",), ("--config",), (ADDITIONAL_CONFIG,)),
    *(("--max-model-len",), ("--max-num-batched-tokens",), ("--gpu-memory-utilization",), ("--block-size",)),
    *(("--shutdown-timeout",), ("--api-server-count", "-asc"), ("--data-parallel-size", "-dp")),
    *(("--data-parallel-size-local", "-dpl"), ("--data-parallel-rank", "-dpn")),
    *(("--data-parallel-start-rank", "-dpr"), ("--pipeline-parallel-size", "-pp"), _SPECULATIVE_NAMES),
)
_MAX_CONFIG_BYTES: Final = 1 << 20
_SOME_VALUES: Final = ("--logits-processors", "--served-model-name")
_ON_OR_OFF: Final = (
    *(("--enforce-eager",), ("--enable-chunked-prefill",)),
    *(("--data-parallel-hybrid-lb", "-dph"), ("--data-parallel-external-lb", "-dpe")),
)
_ON: Final = (("--data-parallel-multi-port-external-lb", "-dpm"), ("--grpc",))
# Options of `steerdec serve` itself, which typer has removed if they were spelled in full.
_OWN: Final = ("--steering", "--threshold", "--host", "--port")

# What vLLM multiplies by in "8k" and "8K"; a fraction, as in "25.6k", goes with the lowercase letters only.
_UNITS: Final = {"": 1} | {u: 1000**i for i, u in enumerate("kmgt", 1)} | {u: 1024**i for i, u in enumerate("KMGT", 1)}


@dataclass(frozen=True)
class VllmFlags:
    """The flags of one start."""

    values: argparse.Namespace  # by vLLM's own names, from the command line and the --config file; None if absent
    model: str | None  # of --model on the command line
    passed_on: list[str]  # the user's flags, without those that the launcher writes itself
    additional_config: dict[str, Any]
    rejection_method: str | None  # of speculative decoding; None where it is left to vLLM

    def number(self, name: str) -> int | None:
        """Return the value of a whole-number flag, None if it is absent or not a number (like "auto")."""
        text = getattr(self.values, name)
        return None if text is None else whole_number(text)

    def front_ends(self) -> int:
        """Return how many server processes on this machine will answer requests."""
        v = self.values
        if (given := self.number("api_server_count")) is not None:
            return max(given, 1)
        engines = self.number("data_parallel_size") or 1
        local = self.number("data_parallel_size_local")
        if v.data_parallel_multi_port_external_lb:
            return local or engines
        if v.data_parallel_external_lb or v.data_parallel_rank is not None:
            return 1
        if v.data_parallel_hybrid_lb or v.data_parallel_start_rank is not None:
            return local or 1
        return engines


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchUsageError(message.removeprefix("argument "))


def _parser() -> tuple[_Parser, frozenset[str], frozenset[str]]:
    """Return the parser, every name it knows, and those of flags that have a `--no-` form."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    actions = [parser.add_argument(*names) for names in _ONE_VALUE]
    actions += [parser.add_argument(name, nargs="+") for name in _SOME_VALUES]
    actions += [parser.add_argument(*names, action=argparse.BooleanOptionalAction) for names in _ON_OR_OFF]
    actions += [parser.add_argument(*names, action="store_true") for names in _ON]
    names = frozenset(name for action in actions for name in action.option_strings)
    return parser, names, frozenset(pair[0] for pair in _ON_OR_OFF)


_PARSER, NAMES, _SWITCHES = _parser()


def parse(flags: list[str]) -> VllmFlags:
    """Read vLLM's flags from the command line.

    Raises:
        LaunchUsageError: a flag is spelled in a way that only vLLM's own parser can resolve, or given so that vLLM
            would drop one of the values, or the --config file cannot be read.
    """
    dotted: dict[str, Any] = {}
    speculative: dict[str, Any] = {}
    tokens = _without_dotted(_spelled_out(flags), dotted, speculative)
    tokens, config_file = _without_config(tokens)
    from_file: list[str] = []
    if config_file is not None:
        from_file = _without_dotted(_spelled_out(_of_config_file(config_file)), dotted, speculative)
    # One after the other, as vLLM reads them: a last flag in the file that takes several values takes what follows.
    values, _ = _PARSER.parse_known_args([*from_file, *tokens])
    tokens, model = _without_model(tokens)
    if values.grpc:
        raise LaunchUsageError("--grpc: steering needs the HTTP server")
    if dotted and values.additional_config is not None:
        raise LaunchUsageError(f"{ADDITIONAL_CONFIG}: give one JSON object or {ADDITIONAL_CONFIG}.KEY VALUE, not both")
    config = dotted or _json_object(values.additional_config)
    passed_on = tokens if config_file is None else ["--config", config_file, *tokens]
    return VllmFlags(values, model, passed_on, config, _rejection_method(values.speculative_config, speculative))


def whole_number(text: str) -> int | None:
    """Return `text` as vLLM's `human_readable_int` reads it, None if that refuses it."""
    found = re.fullmatch(r"(\d+|\d+\.\d+(?=[kmgt]))([kmgtKMGT]?)", text.strip())
    if found is None:
        return None
    number, unit = found[1], _UNITS[found[2]]
    return int(float(number) * unit) if "." in number else int(number) * unit


def _spelled_out(flags: list[str]) -> list[str]:
    """Return the flags with dashes in their names; refuse shortened ones and options of `steerdec serve` itself."""
    spelled = []
    for flag in flags:
        if not flag.startswith("-") or re.match(r"-\d", flag) or " " in flag.partition("=")[0]:
            spelled.append(flag)  # a value
            continue
        if flag == "--":
            raise LaunchUsageError('"--": vLLM takes flags only')
        name, equals, value = flag.partition("=")
        head, dot, keys = name.partition(".")
        if head.startswith("--"):
            head = head.replace("_", "-")
        _refuse_shortened(head, name)
        spelled.append(head + dot + keys + equals + value)
    return spelled


def _refuse_shortened(head: str, written: str) -> None:
    if head in NAMES:
        return
    if head in _OWN:
        raise LaunchUsageError(f"{head} is an option of steerdec serve: give it as `{head} VALUE`, before any `--`")
    meant = sorted(name for name in NAMES.union(_OWN) if name.startswith(head))
    if meant and head not in ("-", "--"):
        raise LaunchUsageError(f"{written}: write the flag's name in full ({' or '.join(meant)})")


def _without_dotted(tokens: list[str], found: dict[str, Any], speculative: dict[str, Any]) -> list[str]:
    """Return `tokens` without `--additional-config.key value`, which goes into `found` as vLLM would read it.

    `--speculative-config.key value` goes into `speculative`, and stays for vLLM.

    vLLM takes every argument with a dot in its name for such a pair, whatever follows it.
    """
    left: list[str] = []
    rest = iter(tokens)
    for token in rest:
        name, equals, value = token.partition("=")
        if not token.startswith("-") or "." not in name:
            left.append(token)
            continue
        pair = [token]
        if not equals:
            if (following := next(rest, None)) is None:
                raise LaunchUsageError(f"{token}: expected one argument")
            value, pair = following, [token, following]
        head, _, keys = name.partition(".")
        if head == ADDITIONAL_CONFIG:
            _merge(found, keys, value)
        elif head in _SPECULATIVE_NAMES:
            _merge(speculative, keys, value)
            left += pair
        elif head in NAMES:
            raise LaunchUsageError(f"{name}: {head} does not take a dotted name")
        else:
            left += pair
    return left


def _merge(config: dict[str, Any], keys: str, text: str) -> None:
    """Set `a.b` (or, with `a.b+`, extend the list there) to what vLLM makes of `text`."""
    value: Any = text
    if keys.endswith("+"):
        keys, value = keys[:-1], text.split(",")
    else:
        try:
            value = json.loads(text)
        except ValueError:
            number = whole_number(text)
            value = text if number is None else number
    *path, last = keys.split(".")
    place = config
    for key in path:
        inner = place.get(key)
        if not isinstance(inner, dict):
            inner = place[key] = {}
        place = inner
    if isinstance(value, list) and isinstance(place.get(last), list):
        place[last] += value
    else:
        place[last] = value


def _without_config(tokens: list[str]) -> tuple[list[str], str | None]:
    """Return the tokens without `--config FILE`, and FILE; vLLM reads it only if the two are separate arguments."""
    left: list[str] = []
    files: list[str] = []
    rest = iter(tokens)
    for token in rest:
        if token == "--config":
            if (file := next(rest, None)) is None:
                raise LaunchUsageError("--config: expected one argument")
            files.append(file)
        elif token.startswith("--config="):
            files.append(token.partition("=")[2])
        else:
            left.append(token)
    if len(files) > 1:
        raise LaunchUsageError("--config: give one file")
    return left, files[0] if files else None


def _of_config_file(path: str) -> list[str]:
    """Return the file's content as flags, as vLLM reads it."""
    if not path.endswith((".yaml", ".yml")):
        raise LaunchUsageError(f"--config {path!r}: vLLM takes files whose names end in .yaml or .yml")
    try:
        config = yaml.safe_load(read_at_most(Path(path), _MAX_CONFIG_BYTES).decode())
    except OSError as e:
        raise LaunchUsageError(f"--config {path!r}: {e.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise LaunchUsageError(f"--config {path!r}: not valid YAML ({' '.join(str(e).split())})") from None
    if not isinstance(config, dict):
        raise LaunchUsageError(f"--config {path!r}: must hold `flag: value` lines")
    flags: list[str] = []
    for key, value in config.items():
        flag = f"--{key}"
        if isinstance(value, bool):
            negative = f"--no-{key}".replace("_", "-")
            flags += [flag] if value else [negative] if negative.replace("--no-", "--", 1) in _SWITCHES else []
        elif isinstance(value, list):
            flags += [flag, *map(str, value)] if value else []
        else:
            flags += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags


def _without_model(tokens: list[str]) -> tuple[list[str], str | None]:
    """Return the tokens without `--model NAME`, and NAME, which goes first in the command."""
    at = [i for i, token in enumerate(tokens) if token.partition("=")[0] == "--model"]
    if not at:
        return tokens, None
    if len(at) > 1:
        raise LaunchUsageError("--model: give one model")
    _, equals, name = tokens[at[0]].partition("=")
    end = at[0] + (1 if equals else 2)
    return tokens[: at[0]] + tokens[end:], name if equals else tokens[end - 1]


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise LaunchUsageError(f"{ADDITIONAL_CONFIG}: {text!r} is not a JSON object")
    return config


def _rejection_method(text: str | None, dotted: dict[str, Any]) -> str | None:
    """Return the rejection method in the flags; what is not a JSON object is left to vLLM's own parser."""
    try:
        config = {} if text is None else json.loads(text)
    except ValueError:
        config = {}
    found = dotted.get("rejection_sample_method") or (
        config.get("rejection_sample_method") if isinstance(config, dict) else None
    )
    return None if found is None else str(found)
