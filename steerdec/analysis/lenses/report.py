"""Run `steerdec lenses`: analyze the chains, then write one agreement matrix, as a page and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

import steerdec
from steerdec.analysis import pages
from steerdec.analysis.agreement import Interval
from steerdec.analysis.lenses import anchors
from steerdec.analysis.lenses import matrix as lens_matrix
from steerdec.analysis.lenses import names as lens_names
from steerdec.analysis.lenses import page as lens_page
from steerdec.analysis.lenses import run as looking
from steerdec.analysis.lenses import words as lens_words
from steerdec.analysis.lenses.matrix import Pair, Table
from steerdec.analysis.lenses.nulls import DRAWS, NullTest
from steerdec.analysis.lenses.trace import LensSettings
from steerdec.analysis.traces import continuations, source, store
from steerdec.analysis.traces.source import Resolved
from steerdec.common import bootstrap
from steerdec.common.errors import AnalysisError
from steerdec.common.json import null_if_nan, write_json
from steerdec.common.paper import FORK_SHARE
from steerdec.pages import html, provenance

PAGE: Final = "lenses.html"
JSON: Final = "lenses.json"
_FOLDER: Final = Path(__file__).parent


def lenses(resolved: Resolved, out: Path, settings: LensSettings) -> tuple[Path, dict[str, Any]]:
    """Make the records that are missing and write both files; return the page's path, and the JSON as a dict.

    Raises:
        InputError, AnalysisError, ModelError, ProblemError, JournalError: one line each.
    """
    loaded = source.load(resolved)
    looking.check(loaded, resolved, settings)
    with store.opened(out, looking.settings_of(loaded, resolved, settings)) as kept:
        records = looking.look(loaded, resolved, settings, kept)
        return write(records, looking.settings_of(loaded, resolved, settings), out)


def write(records: Sequence[dict[str, Any]], settings: Mapping[str, Any], out: Path) -> tuple[Path, dict[str, Any]]:
    """Write both files from the records and the settings they were made with, without the model.

    Raises:
        AnalysisError: no problem has a chain that could be analyzed.
        JournalError: the folder cannot be written.
    """
    table = lens_matrix.read(records)
    if not table.problems:
        raise AnalysisError(f"none of {len(records)} problems has a chain to analyze: {records[0]['skipped']}")
    pairs, sentences = lens_matrix.token_pairs(table), lens_matrix.sentence_pairs(table)
    repeated, answers = lens_matrix.ceilings(table), lens_matrix.answers(records)
    claims = lens_words.claims(pairs, sentences, answers)
    content = {
        "steerdec": steerdec.__version__,
        "settings": dict(settings),
        **_counts(records, table),
        "claims": claims,
        "findings": lens_words.findings(claims),
        "top_share": FORK_SHARE,
        "resamples": bootstrap.DRAWS,
        "null_draws": DRAWS,
        "sentence_null_draws": lens_matrix.SENTENCE_DRAWS,
        "token_pairs": [_pair(pair) for pair in pairs],
        "ceilings": {name: _intervals(found) for name, found in repeated.items()},
        "sentence_pairs": [_pair(pair) for pair in sentences],
        "answer_tokens": _intervals(answers),
        "hsic_peaks": _intervals(lens_matrix.hsic_peaks(table)),
        **_resampling(records),
    }
    write_json(out / JSON, content)
    context = _page(records, table, pairs, sentences, repeated)
    context |= content | {"provenance": provenance.rows(_provenance(content))}
    pages.write_page(_FOLDER / "lenses.html.j2", context, out / PAGE)
    return out / PAGE, content


def _counts(records: Sequence[Mapping[str, Any]], table: Table) -> dict[str, Any]:
    looked = _looked(records)
    return {
        "problems": len(records),
        "looked_at": len(looked),
        "skipped": [{"problem_id": r["problem_id"], "why": r["skipped"]} for r in records if r.get("skipped")],
        "tokens": sum(len(r["tokens"]) for r in looked),
        "sentences": sum(len(r["spans"]) for r in looked),
        "rollouts": dict(Counter(str(r["rollouts"]) for r in looked)),
        "greedy_chains": sum("greedy" in trace for trace in table.tokens),
        "looked_at_again": sum("entropy@again" in trace for trace in table.tokens),
        "receiver_heads": table.heads,
        "packed": all(r["packed"] for r in looked),
        "grades": dict(Counter(r["grade"] for r in looked)),
        "seconds_looking": round(sum(r["seconds"] for r in looked), 1),
    }


def _resampling(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collect what was resampled, with every sentence's importance; empty if it was not requested."""
    resampled = [record for record in records if record.get("resampling")]
    if not resampled:
        return {}
    rollouts = int(resampled[0]["resampling"]["rollouts"])
    cosines = [cosine for record in resampled for cosine in record["resampling"]["cosines"]]
    content = {
        "rollouts": rollouts,
        "places": sum(len(record["resampling"]["right"]) for record in resampled),
        "temperature": continuations.TEMPERATURE,
        "top_p": continuations.TOP_P,
        "same_meaning_cosine": anchors.SAME_MEANING,
        "kl_smoothing": anchors.SMOOTHING,
        "standard_error": _known(float(np.sqrt(0.5 / rollouts))),
        "cosine_quartiles": [_known(float(value)) for value in np.quantile(cosines, [0.25, 0.5, 0.75])],
        "means": _intervals(lens_matrix.resampling(resampled)),
        "tokens": sum(record["resampling"]["tokens"] for record in resampled),
        "seconds": round(sum(record["resampling"]["seconds"] for record in resampled), 1),
        "problems": [
            {"problem_id": record["problem_id"], "right": record["resampling"]["right"]}
            | record["resampling"]["sentences"]
            for record in resampled
        ],
    }
    return {"resampling": content}


