"""Requests over endpoints: each answered once, whatever the endpoints do."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from steerdec.benchmarks.run.answers import Answer, Failure, parse_answer
from steerdec.benchmarks.run.dispatch import NoEndpointLeftError, NoGoodAnswerError, Outcome, dispatch
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.endpoints import Endpoint, RefusedError, Timeouts, endpoint_url
from tests.support.scripted_endpoint import Body, Fault, Script, ScriptedEndpoint

QUICK = Retry(attempts=3, endpoint_failures=4, first_pause_s=0.02, longest_pause_s=0.05)
PROBLEM = "How much is it?"


def script(fault: Callable[[int, Body], Fault] = lambda n, b: None, **more: Any) -> Script:
    return Script({PROBLEM: "4"}, fault=fault, **more)


def send_all(
    count: int,
    urls: list[str],
    *,
    connections: int = 4,
    retry: Retry = QUICK,
    timeout_s: float = 5.0,
    got: list[Any] | None = None,
) -> list[tuple[int, str, Outcome]]:
    """(number, endpoint, outcome) of requests 0 ... count - 1, as they came."""
    outcomes: list[tuple[int, str, Outcome]] = [] if got is None else got

    async def send(endpoint: Endpoint, i: int) -> Answer:
        body = {"prompt": PROBLEM, "seed": i, "max_tokens": 8, "temperature": 1.0}
        raw = await endpoint.post("/v1/completions", body, max_bytes=10_000)
        return parse_answer(raw, max_tokens=8, steering=None)

    async def done(i: int, endpoint: Endpoint, outcome: Outcome) -> None:
        outcomes.append((i, endpoint.url, outcome))

    async def main() -> None:
        endpoints = [Endpoint(url, connections=connections, timeouts=Timeouts(timeout_s, 2.0)) for url in urls]
        try:
            await dispatch(iter(range(count)), endpoints, send, done, retry)
        finally:
            for endpoint in endpoints:
                await endpoint.close()

    asyncio.run(main())
    return outcomes


def failed(outcomes: list[tuple[int, str, Outcome]]) -> dict[int, str]:
    return {i: outcome.reason for i, _, outcome in outcomes if isinstance(outcome, Failure)}


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ScriptedEndpoint]]:
    with ExitStack() as stack:
        yield lambda s: stack.enter_context(ScriptedEndpoint(s))


Serve = Callable[[Script], ScriptedEndpoint]


def test_everything_is_answered_once_and_each_endpoint_keeps_its_limit(serve: Serve) -> None:
    servers = [serve(script(latency_s=0.01)) for _ in range(2)]
    outcomes = send_all(200, [s.url for s in servers], connections=5)
    assert sorted(i for i, _, _ in outcomes) == list(range(200))
    assert not failed(outcomes)
    assert all(1 < s.most_at_once <= 5 for s in servers)
    assert all(count > 50 for count in Counter(url for _, url, _ in outcomes).values())


def test_hundreds_are_in_flight_at_once(serve: Serve) -> None:
    # Answers take so long that a busy machine, too, has sent most of the first 200 by the first answer.
    server = serve(script(latency_s=4.0))
    assert not failed(send_all(250, [server.url], connections=200, timeout_s=120))
    assert server.most_at_once > 150


@pytest.mark.parametrize(
    "fault", [Response(status_code=500), Response(status_code=503), Response(status_code=408), "cut"]
)
def test_a_failure_that_passes_leaves_no_trace(serve: Serve, fault: Fault) -> None:
    tries: Counter[int] = Counter()

    def first_try(n: int, body: Body) -> Fault:
        tries[body["seed"]] += 1
        return fault if body["seed"] % 7 == 3 and tries[body["seed"]] == 1 else None

    server = serve(script(first_try))
    outcomes = send_all(60, [server.url])
    assert sorted(i for i, _, _ in outcomes) == list(range(60))
    assert not failed(outcomes)
    assert set(tries.values()) == {1, 2}


def test_a_request_that_always_fails_is_given_up_and_the_others_are_not(serve: Serve) -> None:
    server = serve(script(lambda n, body: Response(status_code=500) if body["seed"] == 7 else None))
    outcomes = send_all(40, [server.url])
    assert list(failed(outcomes)) == [7]
    assert "500" in failed(outcomes)[7]
    assert sum(body["seed"] == 7 for body in server.bodies) == QUICK.attempts


@pytest.mark.parametrize("broken", [{0, 1, 2}, {37, 38, 39}], ids=["at the begin", "at the end"])
def test_requests_in_a_row_that_always_fail_do_not_have_their_endpoint_left(serve: Serve, broken: set[int]) -> None:
    """One fewer than would have it left, one at a time; so any trial of theirs that counted once more would do it."""
    server = serve(script(lambda n, body: Response(status_code=500) if body["seed"] in broken else None))
    outcomes = send_all(40, [server.url], connections=1)
    assert set(failed(outcomes)) == broken
    assert sorted(i for i, _, _ in outcomes) == list(range(40))


def test_retry_after_is_honoured(serve: Serve) -> None:
    busy = Response(status_code=429, headers={"retry-after": "1"})
    server = serve(script(lambda n, body: busy if n == 0 else None))
    assert not failed(send_all(3, [server.url], connections=1))
    assert server.times_s[1] - server.times_s[0] >= 1.0


def test_too_many_requests_are_answered_by_waiting_not_by_giving_up(serve: Serve) -> None:
    """More 429 in a row than one request has attempts: they are not its own failures."""
    server = serve(script(lambda n, body: Response(status_code=429) if n < QUICK.endpoint_failures - 1 else None))
    assert not failed(send_all(5, [server.url], connections=1))


def test_a_dead_endpoint_is_left_and_its_work_moves(serve: Serve) -> None:
    alive, dying = serve(script(latency_s=0.01)), serve(script(latency_s=0.01))
    got: list[Any] = []

    def stop_soon() -> None:
        while len(dying.bodies) < 10:
            time.sleep(0.005)
        dying.stop()

    import threading

    thread = threading.Thread(target=stop_soon)
    thread.start()
    outcomes = send_all(300, [alive.url, dying.url], got=got)
    thread.join()
    assert sorted(i for i, _, _ in outcomes) == list(range(300))
    assert not failed(outcomes)


def test_an_endpoint_that_comes_back_is_used_again(serve: Serve) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = ScriptedEndpoint(script(latency_s=0.01), port)
    second = ScriptedEndpoint(script(latency_s=0.01), 0)
    second._socket.close()

    import threading

    back: list[ScriptedEndpoint] = []

    def restart() -> None:
        while len(first.bodies) < 10:
            time.sleep(0.005)
        first.stop()
        time.sleep(0.3)
        back.append(ScriptedEndpoint(script(), port).__enter__())

    with first:
        thread = threading.Thread(target=restart)
        thread.start()
        patient = Retry(attempts=3, endpoint_failures=30, first_pause_s=0.05, longest_pause_s=0.1)
        outcomes = send_all(100, [f"http://127.0.0.1:{port}"], retry=patient)
        thread.join()
    back[0].stop()
    assert sorted(i for i, _, _ in outcomes) == list(range(100))
    assert not failed(outcomes)


def test_when_no_endpoint_is_left_it_says_why_and_what_was_done_stays_done(serve: Serve) -> None:
    server = serve(script(lambda n, body: None if n < 10 else Response(b"worn out", status_code=503)))
    got: list[Any] = []
    with pytest.raises(NoEndpointLeftError, match=r"503.*worn out"):
        send_all(50, [server.url], connections=3, got=got)
    assert len(got) == 10
    assert not failed(got)


def test_a_hung_endpoint_is_timed_out(serve: Serve) -> None:
    server = serve(script(lambda n, body: "hang" if n in (2, 3) else None))
    begun_s = time.monotonic()
    assert not failed(send_all(10, [server.url], connections=2, timeout_s=2.0))
    assert 2.0 <= time.monotonic() - begun_s < 20


@pytest.mark.parametrize("attempts", [2, 3])
def test_no_request_is_lost_to_an_endpoint_that_hangs_beside_a_sound_one(serve: Serve, attempts: int) -> None:
    """It answers when it is asked how it is, and hangs with the work: a request fails there once, no more."""
    hung, sound = serve(script(lambda n, body: "hang")), serve(script(latency_s=0.01))
    retry = Retry(attempts, endpoint_failures=4, first_pause_s=0.02, longest_pause_s=0.05)
    outcomes = send_all(60, [hung.url, sound.url], timeout_s=2.0, retry=retry)  # the sound one may wait for a processor
    assert sorted(i for i, _, _ in outcomes) == list(range(60))
    assert not failed(outcomes)
    assert max(Counter(body["seed"] for body in hung.bodies).values()) == 1


def test_what_failed_at_the_last_endpoint_left_is_tried_there_again(serve: Serve) -> None:
    """The other one, which has not had it, dies."""
    dying = serve(script(lambda n, body: Response(status_code=503)))
    asked: Counter[int] = Counter()

    def first_time_of_every_third(_: int, body: Body) -> Response | None:
        asked[body["seed"]] += 1
        return Response(status_code=500) if body["seed"] % 3 == 0 and asked[body["seed"]] == 1 else None

    alive = serve(script(first_time_of_every_third))
    assert not failed(send_all(30, [dying.url, alive.url]))
    assert [asked[seed] for seed in range(30)] == [2 if seed % 3 == 0 else 1 for seed in range(30)]


def test_a_refusal_is_not_tried_again(serve: Serve) -> None:
    no = JSONResponse({"error": {"message": "too long\nby far"}}, status_code=400)
    server = serve(script(lambda n, body: no if body["seed"] % 10 == 0 else None))
    outcomes = send_all(40, [server.url])
    assert sorted(failed(outcomes)) == [0, 10, 20, 30]
    assert failed(outcomes)[0].endswith("answered 400: too long by far")
    assert len(server.bodies) == 40


def test_refusal_after_refusal_stops_the_run_with_the_servers_words(serve: Serve) -> None:
    server = serve(script(lambda n, body: JSONResponse({"error": {"message": "no such model"}}, status_code=404)))
    with pytest.raises(NoGoodAnswerError, match="no such model"):
        send_all(10_000, [server.url])
    assert len(server.bodies) < 100


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"choices": []}',
        b'{"choices": [{"text": "a", "finish_reason": "stop"}]}',
        b'{"choices": [{"text": 1, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}',
        b'{"choices": [{"text": "a", "finish_reason": "abort"}], "usage": {"completion_tokens": 1}}',
        b'{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"completion_tokens": -1}}',
        b'{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"completion_tokens": 9}}',
        b'{"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 1}}',
        b"[" * 100_00,
    ],
)
def test_nonsense_is_an_error_of_that_sample_only(serve: Serve, content: bytes) -> None:
    server = serve(script(lambda n, body: Response(content) if body["seed"] == 5 else None))
    outcomes = send_all(20, [server.url])
    assert list(failed(outcomes)) == [5]
    assert "malformed" in failed(outcomes)[5]
    assert "\n" not in failed(outcomes)[5]


def test_an_endless_answer_is_cut_off(serve: Serve) -> None:
    server = serve(script(lambda n, body: Response(b"x" * 20_000) if body["seed"] == 5 else None))
    assert "more than 10000 bytes" in failed(send_all(10, [server.url]))[5]


def test_an_exception_while_keeping_stops_everything(serve: Serve) -> None:
    server = serve(script())

    async def main() -> None:
        endpoint = Endpoint(server.url, connections=8, timeouts=Timeouts())

        async def send(e: Endpoint, i: int) -> Answer:
            return Answer(text="", finish_reason="stop", completion_tokens=0)

        async def done(i: int, e: Endpoint, outcome: Outcome) -> None:
            raise OSError("disk full")

        await dispatch(iter(range(100)), [endpoint], send, done, QUICK)

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(main())


def test_a_malicious_message_is_one_printable_line(serve: Serve) -> None:
    evil = Response(b"\x1b[31mred\r\n\x00" + b"long " * 1000, status_code=400)
    server = serve(script(lambda n, body: evil))

    async def main() -> str:
        endpoint = Endpoint(server.url, connections=1, timeouts=Timeouts())
        try:
            await endpoint.post("/v1/completions", {"prompt": PROBLEM}, max_bytes=1000)
        except RefusedError as e:
            return str(e)
        finally:
            await endpoint.close()
        return ""

    message = asyncio.run(main())
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("text", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_an_endpoint_may_be_given_with_or_without_v1(text: str) -> None:
    assert endpoint_url(text) == "http://h:1"


@pytest.mark.parametrize(
    "text",
    [
        *("", "h:1", "ftp://h", "http://", "http://h:99999", "http://u:p@h", "http://h?x=1", "http://a b"),
        *("http://\u2603.example", "http://\udcff"),
    ],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an endpoint"):
        endpoint_url(text)


def test_a_straggler_is_sent_again_and_the_first_answer_kept(serve: Serve) -> None:
    """The last request hangs at one endpoint: what is left idle asks the other one, long before the time-out."""
    first = script(lambda n, b: "hang" if b["seed"] == 59 else None)
    urls = [serve(first).url, serve(script(lambda n, b: "hang" if b["seed"] == 58 else None)).url]
    began_at = time.monotonic()
    outcomes = send_all(60, urls, timeout_s=60.0, retry=replace(QUICK, straggler_s=0.5))
    assert sorted(i for i, _, _ in outcomes) == list(range(60))
    assert not failed(outcomes)
    assert time.monotonic() - began_at < 40


def test_one_endpoint_gets_its_straggler_a_second_time(serve: Serve) -> None:
    hung: list[int] = []

    def once(number: int, body: Body) -> Fault:
        if body["seed"] == 59 and not hung:
            hung.append(number)
            return "hang"
        return None

    outcomes = send_all(60, [serve(script(once)).url], timeout_s=60.0, retry=replace(QUICK, straggler_s=0.5))
    assert sorted(i for i, _, _ in outcomes) == list(range(60))
    assert not failed(outcomes)


def test_nothing_is_sent_twice_where_answers_are_merely_slow(serve: Serve) -> None:
    server = serve(script(latency_s=0.4))
    outcomes = send_all(30, [server.url], connections=6, retry=replace(QUICK, straggler_s=0.5))
    assert len(outcomes) == 30
    assert len(server.bodies) == 30
