"""The shell of every page: templates with their filters, and one style sheet.

All model output is untrusted. Jinja escapes HTML, `md` and `fenced` escape Markdown, and the content policy of
a page allows one script only, ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from steerdec.pages import forks, wording

_SHARED = Path(__file__).parent
_FULL_TINT_NATS = 2.5
_INVISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍", " ": "·"})


def render(template: Path, context: Mapping[str, Any]) -> str:
    """Return a rendered template, which may import `parts.html.j2` and `charts.html.j2`; `style` is the style sheet."""
    return str(_environment(template.parent).get_template(template.name).render({"style": style(), **context}))


@cache
def _environment(folder: Path) -> jinja2.Environment:
    """Return the templates of `folder` and of this one, with the filters that pages need."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _SHARED]),
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
        "interval": wording.interval,
        "p_value": wording.p_value,
        "scaled": lambda value, digits=2: wording.number(None if value is None else 100 * value, digits),
        "ratio": lambda log_ratio: wording.number(None if log_ratio is None else math.exp(log_ratio)),
        "sentence": wording.sentence,
        "counted": wording.counted,
        "plain": lambda value: wording.MISSING if value is None else f"{value:g}",
        "json": lambda value: wording.MISSING if value is None else json.dumps(value, ensure_ascii=False),
        "tint": lambda nats: round(60 * min(1.0, max(0.0, nats) / _FULL_TINT_NATS), 1),
        "visible": _visible,
        "md": md,
        "fenced": _fenced,
    }
    return templates


@cache
def style() -> Markup:
    """Return the style sheet of every page, light and dark."""
    return Markup((_SHARED / "style.css").read_text(encoding="utf-8"))


def script(path: Path) -> dict[str, str]:
    """Return a page's only script for its template: `script`, and `script_hash` for the page's content policy."""
    text = path.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}


def _visible(text: str) -> str:
    """Return a token with visible spaces and line ends, and shortened if long."""
    shown = text.translate(_INVISIBLE)
    return shown if len(shown) <= 24 else shown[:23] + "…"


def md(text: object) -> str:
    """Return plain text escaped for a cell of a Markdown table: nothing in it is markup, a border, or a new line."""
    escaped = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fenced(trace: forks.ShownTrace) -> str:
    """Return a trace as a code block whose fence is longer than any run of backticks in it."""
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
