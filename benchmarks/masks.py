"""Masks: at which tokens of recorded responses a lens points. Made by `steerdec mask`; here they are read.

A mask is a folder of three files; what is used here:

    mask.parquet       one row a response token: request, position, token, fork (whether the lens points at it)
    requests.parquet   one row a request: request, problem_id, arm, sample, prompt_ids, response_tokens
    mask.json          what it is of (model, problems, prompt, lens, share), and the digests of both files
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerdec.benchmarks.arms import Positions

FORMAT = 1
TOKENS, REQUESTS, JSON = "mask.parquet", "requests.parquet", "mask.json"
# Of mask.json, what a run keeps: without folders, which are nobody's business, and dates, which change nothing.
KEPT = ("lens", "share", "threshold_nats", "cut", "model", "dtype", "prompt", "requests", "tokens", "forks")


class MaskError(ValueError):
    """A mask that cannot be used; one line that says which and why."""


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
    about = _about(folder / JSON)
    digests = [_digest(folder / name, about["sha256"].get(name)) for name in (TOKENS, REQUESTS)]
    tokens = _table(folder / TOKENS, ("request", "position", "token", "fork"))
    requests = _table(folder / REQUESTS, ("request", "problem_id", "arm", "sample", "prompt_ids", "response_tokens"))
    lengths = np.asarray(requests["response_tokens"], np.int64)
    ends = np.cumsum(lengths)
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    if not np.array_equal(tokens["request"], np.repeat(requests["request"], lengths)) or not np.array_equal(
        tokens["position"], within
    ):
        raise MaskError(f"{folder}: {TOKENS} does not have the tokens of {REQUESTS}, each request's in order")
    ids, forks = (np.split(np.asarray(tokens[name]), ends[:-1]) for name in ("token", "fork"))
    traces: dict[str, list[MaskedTrace]] = {}
    for i, problem_id in enumerate(requests["problem_id"]):
        prompt = tuple(int(token) for token in requests["prompt_ids"][i])
        arm, sample = requests["arm"][i], int(requests["sample"][i])
        traces.setdefault(problem_id, []).append(MaskedTrace(problem_id, arm, sample, prompt, ids[i], forks[i]))
    return Mask(
        folder.name,
        hashlib.sha256("".join(digests).encode()).hexdigest(),
        about,
        {problem_id: tuple(found) for problem_id, found in traces.items()},
    )


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_bytes())
    except OSError as e:
        raise MaskError(
            f"{path} cannot be read ({e.strerror}); a mask is a folder that `steerdec mask` wrote"
        ) from None
    except (ValueError, RecursionError) as e:
        raise MaskError(f"{path} is not JSON ({e})") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("sha256"), dict):
        raise MaskError(f"{path} is not of a mask in format {FORMAT}")
    return about


def _digest(path: Path, expected: object) -> str:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise MaskError(f"{path} cannot be read ({e.strerror})") from None
    if found != expected:
        raise MaskError(f"{path} is not the file that {JSON} tells of; make the mask again")
    return found


def _table(path: Path, columns: tuple[str, ...]) -> dict[str, Any]:
    """Columns by name; numbers and flags as arrays. Raises MaskError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as e:
        raise MaskError(f"{path} is not a Parquet file that can be read ({str(e).splitlines()[0]})") from None
    if missing := [name for name in columns if name not in table.column_names]:
        raise MaskError(f"{path} has no column {missing[0]}")
    return {name: table[name].to_numpy() for name in columns}
