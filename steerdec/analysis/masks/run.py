"""Run `steerdec mask`: write the forks of many responses to a file. They are decided over all tokens at once.

By share, as in arXiv 2506.01939, equation 6: the threshold is the quantile of the batch, and a token at or above it is
a fork. The batch is everything in the mask, so the share is exact except for tokens that tie with the last one, which
are all included. By threshold, as in the server: a token whose entropy is above it is a fork. By class: a token is a
fork if its text belongs to that class, which is unknown until it is sampled; arms that replay recorded responses can
use it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import steerdec
from steerdec.analysis.agreement import top_count
from steerdec.analysis.traces import source, store
from steerdec.analysis.traces.token_classes import token_classes
from steerdec.analysis.traces.trace import Trace
from steerdec.common import journal
from steerdec.common.errors import InputError, reason_of
from steerdec.common.json import nan_if_null
from steerdec.common.token_texts import token_texts
from steerdec.records.calibration import Threshold
from steerdec.records.mask_file import MaskedRequest, write_mask
from steerdec.records.run import NAME as RUN_JSON
from steerdec.records.run import read_settings

ENTROPY: Final = "entropy"
_LENSES: Final = "lenses.jsonl"  # by `steerdec lenses`
_TRACES: Final = f"{source.TRACES}.jsonl"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """A trace, or the start of one, with the lens's score of each token; NaN where it has none."""

    trace: Trace
    entropy_nats: Floats
    score: Floats


def cut_of(scores: Iterable[Floats], share: float) -> float:
    """Return the score at and above which a token is among the top `share` of all tokens with a score.

    Raises:
        InputError: no token has a score.
    """
    pooled = np.concatenate([np.zeros(0, np.float32), *scores])
    known = pooled[~np.isnan(pooled)]
    if not known.size:
        raise InputError("no token has a score; there is nothing to mask")
    at = known.size - top_count(known.size, share)
    return float(np.partition(known, at)[at])


def mask_responses(
    resolved: source.Resolved,
    out: Path,
    *,
    share: float | None = None,
    threshold: Threshold | None = None,
    tokens: str | None = None,
) -> dict[str, Any]:
    """Mask the responses of a run or a model, by entropy or by class; return the content of mask.json.

    Args:
        share: top share of the tokens by entropy. Give exactly one of `share`, `threshold`, and `tokens`.
        threshold: entropy in nats above which a token is a fork.
        tokens: one of `token_classes.CLASSES`.

    Raises:
        InputError, AnalysisError, ModelError, ProblemError, JournalError: one line each.
    """
    with store.opened(out, {"analysis": "mask"} | resolved.settings()) as kept:
        loaded = source.load(resolved)
        found = source.all_traces(resolved, loaded, kept)
        scores = source.all_scores(found, loaded, kept)
        about = {
            "model": loaded.name,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            **_problems(resolved),
            "settings": resolved.settings(),
        }
        entries = [Scored(t, s.entropy_nats, s.entropy_nats) for t, s in zip(found, scores, strict=True)]
        if tokens is None:
            return _write(out, ENTROPY, entries, about, share, threshold)
        entries = [replace(e, score=of_class(e.trace.response_ids, tokens, loaded.tokenizer)) for e in entries]
        return _write(out, f"{tokens} tokens", entries, about, None, None)


def of_class(ids: Sequence[int], tokens: str, tokenizer: Any) -> Floats:
    """Return 1 for each token of the class, and 0 for all others; special tokens belong to no class."""
    special = set(tokenizer.all_special_ids)
    classes = token_classes(token_texts(ids, tokenizer))
    return np.asarray([c == tokens and i not in special for i, c in zip(ids, classes, strict=True)], np.float32)


def mask_lenses(
    folder: Path, lens: str, out: Path, *, share: float | None = None, threshold: Threshold | None = None
) -> dict[str, Any]:
    """Mask the chains of `steerdec lenses` by one of its scores, without loading a model.

    Raises:
        InputError, AnalysisError, JournalError: one line each.
    """
    if threshold is not None and lens != ENTROPY:
        raise InputError(f"--threshold applies to entropies; use --share with --lens {lens}")
    about, entries, left_out = _read_lenses(folder, lens)
    with store.opened(out, {"analysis": "mask", "lenses": str(folder.resolve()), "lens": lens}):
        return _write(out, lens, entries, about | {"left_out": left_out}, share, threshold)


