"""`steerdec bench run`: sample every problem under every arm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from steerdec.cli import options
from steerdec.cli.options import CONCURRENCY, MAX_TOKENS, TIMEOUT_S, UsageError, exit_on_known_errors, fail, number
from steerdec.common.files import exists

SAMPLES = 16
LOOKS = "1/8,1/4,1/2,3/4,1"

Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run; resumed if it exists.")]


def run(
    out: Out,
    problems: options.Problems = None,
    endpoint: options.Endpoints = None,
    model: options.Model = None,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="quick, figure3, causal, branching, or a YAML/JSON file. Default: quick."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, metavar="K", help=f"Samples of each problem in each arm. Default: {SAMPLES}."),
    ] = None,
    limit: options.Limit = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**53, metavar="S", help="Seed of the whole run. Default: 0.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, metavar="M", help=f"Longest answer. Default: {MAX_TOKENS}."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(parser=number(0.01, 100), metavar="T", help="Base temperature. Default: the arm set's, else 1."),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="NATS|FILE",
            help="Entropy above which a token is a fork: a number, or a file by `steerdec calibrate`. "
            "Default: the server's calibration, else the arm set's, else 0.672.",
        ),
    ] = None,
    prompt: options.Prompt = None,
    thinking: options.Thinking = None,
    force: Annotated[bool, typer.Option("--force", help="Allow evaluating on the calibration problems.")] = False,
    repeat: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN.JSON",
            help="Run once more what this file records, into --out. --endpoint or --model only to run it elsewhere.",
        ),
    ] = None,
    looks: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTIONS",
            help="Fractions of the samples after which claims are judged and arms that no claim still needs are "
            f"dropped; 1: only at the end. Default: {LOOKS}.",
        ),
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add samples, problems or arms to the run in --out.")
    ] = False,
    show_scores: Annotated[
        bool,
        typer.Option(
            "--show-scores", help="Show the scores so far. A run that is stopped because of them has no valid verdict."
        ),
    ] = False,
    concurrency: options.Concurrency = CONCURRENCY,
    timeout: options.Timeout = TIMEOUT_S,
    dtype: options.Dtype = None,
) -> None:
    """Sample every problem under every arm, and grade the answers.

    The samples go to DIR/samples.jsonl as they come. After any stop, the same command continues where it stopped;
    samples that failed are made again. At the planned looks, arms that no claim still needs are dropped.
    `steerdec bench report DIR` shows the result.

    An API key is taken from the variable STEERDEC_API_KEY.

    Examples:

    steerdec bench run --problems embedded --model SmolLM2-135M-Instruct --out runs/first

    steerdec bench run --problems aime25.jsonl --endpoint http://gpu1:8000 --endpoint http://gpu2:8000
    --arms causal --threshold qwen3.json --samples 32 --max-tokens 28672 --out runs/aime25

    steerdec bench run --problems embedded --model SmolLM2-135M-Instruct --samples 32 --extend --out runs/first

    steerdec bench run --problems larger.jsonl --endpoint http://gpu1:8000 --extend --out runs/mine

    steerdec bench run --repeat runs/first/run.json --out runs/again
    """
    from steerdec.benchmarks.run import session
    from steerdec.benchmarks.run.endpoint_health import Retry
    from steerdec.benchmarks.run.looks import parse_fractions
    from steerdec.benchmarks.run.targets import Target

    what_to_run: dict[str, Any] = {
        "problems": problems,
        "arms": arms,
        "samples": samples,
        "limit": limit,
        "seed": seed,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "threshold": threshold,
        "prompt": prompt,
        "thinking": thinking,
        "looks": looks,
        "extend": extend or None,
    }
    with exit_on_known_errors(lambda: _how_to_continue(out)):
        if repeat is not None:
            given = [f"--{name.replace('_', '-')}" for name, value in what_to_run.items() if value is not None]
            if given:
                raise UsageError(f"{', '.join(given)}: --repeat takes this from {repeat}")
            request, old = session.repeated_request(repeat)
            if not endpoint and model is None:
                endpoint = list(old.endpoints) if old.launch is None else None
                model, dtype = (None, None) if old.launch is None else (old.launch.model, dtype or old.launch.dtype)
        elif problems is None:
            raise UsageError("--problems is missing: the name of a problem set or a JSONL file")
        else:
            request = session.read_request(
                problems,
                arms or "quick",
                limit=limit,
                prompt=prompt,
                thinking=thinking,
                samples=samples or SAMPLES,
                seed=seed or 0,
                temperature=temperature,
                max_tokens=max_tokens or MAX_TOKENS,
                threshold=threshold,
                force=force,
                look_fractions=parse_fractions(LOOKS if looks is None else looks),
                extend=extend,
            )
        request = replace(request, show_scores=show_scores)
        urls = options.one_source(endpoint, model, dtype)
        target = Target(
            endpoints=urls,
            model=model,
            dtype=dtype,
            concurrency=concurrency,
            timeout_s=timeout,
            api_key=options.api_key(),
        )
        finished = session.run(request, target, options.out_folder(out), Retry(seed=request.seed))
    if finished.failed:
        fail(f"{finished.failed} of {finished.samples} samples failed (`error` in {out}/samples.jsonl); "
             "the same command makes them again", 1)  # fmt: skip
    print(f"{finished.samples} samples in {out}; next: steerdec bench report {quote(str(out))}")


def _how_to_continue(out: Path) -> str:
    samples = out / "samples.jsonl"
    if not exists(samples):
        return ""
    return f"the samples so far are in {out}; the same command continues from there"
