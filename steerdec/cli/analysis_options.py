"""Options that several analysis commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from steerdec.cli.options import number

# Filled in by `source` and `sampling`, which import torch.
SAMPLES = 4


MAX_TOKENS = 512


Run = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="Folder of a bench run; its texts are scored again.", show_default=False),
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
    typer.Option(metavar="NAME", help="Arm of RUN. Default: the arm that changes nothing.", show_default=False),
]


Limit = Annotated[
    int | None,
    typer.Option(min=1, max=10_000_000, metavar="N", help="Use N problems, or N responses of RUN.", show_default=False),
]


Samples = Annotated[
    int | None,
    typer.Option(min=1, max=100_000, metavar="K", help=f"Responses to each problem. Default: {SAMPLES}."),
]


Seed = Annotated[int | None, typer.Option(min=0, max=2**53, metavar="S", help="Seed. Default: 0.")]


MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, max=1_000_000, metavar="M", help=f"Longest response. Default: {MAX_TOKENS}."),
]


Temperature = Annotated[
    float | None,
    typer.Option(
        parser=number(0, 100), metavar="T", help="Sampling temperature; 0 is greedy. Default: 0.6 on embedded, else 1."
    ),
]


Grade = Annotated[
    Literal["correct", "incorrect"] | None,
    typer.Option(help="Use only responses with this grade.", show_default=False),
]


Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="float32, bfloat16, or float16. Default: the run's; else float32 without a GPU, the model's own with one.",
    ),
]


Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="torch device. Default: cuda if available, else cpu.")
]


def source(run: Path | None, **named: Any) -> Any:
    """Return the source with every default filled in. Raises InputError, and the errors of `resolve`."""
    from steerdec.analysis.traces.source import Source, resolve

    return resolve(Source(run=run, **named))
