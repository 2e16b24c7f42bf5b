"""`steerdec bench`. Each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from steerdec.cli.bench_plan import plan
from steerdec.cli.bench_run import run
from steerdec.cli.options import exit_on_known_errors

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Does steering a model's forking tokens change how often it is right? Run arms, grade, compare, report.",
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")]

bench_app.command()(run)


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
    from steerdec.records.folder import load_run
    from steerdec.records.summary import read_summary

    with exit_on_known_errors():
        load_run(folder)  # says what is wrong with run.json before anything is computed or written
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
    """Show a run in the browser, also while it is under way: progress, samples with their tokens, and the report.

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


bench_app.command()(plan)
