"""What pip may install beside a vLLM that is already there: `python constraints.py PINS > constraints.txt`.

Prints a constraint for every package: the ones of this Python stay at the version they have, those that are missing
come at the version that PINS (a requirements file) names. `pip install --constraint` then adds what is missing and
fails, instead of changing vLLM or torch, where that is not enough.
"""

from __future__ import annotations

import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def constraints(pins: str) -> list[str]:
    """Lines of a constraints file, sorted by name; `pins` is the text of a requirements file.

    Raises:
        InvalidRequirement: a line of it is none.
    """
    lines = {}
    for line in pins.splitlines():
        if text := line.partition("#")[0].strip():
            pinned = Requirement(text)
            lines[canonicalize_name(pinned.name)] = f"{pinned.name}{pinned.specifier}"
    installed = {}
    for found in distributions():  # in the order of sys.path: the first of a name is the one that is imported
        installed.setdefault(canonicalize_name(found.name), f"{found.name}=={found.version}")
    return [line for _, line in sorted((lines | installed).items())]


if __name__ == "__main__":
    print("\n".join(constraints(Path(sys.argv[1]).read_text("utf-8"))))
