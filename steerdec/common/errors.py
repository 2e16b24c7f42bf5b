"""What an analysis says when it cannot be done.

AnalysisError        it failed on its way (exit status 1)
    InputError       it was asked for wrongly, known before any work was done (exit status 2)
"""

from __future__ import annotations


class AnalysisError(Exception):
    """The message is one plain line."""


class InputError(AnalysisError):
    """A file, a model or an option that cannot be used; the line names it, its place, and what is allowed."""
