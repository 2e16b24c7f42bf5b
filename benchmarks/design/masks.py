"""Masks as replays use them: at which tokens of recorded responses to a problem a lens points."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerdec.records.arms import Positions
from steerdec.records.mask_file import load_mask

# Of mask.json, what a run keeps: without folders, which are nobody's business, and dates, which change nothing.
KEPT = ("lens", "share", "threshold_nats", "cut", "model", "dtype", "prompt", "requests", "tokens", "forks")


@dataclass(frozen=True, eq=False)
class MaskedTrace:
    """One recorded response; its arrays have one entry a token."""

    problem_id: str
    arm: str
    sample: int
    prompt_ids: tuple[int, ...]
    response_ids: NDArray[np.int32]
    fork: NDArray[np.bool_]

    def positions(self, which: Positions) -> NDArray[np.int64]:
        """Indices of the tokens that the mask points at, of the others, or of all."""
        if which == "any":
            return np.arange(len(self.fork))
        return np.flatnonzero(self.fork if which == "fork" else ~self.fork)


@dataclass(frozen=True, eq=False)
class Mask:
    name: str
    sha256: str  # over both tables
    about: dict[str, Any]  # mask.json
    traces: dict[str, tuple[MaskedTrace, ...]]  # by problem id

    def kept(self) -> dict[str, Any]:
        """What a run tells of it."""
        told = {key: self.about.get(key) for key in KEPT}
        told["model"] = Path(str(told["model"])).name
        return told | {"problems": Path(str((self.about.get("problems") or {}).get("name"))).name}


@dataclass(frozen=True)
class Prefix:
    """The token at `position` of a recorded response is to be sampled anew, after those before it."""

    trace: MaskedTrace
    position: int

    @property
    def response_ids(self) -> list[int]:
        """What stays of the response, `position` tokens."""
        return [int(token) for token in self.trace.response_ids[: self.position]]

    @property
    def token_ids(self) -> list[int]:
        """The prompt of the request: the problem's, and what stays of the response."""
        return [*self.trace.prompt_ids, *self.response_ids]


@dataclass(frozen=True)
class Places:
    """Where the arms of one replay may go on from: the `which` positions of a mask."""

    mask: Mask
    which: Positions

    def of(self, problem_id: str) -> list[tuple[MaskedTrace, NDArray[np.int64]]]:
        """The problem's responses that have such positions, with these."""
        traces = self.mask.traces.get(problem_id, ())
        return [(trace, found) for trace in traces if len(found := trace.positions(self.which))]


def read_mask(folder: Path) -> Mask:
    """The mask in a folder. Raises MaskError."""
    found = load_mask(folder)
    traces: dict[str, list[MaskedTrace]] = {}
    for r in found.requests:
        trace = MaskedTrace(r.problem_id, r.arm, r.sample, r.prompt_ids, r.token_ids, r.fork)
        traces.setdefault(r.problem_id, []).append(trace)
    digests = "".join(found.about["sha256"].values())
    return Mask(
        folder.name,
        hashlib.sha256(digests.encode()).hexdigest(),
        found.about,
        {problem_id: tuple(of_problem) for problem_id, of_problem in traces.items()},
    )
