"""Options that several analysis commands share, and how their failures are shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from steerdec.cli import options
from steerdec.cli.options import fail, number, whole

# Filled in by `source` and `sampling`, which import torch.
SAMPLES = 4


MAX_TOKENS = 512


Run = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="Folder of a bench run, whose texts are scored again.", show_default=False),
]


Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Folder, hub id, or the embedded SmolLM2-135M-Instruct. Default with RUN: the model of the run.",
        show_default=False,
    ),
]


ArmName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Arm of RUN. Default: the one in which nothing is changed.", show_default=False),
]


Limit = Annotated[
    int | None,
    typer.Option(
        parser=whole(1, 10_000_000), metavar="N", help="Use N problems, or N responses of RUN.", show_default=False
    ),
]


Samples = Annotated[
    int | None,
    typer.Option(parser=whole(1, 100_000), metavar="K", help=f"Responses to each problem. Default: {SAMPLES}."),
]


Seed = Annotated[int | None, typer.Option(parser=whole(0, 2**53), metavar="S", help="Seed. Default: 0.")]


MaxTokens = Annotated[
    int | None,
    typer.Option(parser=whole(1, 1_000_000), metavar="M", help=f"Longest response. Default: {MAX_TOKENS}."),
]


Temperature = Annotated[
    float | None,
    typer.Option(
        parser=number(0, 100), metavar="T", help="Of the sampling; 0 is greedy. Default: 0.6 on embedded, else 1."
    ),
]


Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="float32, bfloat16 or float16. Default: the run's; else float32 without a GPU, the model's own with one.",
    ),
]


Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="Of torch. Default: cuda where there is one, else cpu.")
]


@contextmanager
def told_plainly(interrupted: str = "") -> Iterator[None]:
    """As the benchmark's, with the analyses' own failures: one line, and an exit status."""
    from steerdec.common.errors import AnalysisError, InputError
    from steerdec.models import ModelError

    with options.told_plainly(interrupted):
        try:
            yield
        except InputError as e:
            fail(e, 2)
        except (AnalysisError, ModelError) as e:
            fail(f"{e}; {interrupted}" if interrupted else e, 1)


def source(run: Path | None, **named: Any) -> Any:
    """The source, every default filled in. Raises InputError and what `resolve` does."""
    from steerdec.analysis.traces.source import Source, resolve

    return resolve(Source(run=run, **named))
