"""The report of a run: one HTML file that loads nothing, the same in Markdown, vector figures and LaTeX tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steerdec.common.files import write_atomically
from steerdec.pages import html
from steerdec.records.summary import Summary

from . import latex, view
from .figures import write_figures
from .run_folder import RunFolder, read_run

FIGURE = "differences.svg"
FIGURE_FOR_PAPERS = "differences.pdf"
TABLES = "tables.tex"
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_dir: str | Path, summary: Summary | None = None) -> Path:
    """Write the report beside the run's files: `report.html`, `report.md`, the figure as SVG and PDF, `tables.tex`.

    Args:
        summary: of the run; by default the one in `summary.json`.

    Returns:
        The path of the HTML file.

    Raises:
        SettingsError, JournalError, SummaryFileError: a file of the run is missing or malformed; one line.
    """
    folder = read_run(run_dir, summary)
    context = view.page(folder)
    write_figures(context["forest"], folder.path / FIGURE, folder.path / FIGURE_FOR_PAPERS)
    about = f"{folder.model} on {folder.problem_set}, run of {folder.settings.created[:10]}"
    write_atomically(folder.path / TABLES, latex.tables(context["claims"], context["forest"], about))
    markdown = html.render(_TEMPLATES / "report.md.j2", context | {"figure": FIGURE})
    write_atomically(folder.path / "report.md", markdown)
    path = folder.path / "report.html"
    write_atomically(path, _page(context))
    return path


def report_page(folder: RunFolder) -> str:
    """Return the HTML of `report.html`."""
    return _page(view.page(folder))


def _page(context: dict[str, Any]) -> str:
    return html.render(_TEMPLATES / "report.html.j2", context | html.script(_TEMPLATES / "sort.js"))
