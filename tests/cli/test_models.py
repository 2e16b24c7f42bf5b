"""Weights that cannot be had are one plain line. That they can be had is seen by every test that runs the model."""

from __future__ import annotations

import subprocess
import sys
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


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name(name: str) -> None:
    with pytest.raises(models.ModelError, match=r"^MODEL: must not be empty$"):
        models.fetch(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(models.ModelError, match=r"is a folder without config\.json, not a model$"):
        models.fetch(str(tmp_path))


def test_a_full_disk_under_the_converted_weights(tmp_path: Path) -> None:
    """safetensors has an error of its own for it. Here a limit on the size of files stands for the disk's end."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom steerdec import models\n"
        "from tests.support.tiny_models import tiny_model\n"
        "model = tiny_model()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    models.save_weights(model, Path(sys.argv[1]))\n"
        "except models.ModelError as e:\n    print(e)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path}/model: the weights cannot be written (")
    assert "File too large" in line
