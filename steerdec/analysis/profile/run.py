"""Run `steerdec profile`: the entropy pattern of a model's responses, as a page and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

import steerdec
from steerdec.analysis import pages
from steerdec.analysis.profile.pattern import MIN_COUNT, Pattern, pattern, pooled
from steerdec.analysis.traces import source, store
from steerdec.analysis.traces.loading import Loaded
from steerdec.analysis.traces.scoring import Scores
from steerdec.analysis.traces.trace import Trace
from steerdec.common.json import write_json
from steerdec.common.paper import FORK_SHARE
from steerdec.pages import charts, forks, provenance

PAGE: Final = "profile.html"
JSON: Final = "profile.json"
_TEMPLATE: Final = Path(__file__).parent / "profile.html.j2"
_SHOWN: Final = 12


def profile(
    resolved: source.Resolved, out: Path, *, threshold_nats: float | None = None, min_count: int | None = None
) -> tuple[Path, dict[str, Any]]:
    """Compute missing traces and scores and write both files; return the page's path, and the JSON as a dict.

    Raises:
        InputError, AnalysisError, ModelError, ProblemError, JournalError: one line each.
    """
    with store.opened(out, {"analysis": "profile"} | resolved.settings()) as kept:
        loaded = source.load(resolved)
        found = source.of_grade(source.all_traces(resolved, loaded, kept), resolved.source.grade)
        scores = source.all_scores(found, loaded, kept)
        least = MIN_COUNT if min_count is None else min_count
        result = pattern(found, scores, lambda i: str(loaded.tokenizer.decode([i])), min_count=least)
        content = _content(resolved, loaded, found, scores, result)
        if threshold_nats is None:
            p80 = float(np.quantile(pooled(found, scores)[0], 1 - FORK_SHARE))
            threshold = p80, "the 80th percentile of these tokens"
        else:
            threshold = threshold_nats, "the one given"
        content |= {"threshold_nats": threshold[0], "threshold_origin": threshold[1]}
        write_json(out / JSON, content)
        page = _page(resolved, loaded, found, scores, result, threshold)
        pages.write_page(_TEMPLATE, page | {"provenance": provenance.rows(_provenance(content))}, out / PAGE)
    return out / PAGE, content


def _content(
    resolved: source.Resolved, loaded: Loaded, traces: list[Trace], scores: list[Scores], result: Pattern
) -> dict[str, Any]:
    return {
        "steerdec": steerdec.__version__,
        "model": loaded.name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "traces": len(traces),
        "ids_are": dict(Counter(trace.ids_are for trace in traces)),
        "grades": dict(Counter(trace.grade for trace in traces)),
        "against_reported_nats": against_reported(traces, scores),
        "settings": resolved.settings(),
    } | asdict(result)


def against_reported(traces: Sequence[Trace], scores: Sequence[Scores]) -> dict[str, float] | None:
    """Compare these entropies with those that the server reported for the same tokens; None if the run stored none.

    A difference beyond rounding means other tokens, another prompt, or another dtype. The journal has five decimals.
    """
    apart = [
        abs(reported - own)
        for trace, score in zip(traces, scores, strict=True)
        for reported, own in zip(trace.reported_entropy_nats or (), score.entropy_nats.tolist(), strict=False)
        if reported is not None
    ]
    if not apart:
        return None
    return {"tokens": len(apart), "largest": max(apart), "mean": float(np.mean(apart))}


def _page(
    resolved: source.Resolved,
    loaded: Loaded,
    traces: list[Trace],
    scores: list[Scores],
    result: Pattern,
    threshold: tuple[float, str],
) -> dict[str, Any]:
    h = pooled(traces, scores)[0]
    data = forks.Histogram(
        counts=result.histogram,
        tokens=result.tokens,
        share_below_0_01=result.share_below_0_01.value,
        share_above_threshold=float(np.mean(h > threshold[0])),
    )
    firsts: dict[str, int] = {}
    for i, trace in enumerate(traces):
        firsts.setdefault(trace.problem_id, i)
    unsure = sum(trace.ids_are == "differ" for trace in traces)
    warning = (
        f"{unsure} of {len(traces)} texts, tokenized again, do not have the tokens that the server counted: their "
        "entropies are those of other tokens than were sampled."
    )
    return {
        "model": Path(loaded.name).name,
        "set_name": _set_name(resolved),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "traces": len(traces),
        "pattern": result,
        "histogram": charts.histogram_chart(data, threshold[0]),
        "threshold_nats": threshold[0],
        "threshold_origin": threshold[1],
        "shown": [
            (problem, pages.shown_start(traces[i], scores[i], threshold[0], loaded.tokenizer))
            for problem, i in list(firsts.items())[:_SHOWN]
        ],
        "warning": warning if unsure else "",
    }


def _set_name(resolved: source.Resolved) -> str:
    if resolved.problem_set is not None:
        return Path(resolved.problem_set.name).name
    return f"run {Path(str(resolved.source.run)).name}"


def _provenance(content: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {name: content[name] for name in ("steerdec", "model", "dtype")} | content["settings"]
    rows["token ids"] = ", ".join(f"{n} {how}" for how, n in content["ids_are"].items())
    if content["against_reported_nats"]:
        apart = content["against_reported_nats"]
        rows["against the server's entropies"] = (
            f"{apart['tokens']} tokens, largest difference {apart['largest']:.2g} nats, mean {apart['mean']:.2g}"
        )
    return rows