def _page(
    records: Sequence[dict[str, Any]],
    table: Table,
    pairs: Sequence[Pair],
    sentences: Sequence[Pair],
    repeated: Mapping[str, Mapping[str, Interval]],
) -> dict[str, Any]:
    columns, rows = lens_page.matrix(pairs, repeated)
    declared = [pair for pair in pairs if pair.shift is not None]
    sentence_lenses = lens_names.sentence_lenses(resampled=table.resampled)
    return {
        "columns": columns,
        "rows": rows,
        "declared": [(lens_words.names(pair), pair, lens_words.sign(pair)) for pair in declared],
        "anchors": [
            (lens, [(lens_names.lens(p.second), p, lens_words.sign(p)) for p in sentences if p.first == lens.name])
            for lens in sentence_lenses
        ],
        "sentence_lenses": sentence_lenses,
        "sentence_pairs_tested": sum(pair.shift is not None for pair in sentences),
        "repeated": [(lens_names.lens(name), found) for name, found in repeated.items()],
        "shown": [
            (record, lens_page.lines(record, table, i))
            for i, record in list(enumerate(_looked(records)))[: lens_page.SHOWN]
        ],
        "names": lens_names,
        **html.script(_FOLDER / "lenses.js"),
    }


def _provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {"steerdec": content["steerdec"]} | content["settings"]
    rows["grades of the chains"] = ", ".join(f"{n} {grade}" for grade, n in content["grades"].items())
    rows["branches"] = (
        "packed" if content["packed"] else "one pass each, because the model does not support a tree mask"
    )
    rows["time under the lenses"] = f"{content['seconds_looking']:.0f} s, sampling and statistics not counted"
    if "resampling" in content:
        rows["time resampling"] = f"{content['resampling']['seconds']:.0f} s, {content['resampling']['tokens']} tokens"
    return rows


def _looked(records: Sequence[dict[str, Any] | Mapping[str, Any]]) -> list[Any]:
    return [record for record in records if not record.get("skipped")]


def _pair(pair: Pair) -> dict[str, Any]:
    content: dict[str, Any] = {"first": pair.first, "second": pair.second, "measures": _intervals(pair.measures)}
    for name, test, p_holm in (("shift", pair.shift, pair.shift_holm), ("shuffle", pair.shuffle, pair.shuffle_holm)):
        if test is not None:
            content[name] = _null(test) | {"p_holm": _known(p_holm)}
    return content


def _null(test: NullTest) -> dict[str, Any]:
    return {name: _known(value) for name, value in asdict(test).items()}


def _intervals(found: Mapping[str, Interval]) -> dict[str, dict[str, Any]]:
    return {name: _interval(one) for name, one in found.items()}


def _interval(one: Interval) -> dict[str, Any]:
    ci95 = None if np.isnan(one.low) else [_known(one.low), _known(one.high)]
    return {"value": _known(one.mean), "ci95": ci95, "problems": one.n_problems}


def _known(value: float | int | None) -> float | int | None:
    """Round to six digits, which is more than an interval supports."""
    return value if isinstance(value, int) else null_if_nan(value, 6)
