"""The summary of a run on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from steerdec.pages import wording
from steerdec.records.summary import Summary

from . import plots, sentences
from .view import claim_rows

_LEGEND = "forks: share of tokens above the threshold; nats: mean entropy; cut: stopped by the token limit"
_STYLE = {
    "holds": "green",
    "reversed": "red",
    "no effect": "red",
    "not applied": "bold red",
    "valid": "green",
    "invalid": "bold red",
}
_SHOUTED = r"\b(NOT CHECKED|NOT SHOWN|NOT APPLIED|NO EFFECT|INVALID|VALID|HOLDS|REVERSED|UNDECIDED)\b"
# Replacements for the signs that `wording` uses, on a console that cannot write UTF-8.
_ASCII = str.maketrans({wording.MINUS: "-", wording.MISSING: "-", "“": '"', "”": '"', "±": "+-"})


def print_table(summary: Summary, console: Console) -> None:
    """Print arms, paired differences, the verdicts as a table, and why as sentences. Fits 100 columns."""
    console.print(_arms(summary, console))
    console.print(_text(_LEGEND, console, "dim"))
    if dropped := sentences.dropped_sentence(summary):
        console.print(_text(dropped, console, "dim"))
    for caution in sentences.cautions(summary):
        console.print(_text(caution, console, "yellow"))
    console.print(_comparisons(summary, console))
    if summary.branching:
        _print_branching(summary, console)
    console.print(_text("Verdicts so far" if sentences.interim_sentence(summary) else "Verdicts", console, "bold"))
    _print_sentence(sentences.instrument_sentence(summary), console, _STYLE.get(summary.instrument, "yellow"))
    if summary.claims:
        console.print(_claims(summary, console))
    for claim in summary.claims:
        _print_sentence(sentences.claim_sentence(claim), console, _STYLE.get(claim.verdict, "yellow"))


def _claims(summary: Summary, console: Console) -> Table:
    table = _table("points", "95% interval", "claimed", first="claim", others="verdict")
    for row in claim_rows(summary, ""):
        cells = (row.difference, row.interval, row.claimed)
        name = _text(row.label or row.claim.id, console)
        verdict = _text(row.claim.verdict, console, _STYLE.get(row.claim.verdict, "yellow"))
        table.add_row(name, verdict, *(_text(cell, console) for cell in cells))
    return table


def _arms(summary: Summary, console: Console) -> Table:
    ks = {arm.k for arm in summary.arms.values()}
    avg = f"avg@{ks.pop()}" if len(ks) == 1 else "avg@k"
    table = _table(avg, "95% interval", "forks", "nats", "tokens", "cut", "ungraded")
    for name, arm in summary.arms.items():
        cells = (
            wording.percent(arm.avg_at_k),
            wording.percent_interval(arm.avg_at_k_ci95),
            wording.percent(arm.fork_rate),
            wording.number(arm.mean_entropy_nats, 3),
            wording.number(arm.mean_tokens, 0),
            wording.percent(arm.truncation_rate),
            wording.number(arm.ungraded, 0),
        )
        table.add_row(_text(name, console), *(_text(cell, console) for cell in cells))
    return table


def _comparisons(summary: Summary, console: Console) -> Table:
    populations = plots.populations(summary)
    table = _table("points", *(f"95% over {name}" for name in populations), "Holm p", first="difference")
    for pair, by_population in plots.by_pair(summary).items():
        rows = list(by_population.values())
        holm = [row.p_holm for row in rows if row.p_holm is not None]
        cells = (
            plots.label(*pair),
            wording.points(rows[0].diff),
            *(wording.points_interval(by_population[n].ci95) if n in by_population else "" for n in populations),
            wording.p_value(holm[-1] if holm else None),
        )
        table.add_row(*(_text(cell, console) for cell in cells))
    return table


def _print_branching(summary: Summary, console: Console) -> None:
    """Print every branching arm beside as many tokens of plain samples, and what it gains over the other ones."""
    console.print(_text("Branching at equal tokens, described, not corrected", console, "bold"))
    for row in summary.branching:
        console.print(_text(sentences.branching_sentence(row), console, "dim"))
    table = _table("tree", "plain", "points", "95% interval", others="outcome")
    for row in summary.branching:
        for one in row.outcomes:
            score = (wording.percent(one.tree), wording.percent(one.plain))
            cells = (row.arm, one.outcome, *score, wording.points(one.diff), wording.points_interval(one.ci95))
            table.add_row(*(_text(cell, console) for cell in cells))
    for pair in summary.branch_contrasts:
        difference = (wording.points(pair.diff), wording.points_interval(pair.ci95))
        cells = (plots.label(pair.arm, pair.against), pair.outcome, "", "", *difference)
        table.add_row(*(_text(cell, console) for cell in cells))
    console.print(table)


def _table(*columns: str, first: str = "arm", others: str | None = None) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column(first, overflow="fold", min_width=8)
    if others is not None:
        table.add_column(others)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _print_sentence(sentence: str, console: Console, style: str) -> None:
    text = _text(sentence, console)
    text.highlight_regex(_SHOUTED, f"bold {style}")
    console.print(Padding(text, (0, 0, 0, 2)))


def _text(content: str, console: Console, style: str = "") -> Text:
    """Return `Text`, so that an arm called `[red]` is printed, not taken as markup."""
    if not console.encoding.lower().startswith("utf"):
        content = content.translate(_ASCII).encode(console.encoding, "replace").decode(console.encoding)
    return Text(content, style)
