"""One OpenTelemetry span per steered request, where vLLM's tracing is on (`--otlp-traces-endpoint`).

vLLM's own span, `llm_request`, becomes its child, because the request goes on with the span's context in its headers.
Where tracing is off, nothing of OpenTelemetry is imported here, and nothing is done per request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from steerdec.telemetry.loan import Telemetry

    from .body import Prepared

NAME: Final = "steerdec.request"


def tracer_of(config: Any) -> Tracer | None:
    """Return the tracer of this process, which exports where vLLM's does; None if vLLM's tracing is off."""
    if config.observability_config.otlp_traces_endpoint is None:
        return None
    from opentelemetry import trace

    return trace.get_tracer("steerdec")


@contextmanager
def span_of(tracer: Tracer | None, headers: MutableHeaders, prepared: Prepared) -> Iterator[Span | None]:
    """Yield the span of a steered request, which ends with the block, and put its context into the headers.

    Its parent is the span that the client names in the headers, if it names one.
    """
    if tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator()
    about: dict[str, str | float] = {
        "steerdec.policy": prepared.policy,
        "steerdec.threshold_nats": prepared.loan.threshold_nats,
    }
    parent = context.extract(dict(headers.items()))
    with tracer.start_as_current_span(NAME, context=parent, kind=SpanKind.SERVER, attributes=about) as span:
        carrier: dict[str, str] = {}
        context.inject(carrier, set_span_in_context(span))
        headers.update(carrier)
        yield span


def count(span: Span, choices: Sequence[Telemetry]) -> None:
    """Add what was done to the tokens of all choices of an answer. Without telemetry, nothing is known of them."""
    if not choices:
        return
    entropies = np.concatenate([choice.entropy_nats for choice in choices])
    known = entropies[np.isfinite(entropies)]
    span.set_attribute("steerdec.tokens", len(entropies))
    span.set_attribute("steerdec.forks", sum(int(choice.fork.sum()) for choice in choices))
    if len(known):
        span.set_attribute("steerdec.mean_entropy_nats", float(known.mean(dtype=np.float64)))
