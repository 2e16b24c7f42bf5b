"""A file of JSON objects, one per line, that is only ever appended to and can be read whatever stopped the writer.

A record is in the file, whole, before it counts as done; the file is on the disk at most one `sync` later. Only the
end of the file can be torn (a kill in the middle of a write, a full disk, a power cut); `repair` cuts it off.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from steerdec.common.files import FileError, sync_folder

MAX_LINE_BYTES = 1 << 28  # far above any record; an end without line breaks is read in pieces
Record = dict[str, Any]


class JournalError(FileError):
    """Records cannot be read or written; those already written are safe."""

    resumable = True


def encode(record: Record) -> bytes:
    """Return one line of the file. Lone surrogates, which UTF-8 cannot hold, become question marks."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file, the n-th from line n; none if there is no file. A torn end is left out.

    Raises:
        JournalError: a line before the last record is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            for record, _ in _whole_lines(path, file):
                yield record
    except FileNotFoundError:
        return
    except OSError as e:
        raise JournalError(f"{path} cannot be read ({e.strerror})") from None


def _whole_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[Record, bytes]]:
    """Yield each record with its line. A line that cannot be read is a torn end only if nothing readable follows."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise JournalError(f"{path} is not a regular file")
    torn_at = 0
    lines = iter(lambda: file.readline(MAX_LINE_BYTES), b"")
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is None:
            torn_at = torn_at or number
        elif torn_at:
            raise JournalError(f"{path} line {torn_at} is not a JSON object; correct or remove that line")
        else:
            yield record, line


def _record(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
        if b"\\ud" in line.lower():  # half of a surrogate pair, perhaps: read as `encode` would have written it
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def rewrite(path: Path, change: Callable[[Record], Record | None]) -> None:
    """Replace every record by what `change` returns, and drop those for which it returns None. All or nothing."""
    fresh = path.with_name(path.name + ".new")
    try:
        with path.open("rb") as old, fresh.open("wb") as new:
            for record, line in _whole_lines(path, old):
                changed = change(record)
                if changed is not None:
                    new.write(line if changed is record else encode(changed))
            new.flush()
            os.fsync(new.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as e:
        raise JournalError(f"{path} cannot be rewritten ({e.strerror}); it is unchanged") from None
    finally:
        fresh.unlink(missing_ok=True)


def repair(path: Path, keep: Callable[[Record], bool]) -> None:
    """Cut off a torn end and drop the records for which `keep`, called once for each, returns False."""
    if not path.exists():
        return
    end, kept = 0, []
    with path.open("rb") as file:
        for record, line in _whole_lines(path, file):
            end += len(line)
            kept.append(keep(record))
    if not all(kept):
        verdicts = iter(kept)
        rewrite(path, lambda record: record if next(verdicts) else None)
    elif end < path.stat().st_size:
        os.truncate(path, end)


class Journal:
    """A file open for appending. `append` is for one thread; `sync` may run in another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._end = os.fstat(self._fd).st_size
            sync_folder(path.parent)
        except OSError as e:
            raise JournalError(f"{path} cannot be opened ({e.strerror})") from None

    def append(self, record: Record) -> None:
        """Write one line with one call; once it returns, no kill of this process loses the record."""
        line = encode(record)
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a disk about to be full: the rest says why
                written += os.write(self._fd, line[written:])
        except OSError as e:
            with suppress(OSError):  # else the torn end is cut off at the next start
                os.ftruncate(self._fd, self._end)
            raise JournalError(f"{self._path} cannot be written ({e.strerror}); everything before it is safe") from None
        self._end += len(line)

    def sync(self) -> None:
        """Return when everything appended so far is on the disk. Raises JournalError."""
        try:
            os.fdatasync(self._fd)
        except OSError as e:
            raise JournalError(f"{self._path} cannot be written to the disk ({e.strerror})") from None

    def close(self) -> None:
        """Sync and close. Raises JournalError."""
        try:
            self.sync()
        finally:
            os.close(self._fd)
