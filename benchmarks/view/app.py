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
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from steerdec.common.errors import SteerdecError
from steerdec.pages import forks, html
from steerdec.pages.forks import TokenTrace
from steerdec.records.folder import load_run

from ..report.run_folder import last_part, read_run, token_trace
from ..report.write import report_page
from ..verdicts.summary import SummaryError, summarize
from . import problems
from .index import Index, Reader
from .progress import progress_of
from .responses import HIDDEN_GRADE, responses

REFRESH_S = 5.0
READING_SHARE = 0.1  # of the time, at most, is spent reading a run that is under way
MOST_SHOWN_TOKENS = 4000
_TEMPLATES = Path(__file__).parent / "templates"

Page = Callable[[Request], Response]


def app(folder: Path, hosts: list[str]) -> Starlette:
    """Return the application that shows the run in `folder`, to requests for one of `hosts` only.

    Everything comes from the files as they are when a page is requested.
    """
    reader = Reader(folder)

    def overview(_: Request) -> Response:
        index = reader.index()
        progress = progress_of(index)
        refresh_s = None if progress.finished else round(max(REFRESH_S, index.reading_s / READING_SHARE))
        return _render(index, "overview.html.j2", progress=progress, refresh_s=refresh_s)

    def report(request: Request) -> Response:
        index = reader.index()
        if not index.seen:
            return _state("No sample yet", "There is nothing to report before the first sample.", 404)
        if not index.finished and request.query_params.get("scores") != "show":
            return _render(index, "ask.html.j2", progress=progress_of(index))
        return HTMLResponse(report_page(read_run(folder, summarize(folder))))

    def listing(request: Request) -> Response:
        query = request.query_params
        text, wanted = query.get("q", "")[:200], query.get("show", "all")
        found = problems.listing(reader.index(), text, wanted, _number(query.get("page"), 1))
        filters = {name: label for name, (label, _) in problems.FILTERS.items()}
        context = {"found": found, "query": text, "wanted": wanted if wanted in filters else "all", "filters": filters}
        return _render(reader.index(), "problems.html.j2", **context)

    def problem(request: Request) -> Response:
        index, name = reader.index(), request.query_params.get("problem", "")
        if name not in index.settings.problems.ids:
            return _state("No such problem", "The run has no problem of this name.", 404)
        return _render(index, "problem.html.j2", problem=name, table=problems.table(index, name))

    def sample(request: Request) -> Response:
        index, query = reader.index(), request.query_params
        name, number = query.get("problem", ""), _number(query.get("sample"), -1)
        arms = [arm for arm in index.arms if arm in query.getlist("arm")] or index.arms
        there = sorted({one.sample for one in index.of_problem(name)})
        if number not in there:
            return _state("No such sample", "The run has no such sample, or not yet.", 404)
        found = responses(folder, index, name, number, arms)
        context = {"problem": name, "sample": number, "there": there, "chosen": arms, "found": found}
        return _render(index, "sample.html.j2", **context)

    def trace(request: Request) -> Response:
        return _trace(folder, reader.index(), dict(request.query_params))

    pages: dict[str, Page] = {
        "/": overview,
        "/report": report,
        "/problems": listing,
        "/problem": problem,
        "/sample": sample,
        "/trace": trace,
    }
    routes = [Route(path, _guarded(page)) for path, page in pages.items()]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])


def _guarded(page: Page) -> Page:
    """Answer with one plain line if a file of the run cannot be read."""

    def guarded(request: Request) -> Response:
        try:
            return page(request)
        except (SteerdecError, SummaryError) as e:
            return _state("The run cannot be read", str(e), 503)

    return guarded


def _state(title: str, reason: str, status: int) -> Response:
    """Return a page that says in one line why there is nothing to show."""
    headers = {"Retry-After": "5"} if status == 503 else None
    page = html.render(_TEMPLATES / "state.html.j2", {"title": title, "reason": reason, "damaged": status == 503})
    return HTMLResponse(page, status_code=status, headers=headers)


def _number(text: str | None, otherwise: int) -> int:
    """Return a whole number of a query, `otherwise` where it is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else otherwise


def _trace(folder: Path, index: Index, query: dict[str, str]) -> Response:
    """Show one sample under two of the arms that kept its tokens."""
    found: dict[str, TokenTrace] = {}
    problem, sample = query.get("problem", ""), query.get("sample", "")
    for one in load_run(folder).samples() if index.seen else ():
        if one.token_text and one.problem_id == problem and str(one.sample) == sample:
            kept = token_trace(one)
            if kept is not None:
                found[one.arm] = kept if index.finished else replace(kept, grade=HIDDEN_GRADE)
    if not found:
        return _state("No such sample", "No such sample kept its tokens.", 404)
    arms = [arm for arm in index.arms if arm in found]
    left = query.get("left", "")
    first = left if left in found else arms[0]
    others = [name for name in arms if name != first]
    right = query.get("right", "")
    second = right if right in others else next(iter(others), None)
    pair = forks.side_by_side(found[first], None if second is None else found[second], MOST_SHOWN_TOKENS)
    groups = {arm.name: arm.seed_group for arm in index.settings.arms.arms}
    same_seed = second is not None and groups[first] == groups[second]
    return _render(index, "trace.html.j2", arms=arms, left=first, right=second, pair=pair, same_seed=same_seed)


def _render(index: Index, template: str, **context: Any) -> HTMLResponse:
    settings = index.settings
    model, set_name = last_part(settings.model), last_part(settings.problems.name)
    context |= {"settings": settings, "arm_names": index.arms, "finished": index.finished}
    context |= {"title": f"{model} on {set_name}"}
    return HTMLResponse(html.render(_TEMPLATES / template, context))
