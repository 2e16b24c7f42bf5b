"""A mask on disk: which tokens of which responses are forks, for any trainer, or for arms that intervene there.

    DIR/mask.parquet       one row per response token: requests in order, in each its positions in order
    DIR/requests.parquet   one row per request, in the same order
    DIR/mask.json          what the mask describes, and the digests of both files

The digests show whether the three files belong together, even if the program that wrote them was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import FileError, write_atomically

MASK: Final = "mask.parquet"
REQUESTS: Final = "requests.parquet"
JSON: Final = "mask.json"
FORMAT: Final = 1
ROW_GROUP_TOKENS: Final = 1 << 20  # held in memory at once while writing

TOKEN_SCHEMA: Final = pa.schema(
    [
        ("request", pa.int64()),
        ("position", pa.int32()),
        ("token", pa.int32()),
        ("entropy_nats", pa.float32()),
        ("fork", pa.bool_()),
        ("score", pa.float32()),
    ]
)
REQUEST_SCHEMA: Final = pa.schema(
    [
        ("request", pa.int64()),
        ("problem_id", pa.string()),
        ("arm", pa.string()),
        ("sample", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_tokens", pa.int32()),
        ("ids_are", pa.string()),
        ("answer", pa.string()),
        ("grade", pa.string()),
    ]
)


class MaskError(InvalidInputError):
    """A mask cannot be used; one line that says which and why."""


@dataclass(frozen=True)
class MaskedRequest:
    """A prompt and the response tokens that were scored; each array has one entry per response token."""

    problem_id: str
    arm: str
    sample: int
    prompt_ids: tuple[int, ...]
    token_ids: NDArray[np.int32]
    entropy_nats: NDArray[np.float32]
    score: NDArray[np.float32]  # the score that forks were chosen by; NaN where the lens has none
    fork: NDArray[np.bool_]
    ids_are: str  # how certainly these are the sampled ids; see `steerdec.analysis.traces.trace`
    answer: str | None
    grade: str


@dataclass(frozen=True)
class Mask:
    """A mask in memory; `about` is its mask.json, `requests` are in the order of their `request` numbers."""

    about: dict[str, Any]
    requests: tuple[MaskedRequest, ...]


def write_mask(folder: Path, requests: Iterable[MaskedRequest], about: dict[str, Any]) -> dict[str, Any]:
    """Write the three files, a row group at a time; return the content of mask.json.

    Raises:
        FileError: they cannot be written; an earlier mask in the folder is unchanged.
    """
    paths = {name: folder / name for name in (MASK, REQUESTS)}
    fresh = {name: path.with_name(name + ".new") for name, path in paths.items()}
    counts = {"requests": 0, "tokens": 0, "forks": 0}
    try:
        with ExitStack() as files:
            tokens = files.enter_context(pq.ParquetWriter(fresh[MASK], TOKEN_SCHEMA))
            rows = files.enter_context(pq.ParquetWriter(fresh[REQUESTS], REQUEST_SCHEMA))
            for group in _groups(requests):
                tokens.write_table(_token_table(group, counts["requests"]))
                rows.write_table(_request_table(group, counts["requests"]))
                counts["requests"] += len(group)
                counts["tokens"] += sum(len(request.fork) for request in group)
                counts["forks"] += sum(int(request.fork.sum()) for request in group)
        digests = {name: _synced_digest(path) for name, path in fresh.items()}
        for name, path in fresh.items():
            path.replace(paths[name])
    except OSError as e:
        raise FileError(f"{folder} cannot be written ({e.strerror or e})") from None
    finally:
        for path in fresh.values():
            path.unlink(missing_ok=True)
    told = {"format": FORMAT} | about | counts | {"fork_share": counts["forks"] / max(counts["tokens"], 1)}
    told |= {"sha256": digests}
    write_atomically(folder / JSON, json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return told


def load_mask(folder: Path) -> Mask:
    """Return a mask written by `steerdec mask` or `write_mask`.

    Raises:
        MaskError: a file is missing, cannot be read, belongs to another mask, or its rows are inconsistent.
    """
    about = _read_json(folder / JSON)
    for name in (MASK, REQUESTS):
        if _digest(folder / name) != about["sha256"].get(name):
            raise MaskError(f"{folder / name} is not the file described by {JSON}; make the mask again")
    tokens, rows = _read(folder / MASK, TOKEN_SCHEMA), _read(folder / REQUESTS, REQUEST_SCHEMA)
    lengths = rows["response_tokens"].to_numpy()
    numbers, where = np.arange(len(lengths)), folder / MASK
    if not np.array_equal(rows["request"].to_numpy(), numbers):
        raise MaskError(f"{folder / REQUESTS}: `request` does not count from 0 up")
    if not np.array_equal(tokens["request"].to_numpy(), np.repeat(numbers, lengths)):
        raise MaskError(f"{where}: its requests have other numbers of tokens than {REQUESTS} says")
    ends = np.cumsum(lengths)
    within = np.arange(tokens.num_rows) - np.repeat(ends - lengths, lengths)
    if not np.array_equal(tokens["position"].to_numpy(), within):
        raise MaskError(f"{where}: `position` does not count from 0 up in every request")
    columns = {
        name: np.split(tokens[name].to_numpy(), ends[:-1]) for name in ("token", "entropy_nats", "score", "fork")
    }
    return Mask(
        about,
        tuple(
            MaskedRequest(
                problem_id=row["problem_id"],
                arm=row["arm"],
                sample=row["sample"],
                prompt_ids=tuple(row["prompt_ids"]),
                token_ids=columns["token"][i],
                entropy_nats=columns["entropy_nats"][i],
                score=columns["score"][i],
                fork=columns["fork"][i],
                ids_are=row["ids_are"],
                answer=row["answer"],
                grade=row["grade"],
            )
            for i, row in enumerate(rows.to_pylist())
        ),
    )


def _groups(requests: Iterable[MaskedRequest]) -> Iterator[list[MaskedRequest]]:
    """Yield the requests in order, in lists of about ROW_GROUP_TOKENS tokens."""
    group: list[MaskedRequest] = []
    held = 0
    for request in requests:
        group.append(request)
        held += len(request.fork)
        if held >= ROW_GROUP_TOKENS:
            yield group
            group, held = [], 0
    if group:
        yield group


def _token_table(group: list[MaskedRequest], first: int) -> pa.Table:
    lengths = [len(request.fork) for request in group]
    columns = {
        "request": np.repeat(np.arange(first, first + len(group)), lengths),
        "position": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        "token": np.concatenate([request.token_ids for request in group]),
        "entropy_nats": np.concatenate([request.entropy_nats for request in group]),
        "fork": np.concatenate([request.fork for request in group]),
        "score": np.concatenate([request.score for request in group]),
    }
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(TOKEN_SCHEMA)


def _request_table(group: list[MaskedRequest], first: int) -> pa.Table:
    rows = [
        {
            "request": first + i,
            "problem_id": request.problem_id,
            "arm": request.arm,
            "sample": request.sample,
            "prompt_ids": list(request.prompt_ids),
            "response_tokens": len(request.fork),
            "ids_are": request.ids_are,
            "answer": request.answer,
            "grade": request.grade,
        }
        for i, request in enumerate(group)
    ]
    return pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)


def _synced_digest(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _digest(path)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise MaskError(f"{path} cannot be read ({e.strerror})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_bytes())
    except OSError as e:
        raise MaskError(
            f"{path} cannot be read ({e.strerror}); a mask is the folder that `steerdec mask` wrote"
        ) from None
    except (ValueError, RecursionError) as e:
        raise MaskError(f"{path} is not JSON ({e})") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("sha256"), dict):
        raise MaskError(f"{path} is not of a mask in format {FORMAT}")
    return about


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as e:
        raise MaskError(f"{path} is not a Parquet file that can be read ({str(e).splitlines()[0]})") from None
    if not table.schema.equals(schema):
        raise MaskError(f"{path} has columns {', '.join(table.schema.names)}; it needs {', '.join(schema.names)}")
    return table
