"""The server's temporary folder, and what is named after it: gone with its launcher, also with one that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from steerdec.server.launch.scratch import remove_stale, scratch
from steerdec.telemetry.lanes import SHARED_MEMORY


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def ranks_memory(folder: Path) -> Path:
    """What vLLM's ranks on a CPU leave in shared memory, named after a file in their temporary folder."""
    group = folder / f"vllm_dist_{uuid.uuid4().hex}"
    group.touch()
    memory = SHARED_MEMORY / f"{group.name}-tp:0-[0-1]-cpushm_0"
    memory.touch()
    return memory


def test_the_ranks_memory_goes_with_its_server_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    others = ranks_memory(tmp_path / "elsewhere")
    try:
        with scratch() as environment:
            memory = ranks_memory(Path(environment["TMPDIR"]))
            with scratch():
                pass
            assert memory.exists()
        assert not memory.exists()
        assert others.exists()
    finally:
        others.unlink()


def test_it_holds_what_the_server_leaves_and_goes_with_it(tmp_path: Path) -> None:
    with scratch() as environment:
        folder = Path(environment["TMPDIR"])
        assert folder.parent == tmp_path
        (folder / "socket").touch()
        with scratch() as second:  # of another server: neither takes the other's for a leftover
            assert second["TMPDIR"] != environment["TMPDIR"]
        assert (folder / "socket").exists()
        assert Path(environment["TORCHINDUCTOR_CACHE_DIR"]).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_that_of_a_killed_launcher_goes_at_the_next_start(tmp_path: Path) -> None:
    code = (
        "from steerdec.server.launch.scratch import scratch\n"
        "with scratch() as environment: print(environment['TMPDIR'], flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().decode().strip())
        remove_stale()
        assert folder.is_dir()
        memory = ranks_memory(folder)
        process.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    remove_stale()
    assert not memory.exists()
    assert list(tmp_path.iterdir()) == []