def _write(
    out: Path,
    lens: str,
    entries: Sequence[Scored],
    about: dict[str, Any],
    share: float | None,
    threshold: Threshold | None,
) -> dict[str, Any]:
    beyond = np.greater_equal if threshold is None else np.greater  # a share includes its last token
    if threshold is not None:
        cut = threshold.nats
        by = {"share": None, "threshold_nats": cut, "threshold_origin": threshold.origin}
    elif share is None:  # by class
        cut = 1.0
        by = {"share": None, "threshold_nats": None, "threshold_origin": None}
    else:
        cut = cut_of((entry.score for entry in entries), share)
        by = {"share": share, "threshold_nats": None, "threshold_origin": None}
    about_mask = {
        "steerdec": steerdec.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "lens": lens,
        **by,
        "cut": cut,
        **about,
        "ids_are": dict(Counter(entry.trace.ids_are for entry in entries)),
        "versions": {name: version(name) for name in ("torch", "transformers", "pyarrow")},
    }
    return write_mask(out, (_masked(entry, beyond(entry.score, np.float32(cut))) for entry in entries), about_mask)


def _masked(entry: Scored, fork: NDArray[np.bool_]) -> MaskedRequest:
    trace = entry.trace
    return MaskedRequest(
        problem_id=trace.problem_id,
        arm=trace.arm,
        sample=trace.sample,
        prompt_ids=trace.prompt_ids,
        token_ids=np.asarray(trace.response_ids[: len(fork)], np.int32),
        entropy_nats=entry.entropy_nats,
        score=entry.score,
        fork=fork,
        ids_are=trace.ids_are,
        answer=trace.answer,
        grade=trace.grade,
    )


def _problems(resolved: source.Resolved) -> dict[str, Any]:
    requested = resolved.source
    if resolved.problem_set is not None:
        about_mask = {"name": resolved.problem_set.name, "sha256": resolved.problem_set.sha256}
        return {"problems": about_mask, "prompt": requested.prompt}
    assert requested.run is not None, "resolve() gives a run or problems"
    run = read_settings(requested.run / RUN_JSON)
    return {"problems": {"name": run.problems.source, "sha256": run.problems.sha256}, "prompt": run.prompt}


def _read_lenses(folder: Path, lens: str) -> tuple[dict[str, Any], list[Scored], int]:
    """Return (about, chains that have the lens, number that do not). A chain is the start of a sample's response."""
    settings = _lens_settings(folder)
    traces = {t.key: t for t in map(store.trace_of, journal.read_records(folder / _TRACES))}
    of_sample = {(problem, sample): trace for (problem, _, sample), trace in traces.items()}
    entries: list[Scored] = []
    names: set[str] = set()
    left_out = 0
    for record in journal.read_records(folder / _LENSES):
        scores = record.get("scores", {})
        names |= scores.keys()
        if lens not in scores:
            left_out += 1
            continue
        trace = of_sample.get((record["problem_id"], record["sample"]))
        n = len(record["tokens"])
        if trace is None or len(trace.response_ids) < n:
            where = f"problem {record['problem_id']}, sample {record['sample']}"
            raise InputError(f"{folder / _TRACES} does not have the {n} tokens of {where} that {_LENSES} scores")
        entries.append(Scored(trace, _floats(scores[ENTROPY], n), _floats(scores[lens], n)))
    if not entries:
        have = f"it has {', '.join(sorted(names))}" if names else "it has none"
        raise InputError(f"--lens: {folder / _LENSES} has no score {lens!r}; {have}")
    about = {
        "model": settings["model"],
        "dtype": settings.get("dtype"),
        "problems": {"name": settings.get("problems"), "sha256": settings.get("problems_sha256")},
        "prompt": settings.get("prompt"),
        "settings": settings,
    }
    return about, entries, left_out


def _lens_settings(folder: Path) -> dict[str, Any]:
    path = folder / store.SETTINGS
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(
            f"--lenses: {path} cannot be read ({reason_of(e)}); give a folder of `steerdec lenses`"
        ) from None
    if not isinstance(settings, dict) or settings.get("analysis") != "lenses":
        raise InputError(f"--lenses: {folder} was not made by `steerdec lenses`")
    return settings


def _floats(values: Sequence[float | None], n: int) -> Floats:
    """Convert the scores of a record, with None as NaN. Raises InputError."""
    if len(values) != n:
        raise InputError(f"{_LENSES}: {len(values)} scores for {n} tokens")
    return nan_if_null(values).astype(np.float32)
