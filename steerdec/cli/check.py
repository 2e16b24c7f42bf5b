"""`steerdec check`: its options, its lines of progress, and its exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steerdec.cli.options import exit_on_known_errors, fail


def check(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="Folder or Hugging Face id, before any flag. Default: the embedded SmolLM2-135M-Instruct."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer draws and requests, no phantom: about two minutes.")
    ] = False,
    minutes: Annotated[
        int, typer.Option(min=1, max=600, metavar="N", help="What is not finished by then has failed.")
    ] = 10,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write everything measured as JSON.", show_default=False),
    ] = None,
) -> None:
    """Check on this machine, with MODEL and vLLM's flags, that steering is exact and what it costs.

    In ten minutes: the kernel against the reference, A/A bit for bit, the distribution that is really sampled,
    telemetry against full log-probabilities, launches and synchronization of a step, tokens/s with and without
    steering, and a phantom whose answers are known. Prints a table of what was measured and how much is allowed.
    Nothing else should run on the machine, or figures of speed stay undecided.

    Flags that steerdec does not know are vLLM's, as for `steerdec serve`. The exit status is 1 if anything falls short.

    Examples:

    steerdec check

    steerdec check Qwen/Qwen3-8B --max-model-len 8192 --out check.json
    """
    import sys
    import tempfile
    import time

    flags = list(ctx.args)
    if model is not None and model.startswith("-"):  # no MODEL, and the first of vLLM's own flags in its place
        flags, model = [model, *flags], None
    if out is not None and not out.parent.is_dir():
        fail(f"--out: {out.parent} is not a folder", 2)
    began_s = time.monotonic()

    def announce(text: str) -> None:
        print(f"[{time.monotonic() - began_s:3.0f} s] {text}", file=sys.stderr, flush=True)

    with exit_on_known_errors():
        from steerdec.check import report as reports
        from steerdec.check.part import Settings
        from steerdec.check.run import run
        from steerdec.server.launch.errors import LaunchError, LaunchUsageError

        settings = Settings(model, flags, quick)
        _, name = tempfile.mkstemp(prefix="steerdec-check-", suffix=".log")
        log = Path(name)
        announce(f"what vLLM prints goes to {log}")
        try:
            found = run(settings, log, announce, limit_s=60.0 * minutes)
        except LaunchError as e:
            fail(e, 2 if isinstance(e, LaunchUsageError) else 1)
        reports.print_table(found)
        if out is not None:
            reports.write(out, found, settings, time.monotonic() - began_s)
        print(reports.summary(found))
    for result in found.failed:
        print(f"steerdec check: {result.check}: {result.measured}; must be: {result.limit}", file=sys.stderr)
    if found.failed:
        raise typer.Exit(1)
    log.unlink()
