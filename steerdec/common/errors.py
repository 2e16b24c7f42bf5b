"""Every failure that a user can be told about in one line, and the exit status that it means.

SteerdecError              something failed on the way (exit status 1)
├── InvalidInputError      an option, a file or a field cannot be used (exit status 2)
└── AnalysisError          an analysis failed on the way (exit status 1)
    └── InputError         an analysis was given something it cannot use (exit status 2)

Each room derives its own errors from these, so the command line catches one class.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

_NUMBER: Final = re.compile(r"^\[Errno -?\d+\] ")  # which other libraries keep when they wrap a system error


class SteerdecError(Exception):
    """A failure whose message is one plain line: what is wrong, where, and what is allowed."""

    exit_status: ClassVar[int] = 1
    resumable: ClassVar[bool] = False  # work done before it is kept, and the same command continues from there


def reason_of(error: BaseException) -> str:
    """Return why something failed as one line; a system error is said without its number and path."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return _NUMBER.sub("", " ".join(str(text).split()))


class InvalidInputError(SteerdecError, ValueError):
    """Something given cannot be used; known before any work is done."""

    exit_status = 2


class AnalysisError(SteerdecError):
    """An analysis cannot be finished."""

    resumable = True


class InputError(AnalysisError):
    """A file, a model or an option that cannot be used; the line names it, its place, and what is allowed."""

    exit_status = 2
    resumable = False
