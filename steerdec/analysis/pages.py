"""Pages of analyses, in the house style of the benchmark's report: one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from steerdec.analysis.traces.scoring import Scores
from steerdec.analysis.traces.texts import token_texts
from steerdec.analysis.traces.trace import Trace
from steerdec.common.files import write_atomically
from steerdec.pages import html
from steerdec.pages.forks import ShownToken, ShownTrace

_SHARED: Final = Path(__file__).parent  # analysis.html.j2, the shell of these pages
MOST_SHOWN_TOKENS: Final = 1500


def write_page(template: Path, context: dict[str, Any], path: Path) -> None:
    """Render the file `template` and put it at `path`, whole or not at all. Raises JournalError.

    `style` (the style sheet) and the report's filters are there besides `context`.
    """
    page = (
        html.environment(template.parent, _SHARED)
        .get_template(template.name)
        .render({"style": html.style(), **context})
    )
    write_atomically(path, page)


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
