"""NaN and null."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from steerdec.common.json import nan_if_null, null_if_nan, nulls_if_nan, plain, write_json


def test_nan_and_infinities_become_null_and_nan_again() -> None:
    assert [null_if_nan(value) for value in (1.5, math.nan, math.inf, None)] == [1.5, None, None, None]
    back = nan_if_null(nulls_if_nan(np.array([1.23456789, np.nan]), digits=3))
    assert back[0] == 1.23
    assert math.isnan(back[1])


def test_a_nested_value_is_written_as_strict_json(tmp_path: Path) -> None:
    value = {"a": np.float64("nan"), "b": [np.int64(3), (0.1, math.nan)], "c": {"d": (0.1, 0.2)}}
    assert plain(value) == {"a": None, "b": [3, None], "c": {"d": [0.1, 0.2]}}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == plain(value)
