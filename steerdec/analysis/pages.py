"""Pages of analyses, in the house style of the benchmark's report: one HTML file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from steerdec.analysis.traces.scoring import Scores
from steerdec.analysis.traces.trace import Trace
from steerdec.benchmarks.report import write as report
from steerdec.common.journal import write_atomically
from steerdec.pages.forks import ShownToken, ShownTrace

_TEMPLATES: Final = Path(__file__).parent / "templates"
MOST_SHOWN_TOKENS: Final = 1500


def write_page(template: str, context: dict[str, Any], path: Path) -> None:
    """Render one of `templates/` and put it at `path`, whole or not at all. Raises JournalError.

    `style` (the style sheet) and the report's filters are there besides `context`.
    """
    page = report.environment(_TEMPLATES).get_template(template).render({"style": report.style(), **context})
    write_atomically(path, page)


def script(name: str) -> dict[str, str]:
    """A script of `templates/` as a page takes it: `script`, and `script_hash`, the only one that its policy runs."""
    text = (_TEMPLATES / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}


def shown(trace: Trace, scores: Scores, threshold_nats: float, tokenizer: Any) -> ShownTrace:
    """A trace as the report's templates take it, its first tokens; forks are those above the threshold."""
    kept = trace.response_ids[:MOST_SHOWN_TOKENS]
    tokens = tuple(
        ShownToken(text, float(h), bool(h > threshold_nats), False)
        for text, h in zip(token_texts(kept, tokenizer), scores.entropy_nats.tolist(), strict=False)
    )
    left_out = len(trace.response_ids) - len(kept)
    return ShownTrace(
        trace.arm,
        trace.answer,
        trace.grade,
        len(trace.response_ids),
        (tokens, left_out) if left_out else (tokens,),
    )


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text; bytes of a character that is not whole yet come with its last token."""
    texts = []
    for t in range(len(ids)):
        start = max(0, t - 8)  # enough before it for every tokenizer's spacing
        before, with_it = tokenizer.decode(ids[start:t]), tokenizer.decode(ids[start : t + 1])
        own = with_it[len(before) :] if with_it.startswith(before) else with_it[len(before.rstrip("\ufffd")) :]
        texts.append("" if own.endswith("\ufffd") else own)
    return texts
