"""Pages of analyses, in the house style of the benchmark's report: one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from steerdec.analysis.traces.scoring import Scores
from steerdec.analysis.traces.trace import Trace
from steerdec.common.files import write_atomically
from steerdec.common.token_texts import token_texts
from steerdec.pages import html
from steerdec.pages.forks import ShownTrace, TokenTrace, shown_trace

MOST_SHOWN_TOKENS: Final = 1500


def write_page(template: Path, context: dict[str, Any], path: Path) -> None:
    """Render the template into the file `path`, whole or not at all. Raises JournalError."""
    write_atomically(path, html.render(template, context))


def shown_start(trace: Trace, scores: Scores, threshold_nats: float, tokenizer: Any) -> ShownTrace:
    """Show the first tokens of a trace; forks are those above the threshold."""
    entropies = scores.entropy_nats.tolist()
    shown = min(len(entropies), MOST_SHOWN_TOKENS)
    texts = [*token_texts(trace.response_ids[:shown], tokenizer), *[""] * (len(entropies) - shown)]
    scored = TokenTrace(
        problem_id=trace.problem_id,
        arm=trace.arm,
        sample=trace.sample,
        entropy_nats=tuple(entropies),
        fork=tuple(h > threshold_nats for h in entropies),
        token_text=tuple(texts),
        answer=trace.answer,
        grade=trace.grade,
    )
    return shown_trace(scored, [(0, shown)])
