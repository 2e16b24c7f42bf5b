"""JSON has no NaN: here a number that is not known is null, and NaN again once it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from steerdec.common.files import write_atomically

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


def null_if_nan(value: float | None, digits: int | None = None) -> float | None:
    """Return a finite number as it is, or rounded to `digits` significant digits; NaN and infinities become None."""
    if value is None or not math.isfinite(value):
        return None
    return value if digits is None else float(f"{value:.{digits}g}")


def nulls_if_nan(values: Sequence[float] | Floats | Singles, digits: int | None = None) -> list[float | None]:
    """Apply `null_if_nan` to each value; a list, as JSON takes it."""
    numbers: list[float] = np.asarray(values, dtype=np.float64).tolist()
    if digits is None:
        return [value if math.isfinite(value) else None for value in numbers]
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in numbers]


def nan_if_null(values: Sequence[float | None]) -> Floats:
    """Return the values of a JSON list as float64, null as NaN; shape [len(values)]."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def plain(value: Any) -> Any:
    """Return `value` as JSON takes it, all the way down: NumPy scalars as Python's, NaN as None.

    A tuple of numbers that holds a NaN, such as an interval that could not be computed, becomes None as a whole.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and any(isinstance(item, float) and math.isnan(item) for item in value):
        return None
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return null_if_nan(value) if isinstance(value, float) else value


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """Write `value`, made `plain`, to `path`: the whole file or, on failure, none of it.

    Raises:
        FileError: the file cannot be written.
    """
    write_atomically(path, json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


# Fields of a pydantic model that take NaN, and hold None for it.
Number = Annotated[float | None, BeforeValidator(plain)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(plain)]
