"""`steerdec bench`. Each command imports what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from steerdec.cli import options
from steerdec.cli.options import CONCURRENCY, MAX_TOKENS, TIMEOUT_S, UsageError, exit_on_known_errors, fail, number

SAMPLES = 16

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Does steering a model's forking tokens change how often it is right? Run arms, grade, compare, report.",
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run; resumed if it exists.")]


@bench_app.command()
def run(
    out: Out,
    problems: options.Problems = None,
    endpoint: options.Endpoints = None,
    model: options.Model = None,
    arms: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="quick, figure3, causal, or a YAML/JSON file. Default: quick."),
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
            metavar="RUN.JSON", help="Run once more what this file records; goes with --out, and where to run it."
        ),
    ] = None,
    concurrency: options.Concurrency = CONCURRENCY,
    timeout: options.Timeout = TIMEOUT_S,
    dtype: options.Dtype = None,
) -> None:
    """Sample every problem under every arm, and grade the answers.

    The samples go to DIR/samples.jsonl as they come. Stopped in whatever way, the same command goes on where it
    stopped; samples that failed on their way are made again. `steerdec bench report DIR` shows the result.

    An API key is taken from the variable STEERDEC_API_KEY.

    Examples:

    steerdec bench run --problems embedded --model SmolLM2-135M-Instruct --out runs/first

    steerdec bench run --problems aime25.jsonl --endpoint http://gpu1:8000 --endpoint http://gpu2:8000
    --arms causal --threshold qwen3.json --samples 32 --max-tokens 28672 --out runs/aime25

    steerdec bench run --repeat runs/first/run.json --out runs/again
    """
    from steerdec.benchmarks.run import session
    from steerdec.benchmarks.run.endpoint_health import Retry
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
            )
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
    if not samples.exists():
        return ""
    return f"the samples so far are in {out}; the same command continues from there"


@bench_app.command()
def grade(folder: Folder) -> None:
    """Grade the samples of a run again, without generating; the problems must be where they were.

    samples.jsonl is replaced as a whole when all grades are there.
    """
    from steerdec.benchmarks.run import regrade

    with exit_on_known_errors("nothing was changed"):
        outcome = regrade.grade_again(folder)
    next_command = f"steerdec bench report {quote(str(folder))}"
    print(f"{outcome.samples} samples graded, {outcome.changed} grades changed; next: {next_command}")


@bench_app.command()
def report(folder: Folder) -> None:
    """Write DIR/summary.json and the report, and print the result.

    The report is DIR/report.html and DIR/report.md; DIR/differences.svg and .pdf are its figure, and DIR/tables.tex
    its tables, for papers. An unfinished run is read as far as it is, and its report says that it is interim.
    """
    from rich.console import Console

    from steerdec.benchmarks.report.table import print_table
    from steerdec.benchmarks.report.write import write_report
    from steerdec.benchmarks.verdicts.summary import write_summary
    from steerdec.records.summary import read_summary

    with exit_on_known_errors():
        summary = read_summary(write_summary(folder))
        page = write_report(folder, summary)
        print_table(summary, Console())
    print(page)


@bench_app.command()
def compare(
    first: Folder,
    second: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of another run.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("comparison.html"),
) -> None:
    """Test whether two runs, of two models as a rule, respond differently to steering, and write a page.

    Everything is computed from the samples of both. Problems are paired; runs without a common problem are refused,
    and every other setting that differs (dtype, temperature, threshold, prompt, length) is named on the page.
    """
    from steerdec.benchmarks.report.compare import write_comparison

    with exit_on_known_errors():
        path = write_comparison(first, second, out)
    print(path)


@bench_app.command()
def view(
    folder: Folder,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to listen on; 0: any.")] = 8080,
) -> None:
    """Show a run in the browser, also while it is being made: progress, samples with their tokens, and the report.

    The scores of an unfinished run are shown only on request. Ctrl-C ends it.

    Example:

    steerdec bench view runs/first
    """
    from steerdec.benchmarks.view.serve import serve

    with exit_on_known_errors():
        serve(folder, host, port)


@bench_app.command()
def export(
    folder: Folder,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="parquet, inspect, or every-eval-ever.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the files. Default: DIR/export-FORMAT.")
    ] = None,
) -> None:
    """Write the samples and scores of a run in a format that other tools read.

    parquet: one table with a row per sample. inspect: logs for `inspect view`, one per arm; needs the package
    inspect-ai. every-eval-ever: a record and a row per sample in the schema of that name.

    Examples:

    steerdec bench export runs/first --to parquet

    steerdec bench export runs/first --to inspect && inspect view --log-dir runs/first/export-inspect
    """
    from steerdec.benchmarks.export.formats import export as export_run

    with exit_on_known_errors():
        paths = export_run(folder, to, out)
    for path in paths:
        print(path)


@bench_app.command()
def plan(
    run: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Plan from what the samples of this run show.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(parser=number(0, 100), metavar="POINTS", help="True difference to plan for.")
    ] = None,
    problems: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, metavar="N", help="Number of problems. Default: 60, or as the run."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, metavar="K", help="Samples of each problem. Default: 32, or as the run."),
    ] = None,
    arms: Annotated[str, typer.Option(metavar="NAME|FILE", help="quick, figure3, causal, or a file.")] = "causal",
    accuracy: Annotated[
        float, typer.Option(parser=number(0, 1), metavar="P", help="Expected score of the baseline.")
    ] = 0.71,
    mean_tokens: Annotated[
        float | None, typer.Option(parser=number(1, 1e6), metavar="L", help="Expected length of an answer.")
    ] = None,
    tokens_per_s: Annotated[
        float | None, typer.Option(parser=number(0.001, 1e9), metavar="R", help="What all endpoints generate together.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(parser=number(0, 1e6), metavar="PRICE", help="What all endpoints cost per hour.")
    ] = None,
) -> None:
    """Say what a run of this size can detect, and what it costs, before it is made.

    With --from and --target: the chance of each verdict, by the noise and the lengths of an earlier run.

    Examples:

    steerdec bench plan --problems 60 --samples 32 --accuracy 0.7 --mean-tokens 12000 --tokens-per-s 5000

    steerdec bench plan --from runs/pilot --target 5 --problems 60 --samples 32 --tokens-per-s 5000
    """
    import math

    from steerdec.benchmarks.design import arm_sets, power

    if (run is None) != (target is None):
        raise typer.BadParameter("--from and --target go together: the run to plan from, the difference to plan for")
    if run is not None and target is not None:
        with exit_on_known_errors():
            _plan_from(run, target / 100, problems, samples, tokens_per_s, price_per_hour)
        return
    problems, samples = problems or 60, samples or 32
    with exit_on_known_errors():
        count = len(arm_sets.load_arm_set(arms).arms)
        spread = power.usual_sd(accuracy)  # a baseline near 0 or 1 leaves the problems less room to differ
        expected = power.plan(
            problems, samples, count, p_bar=accuracy, p_sd=spread, mean_tokens=mean_tokens or math.nan
        )
    these, like_these = 100 * expected.mde_these_problems, 100 * expected.mde_problems_like_these
    print(f"{problems} problems x {samples} samples x {count} arms = {expected.samples} samples")
    print(f"smallest difference seen with 80% power, these problems:      {these:.1f} points")
    print(f"smallest difference seen with 80% power, problems like these: {like_these:.1f} points")
    print("of one arm against the baseline: one two-sided 5% test, before Holm's correction over the claims")
    print(
        f"assumed: independent arms, scores of problems around {100 * accuracy:g}% with standard deviation "
        f"{100 * spread:.0f}, effects with standard deviation {100 * power.EFFECT_SD:g} points"
    )
    if mean_tokens is not None:
        print(f"expected tokens: {expected.tokens:.3g}")
        if tokens_per_s is not None:
            hours = expected.tokens / tokens_per_s / 3600
            print(f"expected time: {hours:.1f} h")
            if price_per_hour is not None:
                print(f"expected cost: {hours * price_per_hour:.2f}")
    elif tokens_per_s is not None:
        print("expected time: unknown without --mean-tokens", file=sys.stderr)


def _plan_from(
    run: Path, target: float, problems: int | None, samples: int | None, tokens_per_s: float | None, price: float | None
) -> None:
    from steerdec.benchmarks.design import from_run

    seen = from_run.observe(run)
    assumed, points = seen.assumptions, 100 * target
    print(f"from {run}: {seen.pair[0]} - {seen.pair[1]}, the noisiest of the claimed comparisons")
    for line in (
        f"a true difference of {points:g} points, varying between problems by {100 * assumed.effect_sd:.1f} points",
        f"sampling noise of one pair of samples: {100 * assumed.noise_variance**0.5:.0f} points",
        f"{assumed.claims} claims share the 5%; equal means within {100 * assumed.delta:g} points",
        f"{seen.arms} arms of {seen.mean_tokens:.0f} tokens a sample; all of them stop with this comparison",
        "looks at 1/8, 1/4, 1/2 and all of the samples",
    ):
        print(f"assumed: {line}")
    for n, k in from_run.sizes(problems or seen.n_problems, samples or seen.samples):
        found = from_run.chances(seen, target, n, k)
        tokens = found.share * n * k * seen.arms * seen.mean_tokens
        line = (
            f"{n} problems x {k} samples: holds {found.holds:.0%}, no effect {found.no_effect:.0%}, "
            f"reversed {found.reversed:.0%}, undecided {found.undecided:.0%}; "
            f"{tokens:.3g} tokens expected ({found.share:.0%} of the planned)"
        )
        if tokens_per_s is not None:
            hours = tokens / tokens_per_s / 3600
            line += f", {hours:.1f} h"
            if price is not None:
                line += f", cost {hours * price:.2f}"
        print(line)
