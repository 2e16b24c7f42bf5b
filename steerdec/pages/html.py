"""The shell of every page: templates with their filters, and one style sheet.

Everything a model wrote is untrusted. HTML is escaped by Jinja, Markdown by `_md` and by fences, and a page's policy
runs one script only, ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path

import jinja2
from markupsafe import Markup

from steerdec.pages import forks, wording

_SHARED = Path(__file__).parent
_FULL_TINT_NATS = 2.5
_INVISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍", " ": "·"})


def environment(*folders: Path) -> jinja2.Environment:
    """Return the templates in `folders` and of this folder, with the filters that pages need; HTML is escaped."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _SHARED]),
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
    return Markup((_SHARED / "style.css").read_text(encoding="utf-8"))


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


def script(path: Path) -> dict[str, str]:
    """Return a page's only script as templates take it: `script`, and `script_hash`, all that its policy lets run."""
    text = path.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}
