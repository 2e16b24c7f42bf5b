"""Problems that reasoning_gym makes: `gym:TASK?key=value&...`.

`size` (default 50) and `seed` (default 0) mean what they say; every other key is a field of the task's configuration.
Three habits of reasoning_gym are worked around here:

* problem i of seed s is made from s + i, so the sets of seeds 0 and 1 share all but one problem: the seed it gets is a
  hash of ours;
* some tasks repeat problems (`chain_sum`): those are dropped and replaced;
* some tasks draw from sets, so that they depend on PYTHONHASHSEED: problems are made, and answers scored, in processes
  that fix it (:mod:`child`).

An answer is scored against the whole entry, not against one string, so a problem's kind says how to make the entry
again: `gym:TASK?key=value&...#INDEX`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from difflib import get_close_matches
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from steerdec.common.child import python_child
from steerdec.common.errors import InvalidInputError

DEFAULT_SIZE = 50
SPARE = 10  # entries made for each problem wanted, before a task is said to have no more
NO_ANSWER = "(any that scores 1)"  # tasks like graph_color name no answer of their own


class GymError(InvalidInputError):
    """A `gym:` name that cannot be used; one line."""


def load_gym(name: str) -> list[dict[str, str]]:
    """`id`, `problem`, `answer`, `kind` of every problem of `gym:TASK?...`. Raises GymError."""
    command, environment = python_child("steerdec.problems.gym", name)
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        reason = child.stderr.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
        raise GymError(reason[0] if child.returncode == 2 else f"{name}: reasoning_gym failed ({reason[0]})")
    rows: list[dict[str, str]] = json.loads(child.stdout)
    return rows


def prepare(kind: str) -> None:
    """Make the dataset that :func:`score` needs. Raises GymError."""
    _entry_of(kind)


def score(kind: str, answer: str) -> float:
    """reasoning_gym's score of an answer, 0 to 1; under 1 is partial credit.

    Raises:
        GymError: this process does not fix PYTHONHASHSEED, so its entry might be another one.
        Exception: anything the task's scorer raises at a text it did not expect.
    """
    if os.environ.get("PYTHONHASHSEED") != "0":
        raise GymError(f"{kind}: answers are scored under PYTHONHASHSEED=0, as the workers of GradingPool have it")
    dataset, index = _entry_of(kind)
    return float(dataset.score_answer(answer, dataset[index]))


def _entry_of(kind: str) -> tuple[Any, int]:
    """Dataset and index behind `gym:TASK?...#INDEX`. Raises GymError."""
    name, _, index = kind.rpartition("#")
    if not (index.isascii() and index.isdigit()):
        raise GymError(f"{kind}: no index; the form is gym:TASK?key=value#INDEX")
    dataset = _dataset(name)
    if int(index) >= len(dataset):
        raise GymError(f"{kind}: index {index} is not below {len(dataset)}")
    return dataset, int(index)


@lru_cache(maxsize=8)
def _dataset(name: str) -> Any:
    """The reasoning_gym dataset behind `gym:TASK?...`, with spare entries. Raises GymError."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise GymError(f"{name}: reasoning_gym is not installed (pip install reasoning-gym)") from None
    task, size, seed, options = _parse(name)
    if task not in DATASETS:
        nearest = ", ".join(get_close_matches(task, DATASETS, cutoff=0.0))  # of about a hundred
        raise GymError(f"{name}: {task!r} is no task of reasoning_gym; the nearest are {nearest}")
    allowed = [field.name for field in dataclasses.fields(DATASETS[task][1]) if field.name not in ("seed", "size")]
    if unknown := [key for key in options if key not in allowed]:
        raise GymError(f"{name}: {task} has no {unknown[0]!r}; it takes size, seed, {', '.join(allowed)}")
    digest = hashlib.sha256(f"{task}/{seed}".encode()).digest()
    try:
        return reasoning_gym.create_dataset(
            task, size=SPARE * size, seed=int.from_bytes(digest[:4], "big") >> 1, **options
        )
    except Exception as e:  # tasks check their configuration with assert, or not at all
        raise GymError(f"{name}: {task} refuses this configuration ({e or type(e).__name__})") from None


def _parse(name: str) -> tuple[str, int, int, dict[str, Any]]:
    """Task, size, seed and the task's own options. Raises GymError."""
    task, _, query = name.removeprefix("gym:").partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise GymError(f"{name}: {query!r} is not of the form key=value&key=value") from None
    options: dict[str, Any] = {}
    for key, text in pairs:
        if key in options:
            raise GymError(f"{name}: {key} is given twice")
        try:
            options[key] = json.loads(text)  # numbers, true, false, lists
        except ValueError:
            options[key] = text
    size, seed = options.pop("size", DEFAULT_SIZE), options.pop("seed", 0)
    for key, value, least in (("size", size, 1), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise GymError(f"{name}: {key} is {value!r}; it has to be an integer of at least {least}")
    return task, size, seed, options


def _make(name: str) -> list[dict[str, str]]:
    dataset = _dataset(name)
    task, size, _, _ = _parse(name)
    rows: dict[str, dict[str, str]] = {}
    for index in range(SPARE * size):
        entry = dataset[index]
        rows.setdefault(
            entry["question"],
            {
                "id": f"{task}-{index}",
                "problem": entry["question"],
                "answer": NO_ANSWER if entry["answer"] is None else str(entry["answer"]),
                "kind": f"{name}#{index}",
            },
        )
        if len(rows) == size:
            return list(rows.values())
    raise GymError(
        f"{name}: {task} makes only {len(rows)} different problems this way, not {size}; give size={len(rows)}"
    )


if __name__ == "__main__":
    # prints what load_gym wants
    try:
        made = json.dumps(_make(sys.argv[1]))
    except GymError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
    print(made)
