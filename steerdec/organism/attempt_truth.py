"""Whether lenses of sentences find the attempts that took the right first turn. Pure.

An attempt of a chain is a sentence. It is *on the way* if its first move is the solution's, which is known; a lens for
consequence should score it above its neighbors. The last attempt of a solved chain always is, so position is a baseline
to beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerdec.analysis.agreement import auroc, over_problems
from steerdec.analysis.lenses import matrix, names, resampling
from steerdec.organism import truth


def with_rollouts(records: Sequence[dict[str, Any]], places: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the lines of `resamples.jsonl` to the records they belong to; records without any stay as they are."""
    of: dict[str, list[dict[str, Any]]] = {}
    for line in places:
        of.setdefault(str(line["problem_id"]), []).append(line)
    return [
        resampling.added(record, own) if (own := of.get(str(record["problem_id"]))) else record for record in records
    ]


def on_the_way(record: Mapping[str, Any], problem: str) -> NDArray[np.bool_]:
    """Return for each sentence of a chain whether its first decision keeps the target within reach; [sentences]."""
    labels = truth.labels(truth.puzzle(problem), record["tokens"])
    first = [next((x for x in labels[a:b] if x.kind == truth.DECISION), None) for a, b in record["spans"]]
    return np.array([label is not None and label.right for label in first])


def report(records: Sequence[dict[str, Any]], problems: Mapping[str, str]) -> dict[str, Any]:
    """Return the AUROC of attempts on the way by each lens of sentences, over problems, as JSON values."""
    looked = [record for record in records if not record.get("skipped")]
    table = matrix.read(looked)
    truths = [on_the_way(record, problems[name]) for record, name in zip(looked, table.problems, strict=True)]
    lenses = (*names.sentence_lenses(resampled=table.resampled), *names.SENTENCE_BASELINES)
    found = {}
    for lens in lenses:
        rows = []
        for mask, scores in zip(truths, table.sentences, strict=True):
            values = scores.get(lens.name, np.full(len(mask), np.nan))
            known = ~np.isnan(values)
            rows.append(auroc(mask[known], values[known]))
        seed = matrix.seed_of("attempts", lens.name)
        found[lens.name] = asdict(over_problems(rows, table.problems, seed=seed))
    return {"attempts": sum(map(len, truths)), "on_the_way": int(sum(mask.sum() for mask in truths)), "auroc": found}
