"""Weights that cannot be had are one plain line. That they can be had is seen by every test that runs the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerdec import models


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STEERDEC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(models.ModelError) as told:
        models.fetch()
    assert str(told.value) == f"SmolLM2-135M-Instruct: Not a directory: {tmp_path}/file/cache"


def test_a_name_that_the_system_does_not_take() -> None:
    with pytest.raises(models.ModelError, match=r"^(a{300}): File name too long: \1$"):
        models.fetch("a" * 300)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(models.ModelError, match=r"is a folder without config\.json, not a model$"):
        models.fetch(str(tmp_path))
