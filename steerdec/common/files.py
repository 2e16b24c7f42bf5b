"""Write files so that a crash leaves the old content or the new, and lock the folders that processes share."""

from __future__ import annotations

import errno
import fcntl
import gzip
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from steerdec.common.errors import SteerdecError


class FileError(SteerdecError):
    """A file or folder cannot be read, written or locked."""


class FolderLock:
    """Let one process at a time work in a folder. The kernel releases the lock with the process.

    `name`: the file in it that is locked; another one for work that shares the folder with other work.
    """

    def __init__(self, folder: Path, name: str = ".lock") -> None:
        self._path = folder / name
        self._what = folder if name == ".lock" else self._path
        self._fd = -1

    def __enter__(self) -> FolderLock:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise FileError(f"{self._what} is in use by another process") from None
        except OSError as e:
            raise FileError(f"{self._what} cannot be locked ({e.strerror})") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def exists(path: Path | str) -> bool:
    """Return whether there is such a file or folder; Path's own raises OSError for a name that is too long."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def read_at_most(path: Path, limit_bytes: int, *, gzipped: bool = False) -> bytes:
    """Return the content of a file, which may be a pipe. Raises OSError, also where it is larger than the limit."""
    with gzip.open(path) if gzipped else path.open("rb") as file:
        content: bytes = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {limit_bytes} bytes", str(path))
    return content


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` as a whole; after a crash or a power cut it holds the one or the other.

    A lone surrogate, as in a path that is not UTF-8, is written as its escape, which is what JSON has for it.

    Raises:
        FileError: the file cannot be written; it is unchanged.
    """
    fresh = Path(f"{path}.new")
    try:
        with fresh.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as e:
        raise FileError(f"{path} cannot be written ({e.strerror})") from None
    finally:
        with suppress(OSError):  # the folder is none, or the name too long: said above
            fresh.unlink()


def sync_folder(folder: Path) -> None:
    """Return when the folder's entries (new and renamed files) are on the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
