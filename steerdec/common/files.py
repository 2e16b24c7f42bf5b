"""Write files so that a crash leaves the old content or the new, and lock the folders that processes share."""

from __future__ import annotations

import fcntl
import os
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


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` as a whole; after a crash or a power cut it holds the one or the other.

    Raises:
        FileError: the file cannot be written; it is unchanged.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as e:
        raise FileError(f"{path} cannot be written ({e.strerror})") from None
    finally:
        fresh.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Return when the folder's entries (new and renamed files) are on the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
