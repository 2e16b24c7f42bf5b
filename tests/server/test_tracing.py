"""Spans of steered requests: in this process, and as a collector gets them from a real server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from steerdec.server import tracing
from steerdec.telemetry.lanes import created
from tests.support.in_process import ENTROPIES_NATS, InProcess, in_process_server
from tests.support.serving import PATIENCE_S, serving

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STEERING = {"fork_temperature": 1.3, "threshold_nats": 0.6}


@pytest.fixture
def server() -> Iterator[InProcess]:
    with created(64, 9, 1 << 20, name="test-tracing") as file:
        yield in_process_server(file)


@pytest.fixture
def exported(server: InProcess) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server.host = replace(server.host, tracer=provider.get_tracer("steerdec"))
    return exporter


def body(**more: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "x", "seed": 1, "n": 2, "steering": STEERING} | more).encode()


@pytest.mark.parametrize("stream", [False, True])
def test_a_steered_request_has_one_span_with_its_counts(
    server: InProcess, exported: InMemorySpanExporter, stream: bool
) -> None:
    assert server.post("/v1/completions", body(stream=stream))[0] == 200
    (span,) = exported.get_finished_spans()
    assert span.name == "steerdec.request"
    assert dict(span.attributes or {}) == {
        "steerdec.policy": "split",
        "steerdec.threshold_nats": pytest.approx(0.6),
        "steerdec.tokens": 2 * len(ENTROPIES_NATS),
        "steerdec.forks": 2 * sum(h > 0.6 for h in ENTROPIES_NATS),
        "steerdec.mean_entropy_nats": pytest.approx(sum(ENTROPIES_NATS) / len(ENTROPIES_NATS)),
    }


def test_without_telemetry_a_span_says_what_was_requested(server: InProcess, exported: InMemorySpanExporter) -> None:
    server.post("/v1/completions", body(steering=STEERING | {"telemetry": "none"}))
    (span,) = exported.get_finished_spans()
    assert set(span.attributes or {}) == {"steerdec.policy", "steerdec.threshold_nats"}


def test_plain_and_refused_requests_have_no_span(server: InProcess, exported: InMemorySpanExporter) -> None:
    assert server.post("/v1/completions", body(steering=None))[0] == 200
    assert server.post("/v1/completions", body(steering={"forks": 1}))[0] == 400
    assert exported.get_finished_spans() == ()


def test_the_span_is_between_the_clients_and_vllms(server: InProcess, exported: InMemorySpanExporter) -> None:
    """The context goes on in the headers, the client's span is the parent, and its other headers stay."""
    passed_on: list[Any] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        passed_on.extend(scope["headers"])
        await server.inner(scope, receive, send)

    server.behind = behind
    raw = body()
    headers = [
        *((b"content-length", str(len(raw)).encode()), (b"x-mine", b"1")),
        *((b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()), (b"tracestate", b"vendor=1")),
    ]
    asyncio.run(_call(server, raw, headers))
    (span,) = exported.get_finished_spans()
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    names = [name for name, _ in passed_on]
    assert sorted(names) == sorted(name for name, _ in headers)
    found = dict(passed_on)
    assert found[b"traceparent"] == f"00-{TRACE}-{span.get_span_context().span_id:016x}-01".encode()
    assert (found[b"tracestate"], found[b"x-mine"]) == (b"vendor=1", b"1")


def test_a_failure_behind_is_told_and_the_lanes_come_back(server: InProcess, exported: InMemorySpanExporter) -> None:
    async def behind(*_: Any) -> None:
        raise RuntimeError("broken")

    server.behind = behind
    with pytest.raises(RuntimeError, match="broken"):
        server.post("/v1/completions", body())
    (span,) = exported.get_finished_spans()
    assert not span.status.is_ok
    assert "steerdec.tokens" not in (span.attributes or {})


async def _call(server: InProcess, raw: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": raw}

    async def send(_: Any) -> None:
        return

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "root_path": "", "headers": headers}
    await server.app()(scope, receive, send)


def test_while_tracing_is_off_nothing_of_opentelemetry_is_imported() -> None:
    code = """
import sys
from types import SimpleNamespace
from steerdec.server import tracing
config = SimpleNamespace(observability_config=SimpleNamespace(otlp_traces_endpoint=None))
assert tracing.tracer_of(config) is None
with tracing.span_of(None, {}, None) as span:
    assert span is None
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_while_tracing_is_on_there_is_a_tracer() -> None:
    config = SimpleNamespace(observability_config=SimpleNamespace(otlp_traces_endpoint="http://127.0.0.1:4317"))
    assert tracing.tracer_of(config) is not None


# A real server -----------------------------------------------------------------------------------


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What an OpenTelemetry collector does with spans sent to it: takes them. The real one is a program in Go."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 # the name in OTLP
        self.spans += [span for each in request.resource_spans for scoped in each.scope_spans for span in scoped.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str, trace: str, patience_s: float = 60) -> Any:
        """The one span of this name in a trace, once it has come."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            found = [span for span in list(self.spans) if span.name == name and span.trace_id.hex() == trace]
            if found:
                assert len(found) == 1
                return found[0]
            time.sleep(0.2)
        raise TimeoutError(f"no span {name} of {trace}; there are {sorted({span.name for span in self.spans})}")


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector, and its endpoint."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@pytest.mark.engine
@pytest.mark.thorough
def test_a_collector_gets_the_counts_and_vllms_span_below_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # milliseconds between exports
    with collecting() as (collector, endpoint), serving(tmp_path / "log", "--otlp-traces-endpoint", endpoint) as url:
        sent = {"model": "SmolLM2-135M-Instruct", "seed": 1, "temperature": 1.0, "max_tokens": 16, "steering": STEERING}
        asked = [{"role": "user", "content": "Name three animals."}]
        cases: list[tuple[str, dict[str, Any]]] = [
            ("/v1/completions", {"prompt": "Once"}),
            ("/v1/completions", {"prompt": "Once", "stream": True}),
            ("/v1/chat/completions", {"messages": asked}),
            ("/v1/responses", {"input": asked, "max_output_tokens": 16}),
            ("/v1/messages", {"messages": asked}),
        ]
        for number, (path, more) in enumerate(cases, start=1):
            trace = f"{number:032x}"
            headers = {"traceparent": f"00-{trace}-{SPAN}-01"}
            answer = httpx.post(f"{url}{path}", json=sent | more, headers=headers, timeout=PATIENCE_S)
            assert answer.status_code == 200, answer.text
            ours, vllms = (collector.named(name, trace) for name in (tracing.NAME, "llm_request"))
            assert ours.parent_span_id.hex() == SPAN, path
            assert vllms.parent_span_id == ours.span_id, path
            counts = attributes(ours)
            assert counts["steerdec.tokens"] == attributes(vllms)["gen_ai.usage.completion_tokens"], path
            assert 0 < counts["steerdec.forks"] <= counts["steerdec.tokens"], path
            if not more.get("stream"):
                told = answer.json()
                told = told["choices"][0]["steering"] if "choices" in told else told["steering"]
                for name in ("tokens", "forks", "mean_entropy_nats", "threshold_nats"):
                    assert counts[f"steerdec.{name}"] == pytest.approx(told[name], rel=1e-5), (path, name)
