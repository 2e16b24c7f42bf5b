"""The summary of a run on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from steerdec.pages import wording

from . import plots

_LEGEND = "forks: share of tokens above the threshold; nats: mean entropy; cut: stopped by the token limit"
_STYLE = {"holds": "green", "fails": "red", "valid": "green", "invalid": "bold red"}
# What a console that cannot write UTF-8 gets in place of the signs `wording` uses.
_ASCII = str.maketrans({wording.MINUS: "-", wording.MISSING: "-", "“": '"', "”": '"', "±": "+-"})


def print_table(summary: Mapping[str, Any], console: Console) -> None:
    """Arms, paired differences, then the verdicts as sentences (the instrument's first). Fits 100 columns."""
    console.print(_arms(summary, console))
    console.print(_text(_LEGEND, console, "dim"))
    if cut := wording.cut_sentence(summary):
        console.print(_text(cut, console, "yellow"))
    missing = sum(arm.get("missing") or 0 for arm in summary["arms"].values())
    if missing:
        console.print(_text(f"The run is not finished: {missing} samples are still to be made.", console, "yellow"))
    console.print(_comparisons(summary, console))
    console.print(_text("Verdicts", console, "bold"))
    instrument = str(summary.get("instrument"))
    _print_sentence(wording.instrument_sentence(summary), console, _STYLE.get(instrument, "yellow"))
    for claim in summary["claims"]:
        _print_sentence(wording.claim_sentence(claim), console, _STYLE.get(claim["verdict"], "yellow"))


def _arms(summary: Mapping[str, Any], console: Console) -> Table:
    ks = {arm["k"] for arm in summary["arms"].values()}
    avg = f"avg@{ks.pop()}" if len(ks) == 1 else "avg@k"
    table = _table(avg, "95% interval", "forks", "nats", "tokens", "cut", "ungraded")
    for name, arm in summary["arms"].items():
        cells = (
            wording.percent(arm["avg_at_k"]),
            wording.percent_interval(arm.get("avg_at_k_ci95")),
            wording.percent(arm["fork_rate"]),
            wording.number(arm["mean_entropy_nats"], 3),
            wording.number(arm["mean_tokens"], 0),
            wording.percent(arm["truncation_rate"]),
            wording.number(arm["ungraded"], 0),
        )
        table.add_row(_text(name, console), *(_text(cell, console) for cell in cells))
    return table


def _comparisons(summary: Mapping[str, Any], console: Console) -> Table:
    scopes = plots.scopes(summary)
    table = _table("points", *(f"95% over {scope}" for scope in scopes), "Holm p", first="difference")
    for (arm, baseline), rows in plots.pairs(summary).items():
        by_scope = {row["scope"]: row for row in rows}
        holm = [row["p_holm"] for row in rows if row["p_holm"] is not None]
        cells = (
            f"{arm} {wording.MINUS} {baseline}",
            wording.points(rows[0]["diff"]),
            *(wording.points_interval(by_scope[scope]["ci95"]) if scope in by_scope else "" for scope in scopes),
            wording.p_value(holm[-1] if holm else None),
        )
        table.add_row(*(_text(cell, console) for cell in cells))
    return table


def _table(*columns: str, first: str = "arm") -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column(first, overflow="fold", min_width=8)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _print_sentence(sentence: str, console: Console, style: str) -> None:
    text = _text(sentence, console)
    text.highlight_regex(r"\b(NOT CHECKED|IN?VALID|VALID|HOLDS|FAILS|UNDECIDED)\b", f"bold {style}")
    console.print(Padding(text, (0, 0, 0, 2)))


def _text(content: str, console: Console, style: str = "") -> Text:
    """As `Text`, so that an arm called `[red]` is printed and not obeyed."""
    if not console.encoding.lower().startswith("utf"):
        content = content.translate(_ASCII).encode(console.encoding, "replace").decode(console.encoding)
    return Text(content, style)
