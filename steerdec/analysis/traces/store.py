"""Keep the settings and results of an analysis in its folder, so that an interrupted analysis resumes.

`analysis.json` has the settings. Each kind of result has its own file, `NAME.jsonl`, written with the benchmark's
journal: lines are appended, and a torn end is cut off when the analysis resumes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from steerdec.analysis.traces.scoring import Scores
from steerdec.analysis.traces.trace import Trace
from steerdec.common import journal
from steerdec.common.errors import InputError, reason_of
from steerdec.common.files import FolderLock, write_atomically

SETTINGS: Final = "analysis.json"
Key = tuple[str, str, int]  # problem_id, arm, sample


@contextmanager
def opened(folder: Path, settings: dict[str, Any]) -> Iterator[Store]:
    """Open the folder: create it if needed, lock it, and check that it belongs to the same analysis.

    Raises:
        InputError: it holds something else, or an analysis with other settings.
        JournalError: it is in use, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"--out: {folder} cannot be a folder ({e.strerror})") from None
    path = folder / SETTINGS
    wanted = json.loads(json.dumps(settings))
    with FolderLock(folder):
        if path.exists():
            _check_same(path, wanted)
        elif rest := [p.name for p in folder.iterdir() if p.name != ".lock"]:
            raise InputError(f"--out: {folder} holds {min(rest)} but no {SETTINGS}; choose another folder")
        else:
            write_atomically(path, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")
        yield Store(folder)


def _check_same(path: Path, wanted: dict[str, Any]) -> None:
    try:
        old = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{path} is not the JSON of an analysis ({reason_of(e)})") from None
    if not isinstance(old, dict):
        raise InputError(f"{path} is not the JSON of an analysis (it is not an object)")
    for key in {**old, **wanted}:
        if old.get(key) != wanted.get(key):
            raise InputError(
                f"--out: {path.parent} holds an analysis under other settings: {key}: {json.dumps(old.get(key))} -> "
                f"{json.dumps(wanted.get(key))}; give the same, or another folder"
            )


class Store:
    """The results of an analysis on disk; see `opened`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lines(self, name: str) -> dict[Key, dict[str, Any]]:
        """Return what `NAME.jsonl` holds, by key, after cutting off a torn end. Raises JournalError."""
        found: dict[Key, dict[str, Any]] = {}
        path = self.folder / f"{name}.jsonl"

        def keep(line: journal.Record) -> bool:
            found[line["problem_id"], line["arm"], line["sample"]] = line
            return True

        journal.repair(path, keep)
        return found

    @contextmanager
    def appending(self, name: str) -> Iterator[journal.Journal]:
        """Open `NAME.jsonl` to append lines; each needs problem_id, arm, and sample. Raises JournalError."""
        lines = journal.Journal(self.folder / f"{name}.jsonl")
        try:
            yield lines
        finally:
            lines.close()


def trace_line(trace: Trace) -> dict[str, Any]:
    return asdict(trace)


def trace_of(line: dict[str, Any]) -> Trace:
    reported = line.get("reported_entropy_nats")
    lists = {"prompt_ids": tuple(line["prompt_ids"]), "response_ids": tuple(line["response_ids"])}
    return Trace(**(line | lists | {"reported_entropy_nats": None if reported is None else tuple(reported)}))


def scores_line(trace: Trace, scores: Scores) -> dict[str, Any]:
    return {
        "problem_id": trace.problem_id,
        "arm": trace.arm,
        "sample": trace.sample,
        "entropy_nats": scores.entropy_nats.tolist(),
        "surprisal_nats": scores.surprisal_nats.tolist(),
        "rank": scores.rank.tolist(),
    }


def scores_of(line: dict[str, Any]) -> Scores:
    return Scores(
        np.asarray(line["entropy_nats"], np.float32),
        np.asarray(line["surprisal_nats"], np.float32),
        np.asarray(line["rank"], np.int64),
    )
