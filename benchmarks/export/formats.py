"""The formats that a run can be exported to."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final

from steerdec.common.errors import InvalidInputError

FORMATS: Final = {"parquet": "parquet", "inspect": "inspect_log", "every-eval-ever": "every_eval_ever"}


def export(folder: Path, to: str, out: Path | None) -> list[Path]:
    """Write a run in another format, by default into `FOLDER/export-FORMAT`; returns the files.

    Raises:
        InvalidInputError: no such format.
        SteerdecError: whatever the format's own `write` raises.
    """
    if to not in FORMATS:
        raise InvalidInputError(f'--to: "{to}" is not a format; allowed are {", ".join(FORMATS)}')
    write: Callable[[Path, Path], list[Path]] = import_module(f".{FORMATS[to]}", __package__).write
    return write(folder, out or folder / f"export-{to}")
