"""A journal: what was said to be written is there, whatever happened next."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerdec.common.files import FileError, FolderLock, write_atomically
from steerdec.common.journal import Journal, JournalError, encode, read_records, repair, rewrite


def sample(i: int, **more: object) -> dict[str, object]:
    return {"problem_id": f"p{i}", "arm": "B", "sample": i, "text": "x" * 50, "error": None} | more


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples.jsonl"


def write(path: Path, *samples: dict[str, object]) -> None:
    journal = Journal(path)
    for each in samples:
        journal.append(each)
    journal.close()


def kept(path: Path) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []

    def keep(record: dict[str, object]) -> bool:
        if record["error"] is None:
            records.append(record)
        return record["error"] is None

    repair(path, keep)
    return records


def test_what_is_written_is_read(path: Path) -> None:
    samples = [sample(i, text=t) for i, t in enumerate(["", "two\nlines\r\n", "\u2028 \x00 ü ∑", '"}'])]
    write(path, *samples)
    assert list(read_records(path)) == samples
    assert path.read_bytes().count(b"\n") == len(samples)


def test_a_lone_surrogate_does_not_break_the_file(path: Path) -> None:
    write(path, sample(0, text="a\ud800b"))
    assert next(read_records(path))["text"] == "a?b"


@given(cut=st.integers(1, 200), texts=st.lists(st.text(max_size=20), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_keeps_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("cut") / "samples.jsonl"
    lines = [encode(sample(i, text=t)) for i, t in enumerate(texts)]
    content = b"".join(lines)
    content = content[: max(0, len(content) - cut)]
    path.write_bytes(content)
    whole = content[: content.rfind(b"\n") + 1]
    assert [s["sample"] for s in kept(path)] == list(range(whole.count(b"\n")))
    assert path.read_bytes() == whole
    write(path, sample(99))
    assert [s["sample"] for s in kept(path)][-1] == 99


def test_an_end_of_zeros_after_a_power_cut_is_cut_off(path: Path) -> None:
    write(path, sample(0))
    good = path.read_bytes()
    path.write_bytes(good + b"\0" * 5000 + b"\n" + b"\0" * 100)
    assert kept(path) == [sample(0)]
    assert path.read_bytes() == good


def test_a_broken_line_in_the_middle_is_named_and_nothing_is_cut(path: Path) -> None:
    content = encode(sample(0)) + b"{nonsense\n" + encode(sample(1))
    path.write_bytes(content)
    with pytest.raises(JournalError, match="line 2"):
        kept(path)
    with pytest.raises(JournalError, match="line 2"):
        rewrite(path, lambda s: s)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_failed_samples_are_dropped_so_that_they_are_made_again(path: Path) -> None:
    write(path, sample(0), sample(1, error="timed out"), sample(2))
    with path.open("ab") as file:
        file.write(b'{"torn')
    assert [s["sample"] for s in kept(path)] == [0, 2]
    assert [s["sample"] for s in read_records(path)] == [0, 2]


def test_what_is_not_dropped_is_read_once(path: Path) -> None:
    """`keep` counts what it is called with, so a second call per record would find every one of them a repeat."""
    write(path, *(sample(i, error="no" if i % 2 else None) for i in range(6)))
    seen: list[object] = []

    def keep(record: dict[str, object]) -> bool:
        seen.append(record["sample"])
        return record["error"] is None

    repair(path, keep)
    assert seen == list(range(6))
    assert [s["sample"] for s in read_records(path)] == [0, 2, 4]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, "old")
    with pytest.raises(FileError, match="cannot be written"):
        write_atomically(tmp_path / "no" / "run.json", "new")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, old[1]))
        with pytest.raises(FileError, match="cannot be written"):
            write_atomically(path, "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(FileError, match="in use"), FolderLock(tmp_path):
        pass
    with FolderLock(tmp_path):
        pass


LIMITED = """
    import resource, sys
    from pathlib import Path
    from steerdec.common.journal import Journal, JournalError
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    journal = Journal(Path(sys.argv[1]))
    try:
        for i in range(100):
            journal.append({"problem_id": "p", "arm": "B", "sample": i, "text": "x" * 90})
            print(i, flush=True)
    except JournalError as e:
        print(e, file=sys.stderr)
        sys.exit(1)
"""


def test_a_full_disk_loses_nothing_that_was_written(path: Path) -> None:
    """The limit on the file's size makes the kernel write a part of a line and then refuse, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written" in done.stderr
    reported = [int(line) for line in done.stdout.split()]
    assert reported
    assert [s["sample"] for s in read_records(path)] == reported
    assert path.read_bytes().endswith(b"\n")


def test_a_device_that_is_always_full_is_told(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path / "samples.jsonl")
    with pytest.raises(JournalError, match="No space left"):
        journal.append(sample(0))
    with pytest.raises(JournalError, match="not a regular file"):  # it would be read for ever
        kept(tmp_path / "samples.jsonl")


def test_a_rewrite_that_finds_the_disk_full_leaves_the_file_as_it_was(path: Path) -> None:
    write(path, *(sample(i) for i in range(20)))
    before = path.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, old[1]))
        with pytest.raises(JournalError, match="it is unchanged"):
            rewrite(path, lambda s: s | {"grade": "correct"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_rewrite_changes_what_it_is_told_to(path: Path) -> None:
    write(path, sample(0), sample(1), sample(2))
    rewrite(path, lambda s: None if s["sample"] == 1 else s | {"grade": "correct"})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        sample(0, grade="correct"),
        sample(2, grade="correct"),
    ]
