"""`samples.jsonl`: appended one sample a line, and readable whatever stopped the run.

A line is in the file, whole, before its sample counts as done; the file is on the disk at most a
second later. Only the end of the file can be torn (a kill in mid write, a full disk, a power cut);
it is cut off again when the run goes on. The file then also loses the samples that failed on their
way (`error`), for they are made again: so there is never more than one line a sample.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

NAME = "samples.jsonl"
MAX_LINE_BYTES = 1 << 28  # far above any sample; an end without line breaks is read in pieces
Sample = dict[str, Any]


class JournalError(Exception):
    """The samples cannot be read or written; the message is one line."""


class FolderLock:
    """One process at a time works in a run folder. The kernel drops the lock with the process."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._fd = -1

    def __enter__(self) -> FolderLock:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise JournalError(f"{self._path.parent} is in use by another run") from None
        except OSError as e:
            raise JournalError(f"{self._path.parent} cannot be locked ({e.strerror})") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def encode(sample: Sample) -> bytes:
    """One line of the file. Lone surrogates, which UTF-8 cannot hold, become question marks."""
    return json.dumps(sample, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples in the file, one at a time; a torn end is left out.

    Raises:
        JournalError: a line that is not the last cannot be read.
    """
    try:
        with path.open("rb") as file:
            for sample, _ in _whole_lines(path, file):
                yield sample
    except FileNotFoundError:
        return
    except OSError as e:
        raise JournalError(f"{path} cannot be read ({e.strerror})") from None


def _whole_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[Sample, bytes]]:
    """Each sample with its line. What cannot be read is a torn end only if nothing readable follows it."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise JournalError(f"{path} is not a regular file")
    torn_at = 0
    lines = iter(lambda: file.readline(MAX_LINE_BYTES), b"")
    for number, line in enumerate(lines, start=1):
        sample = _sample(line)
        if sample is None:
            torn_at = torn_at or number
        elif torn_at:
            raise JournalError(f"{path} line {torn_at} is not a sample; mend or remove that line")
        else:
            yield sample, line


def _sample(line: bytes) -> Sample | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("problem_id"), str):
        return None
    if not isinstance(value.get("arm"), str) or type(value.get("sample")) is not int:
        return None
    return value


def rewrite(path: Path, change: Callable[[Sample], Sample | None]) -> None:
    """Write every sample again as `change` returns it, without those it returns None for. All or nothing."""
    fresh = path.with_name(path.name + ".new")
    try:
        with path.open("rb") as old, fresh.open("wb") as new:
            for sample, line in _whole_lines(path, old):
                changed = change(sample)
                if changed is not None:
                    new.write(line if changed is sample else encode(changed))
            new.flush()
            os.fsync(new.fileno())
        fresh.replace(path)
        _sync_folder(path.parent)
    except OSError as e:
        raise JournalError(f"{path} cannot be rewritten ({e.strerror}); it is as it was") from None
    finally:
        fresh.unlink(missing_ok=True)


def repair(path: Path, keep: Callable[[Sample], None]) -> None:
    """Cut a torn end off and drop the failed samples; `keep` is called with every other one."""
    if not path.exists():
        return
    end, failed = 0, 0
    with path.open("rb") as file:
        for sample, line in _whole_lines(path, file):
            end += len(line)
            if sample.get("error") is None:
                keep(sample)
            else:
                failed += 1
    if failed:
        rewrite(path, lambda sample: sample if sample.get("error") is None else None)
    elif end < path.stat().st_size:
        os.truncate(path, end)


class Journal:
    """The file open for appending. `append` is for one thread; `sync` may run in another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._end = os.fstat(self._fd).st_size
            _sync_folder(path.parent)
        except OSError as e:
            raise JournalError(f"{path} cannot be opened ({e.strerror})") from None

    def append(self, sample: Sample) -> None:
        """Write one line with one call; after it returns no kill of this process loses the sample."""
        line = encode(sample)
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a disk about to be full: the rest says why
                written += os.write(self._fd, line[written:])
        except OSError as e:
            with suppress(OSError):  # else the torn end is cut off when the run goes on
                os.ftruncate(self._fd, self._end)
            raise JournalError(f"{self._path} cannot be written ({e.strerror}); all samples before are safe") from None
        self._end += len(line)

    def sync(self) -> None:
        """Return when everything appended so far is on the disk."""
        try:
            os.fdatasync(self._fd)
        except OSError as e:
            raise JournalError(f"{self._path} cannot be written to the disk ({e.strerror})") from None

    def close(self) -> None:
        try:
            self.sync()
        finally:
            os.close(self._fd)


def write_atomically(path: Path, text: str) -> None:
    """`path` holds the whole of `text` or what it held before, also after a power cut."""
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        _sync_folder(path.parent)
    except OSError as e:
        raise JournalError(f"{path} cannot be written ({e.strerror})") from None
    finally:
        fresh.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
