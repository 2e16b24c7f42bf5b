"""The report of a run: one HTML file that loads nothing, the same in Markdown, and the figure.

Everything a model wrote is untrusted. HTML is escaped by Jinja, Markdown by `_md` and by fences, and the page's policy
runs one script only, ours, by its hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steerdec.pages import html, wording

from . import plots, view
from .figures import write_figure
from .run_folder import ReportError, RunFolder, read_run
from .table import print_table

__all__ = ["ReportError", "print_table", "write_comparison", "write_figure", "write_report"]

FIGURE_NAME = "differences.png"
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html`, `report.md` and the figure beside the run's files; returns the path of the HTML.

    Raises:
        ReportError: run.json, samples.jsonl or summary.json is missing or malformed.
    """
    folder = read_run(run_dir)
    context = view.page(folder) | {"figure": FIGURE_NAME, "style": html.style()}
    page = _render("report.html.j2", context | html.script(_TEMPLATES / "sort.js"))
    write_figure(folder.summary, folder.path / FIGURE_NAME)
    (folder.path / "report.md").write_text(_render("report.md.j2", context), encoding="utf-8")
    path = folder.path / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def write_comparison(dir_a: str | Path, dir_b: str | Path, out: str | Path) -> Path:
    """Write one page with the verdicts, differences and arms of two runs (two models); returns `out`.

    Raises:
        ReportError: a file of either run is missing or malformed.
    """
    folders = (read_run(dir_a), read_run(dir_b))
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    context = _comparison(folders) | {"style": html.style()}
    path.write_text(_render("comparison.html.j2", context), encoding="utf-8")
    return path


def _comparison(folders: tuple[RunFolder, RunFolder]) -> dict[str, Any]:
    summaries = [folder.summary for folder in folders]
    names = [f"{view.model_name(folder.run)} on {view.set_name(folder.run)}" for folder in folders]
    if names[0] == names[1]:
        names = [f"{name} ({letter})" for name, letter in zip(names, "AB", strict=True)]
    deltas = {summary.get("delta") for summary in summaries}
    delta = deltas.pop() if len(deltas) == 1 else None
    scale = plots.difference_axis(summaries, delta)
    forests = [plots.forest(summary, delta, scale) for summary in summaries]
    rows = [{row.label: row for row in forest.rows} for forest in forests]
    labels = dict.fromkeys(label for found in rows for label in found)
    # One id may carry another statement in another arm set; those are two claims.
    verdicts = [{(c["id"], c["statement"]): c["verdict"] for c in summary["claims"]} for summary in summaries]
    both = plots.scopes(*summaries)
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


def _render(template: str, context: dict[str, Any]) -> str:
    return str(html.environment(_TEMPLATES).get_template(template).render(context))
