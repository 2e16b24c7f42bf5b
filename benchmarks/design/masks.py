"""Masks as replays use them: which tokens of recorded responses a lens selects."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerdec.records.arms import Positions
from steerdec.records.mask_file import load_mask

# Of mask.json, what a run records: without folders, which are private, and dates, which change nothing.
KEPT = ("lens", "share", "threshold_nats", "cut", "model", "dtype", "prompt", "requests", "tokens", "forks")


@dataclass(frozen=True, eq=False)
class MaskedTrace:
    """One recorded response; its arrays have one entry per token."""

    problem_id: str
    arm: str
    sample: int
    prompt_ids: tuple[int, ...]
    response_ids: NDArray[np.int32]
    fork: NDArray[np.bool_]

    def positions(self, which: Positions) -> NDArray[np.int64]:
        """Return the indices of the tokens that the mask selects, of the others, or of all."""
        if which == "any":
            return np.arange(len(self.fork))
        return np.flatnonzero(self.fork if which == "fork" else ~self.fork)


@dataclass(frozen=True, eq=False)
class ReplayMask:
    name: str
    sha256: str  # over both tables
    about: dict[str, Any]  # mask.json
    traces: dict[str, tuple[MaskedTrace, ...]]  # by problem id

    def kept(self) -> dict[str, Any]:
        """Return what a run records about it."""
        recorded = {key: self.about.get(key) for key in KEPT}
        recorded["model"] = Path(str(recorded["model"])).name
        return recorded | {"problems": Path(str((self.about.get("problems") or {}).get("name"))).name}


@dataclass(frozen=True)
class Prefix:
    """The beginning of a recorded response: the token at `position` and all after it are sampled anew."""

    trace: MaskedTrace
    position: int

    @property
    def response_ids(self) -> list[int]:
        """Return the kept beginning of the response, `position` tokens."""
        return [int(token) for token in self.trace.response_ids[: self.position]]

    @property
    def token_ids(self) -> list[int]:
        """Return the prompt of the request: the problem's prompt and the kept beginning of the response."""
        return [*self.trace.prompt_ids, *self.response_ids]


@dataclass(frozen=True)
class Places:
    """The positions from which the arms of one replay may start: the `which` positions of a mask."""

    mask: ReplayMask
    which: Positions

    def of(self, problem_id: str) -> list[tuple[MaskedTrace, NDArray[np.int64]]]:
        """Return the problem's responses that have such positions, with the positions."""
        traces = self.mask.traces.get(problem_id, ())
        return [(trace, positions) for trace in traces if len(positions := trace.positions(self.which))]


def read_mask(folder: Path) -> ReplayMask:
    """Read the mask in a folder. Raises MaskError."""
    loaded = load_mask(folder)
    traces: dict[str, list[MaskedTrace]] = {}
    for r in loaded.requests:
        trace = MaskedTrace(
            problem_id=r.problem_id,
            arm=r.arm,
            sample=r.sample,
            prompt_ids=r.prompt_ids,
            response_ids=r.token_ids,
            fork=r.fork,
        )
        traces.setdefault(r.problem_id, []).append(trace)
    digests = "".join(loaded.about["sha256"].values())
    return ReplayMask(
        folder.name,
        hashlib.sha256(digests.encode()).hexdigest(),
        loaded.about,
        {problem_id: tuple(of_problem) for problem_id, of_problem in traces.items()},
    )
