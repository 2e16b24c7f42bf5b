"""Options that several benchmark commands share, and how their failures are told."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

API_KEY_VARIABLE = "STEERDEC_API_KEY"
MAX_TOKENS = 2048
CONCURRENCY = 64
TIMEOUT_S = 3600.0


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser for whole numbers of that range."""

    def parse(text: str | int) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise typer.BadParameter(f'"{text}" is not a whole number from {low} to {high}')
        return value

    return parse


def number(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    """A parser for numbers of that range."""

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
        metavar="NAME|FILE", help="Built-in problem set, or a JSONL file of id, problem, answer.", show_default=False
    ),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="A running `steerdec serve`, as http://HOST:PORT. Give it again for further ones of the same model.",
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
        help="Of --model. Default: float32 without a GPU, so that A/A equals B exactly; else the model's own.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(parser=whole(1, 1_000_000), metavar="N", help="Use N problems, drawn by a hash.", show_default=False),
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
        "--thinking/--no-thinking", help="Switch the model's thinking mode. Default: as its chat template does."
    ),
]
Concurrency = Annotated[
    int, typer.Option(parser=whole(1, 10_000), metavar="N", help="Requests at once, to each endpoint.")
]
Timeout = Annotated[
    float,
    typer.Option(
        parser=number(1, 86_400, "seconds"), metavar="S", help="Seconds a request may take before it is sent again."
    ),
]


class UsageError(ValueError):
    """Something was asked for wrongly; the message is one line."""


def one_source(endpoints: list[str] | None, model: str | None, dtype: str | None) -> tuple[str, ...]:
    """The endpoints' URLs, checked; none if a model is to be served. Raises UsageError."""
    from steerdec.benchmarks.run.endpoints import endpoint_url
    from steerdec.models import ModelError, fetch

    if bool(endpoints) == (model is not None):
        raise UsageError("give either --endpoint URL (of a running `steerdec serve`) or --model MODEL")
    if dtype is not None and model is None:
        raise UsageError("--dtype goes with --model")
    if model is not None and (Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") > 1):
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
    if len(set(urls)) < len(urls):
        raise UsageError("--endpoint: the same URL was given twice")
    return urls


def api_key() -> str | None:
    return os.environ.get(API_KEY_VARIABLE) or None


def out_folder(out: Path) -> Path:
    """`out` if it is, or can become, a folder to write in. Raises UsageError."""
    parent = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not parent.is_dir():
        raise UsageError(f"--out: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"--out: {parent} cannot be written in")
    return out


def fail(message: object, status: int) -> NoReturn:
    """One plain line on stderr; status 2 for wrong usage, 1 for a failure."""
    print(f"steerdec: {' '.join(str(message).split())}", file=sys.stderr)
    raise typer.Exit(status)


@contextmanager
def told_plainly(interrupted: str = "") -> Iterator[None]:
    """Turn what may go wrong into one line and an exit status; `interrupted` says how to go on after Ctrl-C.

    SIGTERM is taken like Ctrl-C meanwhile, so that a server started for the run is stopped.
    """
    from steerdec.benchmarks.calibration.calibrate import TooFewTokensError
    from steerdec.benchmarks.run.dispatch import NoEndpointLeftError, NoGoodAnswerError
    from steerdec.benchmarks.run.endpoints import EndpointError
    from steerdec.benchmarks.run.local_server import ServerError
    from steerdec.benchmarks.run.preflight import PreflightError
    from steerdec.common.journal import JournalError
    from steerdec.grading.pool import GradingError

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except ValueError as e:  # ArmError, ProblemError, CalibrationError, SettingsError, UsageError, ...
        fail(e, 2)
    except (NoEndpointLeftError, NoGoodAnswerError, GradingError, JournalError, OSError) as e:
        fail(f"{e}; {interrupted}" if interrupted else e, 1)
    except (PreflightError, ServerError, EndpointError, TooFewTokensError) as e:
        fail(e, 1)
    except KeyboardInterrupt:
        fail(f"stopped; {interrupted}" if interrupted else "stopped", 130)
    finally:
        signal.signal(signal.SIGTERM, before)
