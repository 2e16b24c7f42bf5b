"""How much memory scoring may use, and on which device."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerdec.analysis.traces.loading import free_host_bytes, load
from steerdec.common.errors import InputError

GIB = 1 << 30


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 12 * GIB),  # no cgroup: the machine's, not a constant
        ({"memory.max": "max", "memory.current": "7"}, 12 * GIB),
        ({"memory.max": str(4 * GIB), "memory.current": str(GIB)}, 3 * GIB),
        ({"memory.max": str(GIB), "memory.current": str(2 * GIB)}, 0),
        ({"memory/memory.limit_in_bytes": str(2 * GIB), "memory/memory.usage_in_bytes": str(GIB)}, GIB),
        ({"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "0"}, 12 * GIB),
    ],
)
def test_free_memory_is_the_machine_s_or_less_where_a_cgroup_limits_it(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {12 * GIB // 1024} kB\n")
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert free_host_bytes(tmp_path) == expected


def test_without_proc_there_is_still_an_answer(tmp_path: Path) -> None:
    assert free_host_bytes(tmp_path) > 0


@pytest.mark.parametrize("device", ["nope", " ", "meta", "cuda:99", "cpu:x", "mps"])
def test_a_device_that_cannot_score_is_named_before_anything_is_loaded(device: str) -> None:
    with pytest.raises(InputError, match=r"^--device: "):
        load("no/such/model", device=device)
