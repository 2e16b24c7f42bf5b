"""The report of a run: one HTML file that loads nothing, the same in Markdown, and the figure.

Everything a model wrote is untrusted. HTML is escaped by Jinja, Markdown by `_md` and by fences, and the page's policy
runs one script only, ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from steerdec.pages import charts, forks, wording

from . import view
from .figures import write_figure
from .run_folder import ReportError, RunFolder, read_run
from .table import print_table

__all__ = ["ReportError", "print_table", "write_comparison", "write_figure", "write_report"]

FIGURE_NAME = "differences.png"
_TEMPLATES = Path(__file__).parent / "templates"
_FULL_TINT_NATS = 2.5
_INVISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍", " ": "·"})


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html`, `report.md` and the figure beside the run's files; returns the path of the HTML.

    Raises:
        ReportError: run.json, samples.jsonl or summary.json is missing or malformed.
    """
    folder = read_run(run_dir)
    script = _asset("sort.js")
    context = view.page(folder) | {"figure": FIGURE_NAME, "style": Markup(_asset("style.css"))}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = _render("report.html.j2", context | {"script": Markup(script), "script_hash": f"sha256-{digest}"})
    write_figure(folder.summary, folder.path / FIGURE_NAME)
    (folder.path / "report.md").write_text(_render("report.md.j2", context), encoding="utf-8")
    path = folder.path / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def write_comparison(dir_a: str | Path, dir_b: str | Path, out: str | Path) -> Path:
    """Write one page with the verdicts, differences and arms of two runs (two models); returns `out`.

    Raises:
        ReportError: a file of either run is missing or malformed.
    """
    folders = (read_run(dir_a), read_run(dir_b))
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    context = _comparison(folders) | {"style": Markup(_asset("style.css"))}
    path.write_text(_render("comparison.html.j2", context), encoding="utf-8")
    return path


def _comparison(folders: tuple[RunFolder, RunFolder]) -> dict[str, Any]:
    summaries = [folder.summary for folder in folders]
    names = [f"{view.model_name(folder.run)} on {view.set_name(folder.run)}" for folder in folders]
    if names[0] == names[1]:
        names = [f"{name} ({letter})" for name, letter in zip(names, "AB", strict=True)]
    deltas = {summary.get("delta") for summary in summaries}
    delta = deltas.pop() if len(deltas) == 1 else None
    scale = charts.difference_axis(summaries, delta)
    forests = [charts.forest(summary, delta, scale) for summary in summaries]
    rows = [{row.label: row for row in forest.rows} for forest in forests]
    labels = dict.fromkeys(label for found in rows for label in found)
    # One id may carry another statement in another arm set; those are two claims.
    verdicts = [{(c["id"], c["statement"]): c["verdict"] for c in summary["claims"]} for summary in summaries]
    both = charts.scopes(*summaries)
    return {
        "folders": folders,
        "summaries": summaries,
        "names": names,
        "forest": forests[0],
        "band": forests[0].band,
        "scope": both[-1] if both else wording.MISSING,
        "joint": [
            (
                label,
                [found[label].marks[-1] if label in found and found[label].marks else None for found in rows],
                [found[label].rows[-1] if label in found else None for found in rows],
            )
            for label in labels
        ],
        "claims": [
            (statement, [found.get((key, statement)) for found in verdicts])
            for key, statement in dict.fromkeys(key for found in verdicts for key in found)
        ],
        "arm_names": list(dict.fromkeys(name for summary in summaries for name in summary["arms"])),
    }


def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _render(template: str, context: dict[str, Any]) -> str:
    return str(environment().get_template(template).render(context))


def environment(*folders: Path) -> jinja2.Environment:
    """The templates of the reports, behind those in `folders`, with the filters they need; HTML is escaped."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _TEMPLATES]),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "number": wording.number,
        "percent": wording.percent,
        "signed": wording.signed,
        "points": wording.points,
        "points_interval": wording.points_interval,
        "percent_interval": wording.percent_interval,
        "p_value": wording.p_value,
        "scaled": lambda value, digits=2: wording.number(None if value is None else 100 * value, digits),
        "ratio": lambda log_ratio: wording.number(None if log_ratio is None else math.exp(log_ratio)),
        "sentence": lambda text: text[:1].upper() + text[1:].rstrip(".") + ".",
        "plain": lambda value: wording.MISSING if value is None else f"{value:g}",
        "json": lambda value: wording.MISSING if value is None else json.dumps(value, ensure_ascii=False),
        "tint": lambda nats: round(60 * min(1.0, max(0.0, nats) / _FULL_TINT_NATS), 1),
        "visible": _visible,
        "md": _md,
        "fenced": _fenced,
    }
    return templates


def style() -> Markup:
    """The style sheet of every page, light and dark."""
    return Markup(_asset("style.css"))


def _visible(text: str) -> str:
    """A token with its spaces and line ends drawn, long ones cut."""
    shown = text.translate(_INVISIBLE)
    return shown if len(shown) <= 24 else shown[:23] + "…"


def _md(text: str) -> str:
    """Plain text as Markdown: nothing in it is markup, a cell's border or a new line."""
    escaped = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fenced(trace: forks.ShownTrace) -> str:
    """A trace as a code block whose fence is longer than any run of backticks in it."""
    parts = []
    for run in trace.runs:
        if isinstance(run, int):
            parts.append(f"\n[{run} tokens left out]\n")
            continue
        for token in run:
            text = f"⟦{token.text}⟧" if token.fork else token.text
            parts.append("◆" + text if token.first_difference else text)
    body = "".join(parts)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    return f"{fence}text\n{body}\n{fence}"
