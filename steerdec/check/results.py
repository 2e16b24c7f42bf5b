"""What one check found, and whether that is within its limit."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

Status = Literal["pass", "FAIL", "undecided", "not applicable"]


class Result(BaseModel):
    """One line of the table."""

    model_config = ConfigDict(frozen=True)

    check: str
    measured: str
    limit: str
    status: Status
    figures: dict[str, Any] = {}  # what `measured` says, as numbers


class Skip(Exception):  # noqa: N818  an outcome, not an error
    """A check does not apply here; the message says why."""


def judged(check: str, measured: str, limit: str, passed: bool, **figures: Any) -> Result:
    """Return a result that either passes or fails."""
    return Result(check=check, measured=measured, limit=limit, status="pass" if passed else "FAIL", figures=figures)


def not_applicable(check: str, why: str) -> Result:
    """Return the result of a check that cannot be made here."""
    return Result(check=check, measured=why, limit="", status="not applicable")


def failed(check: str, why: str) -> Result:
    """Return the result of a check that broke."""
    return Result(check=check, measured=why, limit="finishes", status="FAIL")


def at_least(limit: float, interval: tuple[float, float]) -> Status:
    """Judge a quantity that must be at least `limit` by its 95% interval; undecided where that contains the limit."""
    low, high = interval
    return "pass" if low >= limit else "FAIL" if high < limit else "undecided"


def at_most(limit: float, interval: tuple[float, float]) -> Status:
    """Judge a quantity that must be at most `limit`, likewise."""
    low, high = interval
    return "pass" if high <= limit else "FAIL" if low > limit else "undecided"


ALPHA: Final = 1e-3  # below this p-value a distribution is wrong
