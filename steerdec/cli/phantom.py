"""`steerdec model phantom`: its options and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steerdec.cli.options import fail
from steerdec.common.errors import reason_of


def phantom(
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="claim-true, reversed, null, dose-only, place-only, misleading, or thinking; see docs/phantom.md.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must not exist yet.")],
    fork_right: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Probability at temperature 1 that a token that decides goes right, between 0 and 1. Default: that "
            "of the kind.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a small model whose scores are known exactly, to try the benchmark on.

    A phantom is a llama whose next token depends on the last one alone, so every number that a run measures has a
    closed form. DIR holds the model, problems.jsonl to test it on, calibration.jsonl to calibrate it on, arms.yaml with
    the arms, and truth.json with what they have to come out at. --fork-right changes how hard the problems are; the
    claims in truth.json are then what they are at that value.

    Example:

    steerdec model phantom --kind claim-true --out phantoms/claim-true

    steerdec bench run --model phantoms/claim-true --problems phantoms/claim-true/problems.jsonl
    --arms phantoms/claim-true/arms.yaml --max-tokens 32 --samples 4 --out runs/phantom
    """
    from steerdec.phantom import folder

    try:
        truth = folder.write_phantom(folder.kind_named(kind), out, fork_right)
    except folder.PhantomError as e:
        fail(e, 2)
    except (OSError, UnicodeEncodeError) as e:  # tokenizers takes paths in UTF-8 only
        fail(f"--out: {out} cannot be written ({reason_of(e)})", 1)
    print(f"{out}: {truth['about']}")
    for arm, known in truth["arms"].items():
        print(f"{arm:15}{100 * known['avg_at_k']:6.1f}%   dose {known['dose_nats']:+.4f} nats per token")
    for claim, known in truth["claims"].items():
        print(f"{claim}: {known['verdict']} ({100 * known['difference']:+.1f} points)")
