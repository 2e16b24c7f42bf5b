"""Problem sets from the Hugging Face hub: where they are, and how their rows become ours.

The texts stay there: AIME's belong to the MAA and must not be redistributed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steerdec.common.errors import InvalidInputError

Row = Mapping[str, Any]


class HubError(InvalidInputError):
    """A set cannot be fetched, or its rows have changed shape; one line."""


@dataclass(frozen=True)
class HubSet:
    repo: str
    split: str
    kind: str  # of every problem; see `problems.Problem`
    adapt: Callable[[Row], dict[str, str]]  # `problem` and `answer`, and `id` where the rows carry one
    config: str | None = None
    revision: str | None = None  # a commit; None takes the newest, and the run keeps the content's hash


def _aime24(row: Row) -> dict[str, str]:
    return {"problem": row["problem"], "answer": _without_leading_zeros(row["answer"])}


def _matharena(row: Row) -> dict[str, str]:
    return {"id": str(row["problem_idx"]), "problem": row["problem"], "answer": _without_leading_zeros(row["answer"])}


def _amc23(row: Row) -> dict[str, str]:
    answer = str(row["answer"])
    return {"problem": row["problem"], "answer": answer.removesuffix(".0")}  # mirrors of this set have 27.0


def _math500(row: Row) -> dict[str, str]:
    return {"id": row["unique_id"], "problem": row["problem"], "answer": row["answer"]}


def _gsm8k(row: Row) -> dict[str, str]:
    answer = row["answer"].rpartition("####")[2]  # the worked solution comes before it
    return {"problem": row["question"], "answer": answer.strip().replace(",", "")}


def _without_leading_zeros(answer: object) -> str:
    return str(int(str(answer)))


SETS = {
    "aime24": HubSet("HuggingFaceH4/aime_2024", "train", "integer", _aime24),
    "aime25": HubSet("MathArena/aime_2025", "train", "integer", _matharena),
    "aime26": HubSet("MathArena/aime_2026", "train", "integer", _matharena),
    "amc23": HubSet("knoveleng/AMC-23", "train", "math", _amc23),
    "math500": HubSet("HuggingFaceH4/MATH-500", "test", "math", _math500),
    "gsm8k": HubSet("openai/gsm8k", "test", "number", _gsm8k, config="main"),
}


def load_rows(name: str) -> list[dict[str, str]]:
    """Return `id`, `problem`, `answer`, `kind` of every row. Raises HubError."""
    where = SETS[name]
    try:
        rows = download(where)
    except Exception as e:  # datasets, huggingface_hub, fsspec and the network each raise their own
        reason = " ".join(str(e).split()) or type(e).__name__
        raise HubError(
            f"problem set {name}: {where.repo} could not be fetched from the Hugging Face hub ({reason[:200]}); "
            "a JSONL file with id, problem, answer can be given instead"
        ) from None
    return [adapted(name, index, row) for index, row in enumerate(rows)]


def adapted(name: str, index: int, row: Row) -> dict[str, str]:
    """Return one row of the set in our form. Raises HubError if a column is missing or holds something else."""
    where = SETS[name]
    try:
        problem = where.adapt(row)
    except (KeyError, ValueError, TypeError, AttributeError) as e:
        raise HubError(f"problem set {name}: row {index} of {where.repo} is not as expected ({e!r})") from None
    return problem | {"id": f"{name}-{problem.get('id', index)}", "kind": where.kind}


def download(where: HubSet) -> list[Row]:
    """Return all rows, from the cache if they are there."""
    from datasets import load_dataset  # seconds to import, and only these sets need it

    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # else it prints a line per retry; our error reports the failure in one line
    return list(load_dataset(where.repo, where.config, split=where.split, revision=where.revision))
