"""`steerdec arms`."""

from __future__ import annotations

from typing import Annotated

import typer

from steerdec.cli.options import exit_on_known_errors

arms_app = typer.Typer(no_args_is_help=True, help="The arm sets that `steerdec bench run --arms` knows.")


@arms_app.command("list")
def list_sets() -> None:
    """List the built-in arm sets."""
    from steerdec.benchmarks.design.arm_sets import BUILT_IN, load_arm_set

    for name in BUILT_IN:
        print(f"{name:10} {' '.join(load_arm_set(name).about.split())}")


@arms_app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="quick, figure3, causal or branching.")]) -> None:
    """Print a built-in arm set as YAML, to edit and give to `steerdec bench run --arms FILE`.

    Example:

    steerdec arms show causal > arms.yaml
    """
    from steerdec.benchmarks.design.arm_sets import built_in_text

    with exit_on_known_errors():
        text = built_in_text(name)
    print(text, end="")
