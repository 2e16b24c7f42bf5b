"""Options that several commands share, and how a failure becomes one line and an exit status."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from steerdec.common.errors import InvalidInputError, SteerdecError, reason_of
from steerdec.common.files import exists

API_KEY_VARIABLE = "STEERDEC_API_KEY"
MAX_TOKENS = 2048
CONCURRENCY = 64
TIMEOUT_S = 3600.0


def number(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    """Return a parser of numbers in that range. Unlike typer's own `min` and `max`, it refuses nan."""

    def parse(text: str | float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise typer.BadParameter(f'"{text}" is not a number{unit and " of "}{unit} from {low:g} to {high:g}')
        return value

    return parse


Problems = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="A problem set by name, hub:OWNER/NAME, gym:TASK, or a JSONL or Parquet file with problem, answer.",
        show_default=False,
    ),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="A running `steerdec serve`, as http://HOST:PORT. Repeat for further servers of the same model.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Start a server for this model and stop it afterwards: a folder, a hub id, or the embedded "
        "SmolLM2-135M-Instruct.",
        show_default=False,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="Dtype of --model. Default: float32 without a GPU, so that A/A equals B exactly; else the model's own.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, max=1_000_000, metavar="N", help="Use N problems, drawn by a hash.", show_default=False),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="TEMPLATE",
        help="Prompt template: aime, math, number, gym, few-shot. Default: the problem set's own.",
        show_default=False,
    ),
]
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking", help="Turn the model's thinking mode on or off. Default: as its chat template does."
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Concurrent requests per endpoint.")]
Timeout = Annotated[
    float,
    typer.Option(
        parser=number(1, 86_400, "seconds"), metavar="S", help="Seconds a request may take before it is sent again."
    ),
]


class UsageError(InvalidInputError):
    """An option is missing or cannot be used."""


def one_source(endpoints: list[str] | None, model: str | None, dtype: str | None) -> tuple[str, ...]:
    """Check where samples are to come from; return the endpoints' URLs, none if a model is to be served.

    Raises:
        UsageError: neither or both are given, or one cannot be used.
    """
    from steerdec.benchmarks.run.endpoints import endpoint_url, same_server
    from steerdec.models import ModelError, fetch

    if bool(endpoints) == (model is not None):
        raise UsageError("give either --endpoint URL (of a running `steerdec serve`) or --model MODEL")
    if dtype is not None and model is None:
        raise UsageError("--dtype goes with --model")
    if model is not None and (exists(model) or model.startswith((".", "/", "~")) or model.count("/") > 1):
        try:
            fetch(model)  # a folder is looked at only; hub ids are left to the server
        except ModelError as e:
            raise UsageError(
                f"--model: {e}; allowed are a folder with a model, a hub id or SmolLM2-135M-Instruct"
            ) from None
    try:
        urls = tuple(endpoint_url(url) for url in endpoints or ())
    except ValueError as e:
        raise UsageError(f"--endpoint: {e}") from None
    for one, two in combinations(urls, 2):
        if same_server(one, two):
            raise UsageError(f"--endpoint: {one} and {two} are the same server; give it once")
    return urls


def api_key() -> str | None:
    return os.environ.get(API_KEY_VARIABLE) or None


def out_folder(out: Path) -> Path:
    """Return `out` if it is, or can become, a folder to write in. Raises UsageError."""
    parent = next(p for p in (out.absolute(), *out.absolute().parents) if exists(p))
    if not parent.is_dir():
        raise UsageError(f"--out: {parent} is a file, not a folder")
    if max(len(os.fsencode(part)) for part in out.absolute().parts) > os.pathconf(parent, "PC_NAME_MAX"):
        raise UsageError(f"--out: a name in {out} is too long")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"--out: {parent} cannot be written in")
    return out


def fail(message: object, status: int) -> NoReturn:
    """Print one plain line on stderr and exit: status 2 for wrong usage, 1 for a failure."""
    print(f"steerdec: {' '.join(str(message).split())}", file=sys.stderr)
    raise typer.Exit(status)


@contextmanager
def exit_on_known_errors(hint: str | Callable[[], str] = "") -> Iterator[None]:
    """Turn a known error into one plain line and its exit status; `hint` says how to continue a stopped command.

    SIGTERM is handled like Ctrl-C meanwhile, so that a server started for the command is stopped.
    """

    def with_hint(message: object) -> str:
        how = hint() if callable(hint) else hint
        return f"{message}; {how}" if how else str(message)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except SteerdecError as e:
        fail(with_hint(e) if e.resumable else e, e.exit_status)
    except OSError as e:
        fail(with_hint(reason_of(e) if e.filename is None else f"{e.filename}: {reason_of(e)}"), 1)
    except KeyboardInterrupt:
        fail(with_hint("stopped"), 130)
    finally:
        signal.signal(signal.SIGTERM, before)
