"""`steerdec bench view`: a run folder in the browser, live while the run is under way.

The first page shows no scores, and neither does the report of an unfinished run unless scores are requested: looking at
scores and stopping at will raises the share of false alarms from 5% to more than 20%.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from steerdec.common.errors import SteerdecError
from steerdec.pages import forks, html
from steerdec.pages.forks import TokenTrace
from steerdec.records.folder import load_run

from ..report.run_folder import last_part, read_run, token_trace
from ..report.write import report_page
from ..verdicts.summary import SummaryError, summarize
from .progress import read_progress

REFRESH_S = 5.0
READING_SHARE = 0.1  # of the time, at most, is spent reading a run that is under way
MOST_SHOWN_TOKENS = 4000
_TEMPLATES = Path(__file__).parent / "templates"

Page = Callable[[Request], Response]


def app(folder: Path, hosts: list[str]) -> Starlette:
    """Return the application that shows the run in `folder`, to requests for one of `hosts` only.

    Everything is read from the files for every page.
    """

    def overview(_: Request) -> Response:
        progress = read_progress(folder)
        refresh_s = None if progress.finished else round(max(REFRESH_S, progress.reading_s / READING_SHARE))
        return _render(folder, "overview.html.j2", progress=progress, refresh_s=refresh_s)

    def report(request: Request) -> Response:
        progress = read_progress(folder)
        if not progress.finished and request.query_params.get("scores") != "show":
            return _render(folder, "ask.html.j2", progress=progress)
        return HTMLResponse(report_page(read_run(folder, summarize(folder))))

    def trace(request: Request) -> Response:
        query = request.query_params
        return _trace(folder, query.get("problem", ""), query.get("sample", ""), query.get("left"), query.get("right"))

    pages: dict[str, Page] = {"/": overview, "/report": report, "/trace": trace}
    routes = [Route(path, _guarded(page)) for path, page in pages.items()]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])


def _guarded(page: Page) -> Page:
    """Answer with one plain line if a file of the run cannot be read."""

    def guarded(request: Request) -> Response:
        try:
            return page(request)
        except (SteerdecError, SummaryError) as e:
            return PlainTextResponse(f"{e}\n", status_code=503, headers={"Retry-After": "5"})

    return guarded


def _trace(folder: Path, problem: str, sample: str, left: str | None, right: str | None) -> Response:
    """Show one sample under two of the arms that kept its tokens."""
    found: dict[str, TokenTrace] = {}
    finished = read_progress(folder).finished
    for one in load_run(folder).samples():
        if one.token_text and one.problem_id == problem and str(one.sample) == sample:
            kept = token_trace(one)
            if kept is not None:
                found[one.arm] = kept if finished else replace(kept, grade="not shown while the run is under way")
    if not found:
        return PlainTextResponse("no such sample kept its tokens\n", status_code=404)
    first = left if left is not None and left in found else next(iter(found))
    others = [name for name in found if name != first]
    second = right if right in others else next(iter(others), None)
    pair = forks.side_by_side(found[first], None if second is None else found[second], MOST_SHOWN_TOKENS)
    return _render(folder, "trace.html.j2", arms=list(found), left=first, right=second, pair=pair)


def _render(folder: Path, template: str, **context: Any) -> HTMLResponse:
    settings = load_run(folder).settings
    model, set_name = last_part(settings.model), last_part(settings.problems.name)
    context |= {"settings": settings, "title": f"{model} on {set_name}"}
    return HTMLResponse(html.render(_TEMPLATES / template, context))
