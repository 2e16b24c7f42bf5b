"""Any JSON in `steering` and beside it: refused with a name or done as asked, never a failure, never a lane kept.

In process, the middleware and a real lane pool stand before a scripted inner application. That application
parses bodies with vLLM's own request models and writes lanes as the worker does, but generates nothing: what is
tried here is admission and bookkeeping, on more bodies than an engine could answer, and the script knows what it
recorded and what reached it, which no engine tells. Below the line the same kinds of bodies go to the real server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steerdec.policies import registry
from steerdec.policies.registry import POLICIES
from steerdec.steering.encoding import REQUEST_T, EncodedRequest, encode
from steerdec.steering.params import PAPER_THRESHOLD_NATS
from steerdec.telemetry import lanes as telemetry
from tests.support.in_process import ENTROPIES_NATS, MODELS, TOKENS, InProcess, choices_of, in_process_server
from tests.support.serving import PATIENCE_S

# What is sent -------------------------------------------------------------------------------------

HUGE = [10**400, -(10**400), 2**63, 2**64, 2**31, -1, 1e308, 5e-324, math.nan, math.inf, -math.inf]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(HUGE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
temperature = st.sampled_from([0, 0.01, 0.3, 0.7, 1, 1.3, 2.5, 100])
PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "policy": st.sampled_from([*POLICIES, "Split"]),
    "select": st.sampled_from(["entropy", "quantile", "random", "first", "all", "none"]),
    "threshold_nats": st.sampled_from([0, 0.6, 0.672, 30, -1]),
    "quantile": st.sampled_from([0, 0.5, 0.8, 1]),
    "hysteresis": st.sampled_from([0, 0.5, 1]),
    "guard_mean_entropy_nats": st.sampled_from([-1, 0, 2]),
    "guard_window_tokens": st.sampled_from([0, 1, 64, 5000]),
    "fork_rate": st.sampled_from([0, 0.2, 1, 1.1]),
    "first_tokens": st.sampled_from([0, 1, 3, 1.0, 2**31 - 1, 2**31]),
    "scope": st.sampled_from(["all", "thinking", "answer", "some"]),
    "thinking_start_id": st.integers(-1, 2**31),
    "thinking_end_id": st.integers(-1, 2**31),
    "telemetry": st.sampled_from(["summary", "tokens", "none", "all"]),
    "fork_temperature": temperature,
    "other_temperature": temperature,
    "min_temperature": temperature,
    "max_temperature": temperature,
    "delta_nats": st.floats(-25, 25),
    "exponent": st.floats(-1, 11),
    "theta": st.floats(-1, 101),
    "base": st.floats(-0.1, 1.1),
}
KNOWN = {name for model in POLICIES.values() for name in model.model_fields}
unknown = st.text(max_size=12).filter(lambda key: key not in KNOWN) | st.sampled_from(["Policy", "temperature"])

plausible = st.fixed_dictionaries({}, optional=PLAUSIBLE)
good = st.fixed_dictionaries(
    {"telemetry": st.just("tokens"), "fork_temperature": temperature, "other_temperature": temperature},
    optional={"threshold_nats": st.sampled_from([0, 0.6, 30]), "select": st.sampled_from(["entropy", "all"])},
)
wild = st.dictionaries(st.sampled_from(sorted(KNOWN)) | unknown, anything, max_size=4)
steerings = good | plausible | wild | st.builds(lambda a, b: a | b, good, wild) | anything

SIBLINGS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.sampled_from([1, 2, 3, "2", 2.0, "2.0", True, 0, 100_000]) | anything,
    "seed": st.sampled_from([0, 7, -3, "5", 5.0, 2**63 - 1, -(2**63)]) | anything,
    "temperature": st.sampled_from([0, 0.001, 0.7, 1, "0.7", "0", True, 2]) | anything,
    "stream": st.booleans() | anything,
    "prompt": st.sampled_from(["a", ["a"], ["a", "b"], [1, 2], [[1], [2]], []]) | anything,
    "vllm_xargs": st.sampled_from([{}, {"a": 1}, {"steering": "{}"}, {"steerdec_lanes": [0, 1]}]) | anything,
    "return_token_ids": st.sampled_from([True, False, "false", "true"]) | anything,
    "echo": st.booleans(),
    "use_beam_search": st.booleans(),
}


def beside(**always: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A body without its steering: plain, or with some of the fields beside it odd."""
    return st.just(always) | st.fixed_dictionaries({}, optional=SIBLINGS).map(lambda odd: always | odd)


# In process ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_process() -> Iterator[InProcess]:
    with telemetry.created(8, max_lanes=17) as file:
        yield in_process_server(file)


def content_of(path: str) -> dict[str, Any]:
    return {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}


def is_our_refusal(status: int, raw: bytes) -> bool:
    """Whether it is one; fails where it is one but not as it must be."""
    if status != 400:
        return False
    error = json.loads(raw)["error"]
    if not str(error.get("param") or "").startswith("steering"):
        return False
    assert error["message"].startswith("steering")
    assert error["message"].isprintable(), "one plain line"
    assert error["type"] == "BadRequestError"
    assert error["code"] == 400
    return True


in_process_settings = settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("path", MODELS)
@given(data=st.data())
@in_process_settings
def test_any_steering_is_refused_by_name_or_reaches_the_engine_as_asked(
    in_process: InProcess, path: str, data: st.DataObject
) -> None:
    steering = data.draw(steerings)
    body = data.draw(beside(**content_of(path))) | {"steering": steering}
    status, raw = in_process.post(path, json.dumps(body).encode())
    if is_our_refusal(status, raw):
        assert in_process.inner.bodies == []
        return
    if steering is None:
        return
    (forwarded,) = in_process.inner.bodies
    received = json.loads(forwarded)
    assert "steering" not in received
    assert "steering" not in received["vllm_xargs"]
    carried = EncodedRequest.unpacked(received["vllm_xargs"]["steerdec_request"][1:])
    asked = registry.parse(steering)
    assert carried == encode(asked, carried.floats[REQUEST_T], PAPER_THRESHOLD_NATS)
    if status == 400:
        return  # by the inner application, for what stands beside the steering
    assert status == 200
    for choice in choices_of(raw):
        assert ("steering" in choice) == (asked.telemetry != "none")
        if asked.telemetry == "tokens":
            lists = choice["steering"]
            assert lists["entropy_nats"] == pytest.approx(ENTROPIES_NATS, rel=1e-6)
            assert len(lists["fork"]) == lists["tokens"] == TOKENS
            if asked.policy == "split" and None not in (asked.fork_temperature, asked.other_temperature):
                t = [asked.fork_temperature if fork else asked.other_temperature for fork in lists["fork"]]
                assert lists["temperature"] == pytest.approx(t, rel=1e-6)


@given(steering=st.builds(lambda known, key, value: known | {key: value}, good | plausible | wild, unknown, anything))
@in_process_settings
def test_an_unknown_key_is_always_refused(in_process: InProcess, steering: dict[str, Any]) -> None:
    status, raw = in_process.post("/v1/completions", json.dumps({"prompt": "x", "steering": steering}).encode())
    assert is_our_refusal(status, raw)
    assert in_process.inner.bodies == []


@given(body=st.dictionaries(st.text(max_size=8) | st.sampled_from(sorted(SIBLINGS)), anything, max_size=5))
@in_process_settings
def test_a_body_without_steering_passes_byte_for_byte(in_process: InProcess, body: dict[str, Any]) -> None:
    for name in ("steering", "vllm_xargs"):  # a random text may be the first
        body.pop(name, None)
    raw = json.dumps(body, indent=1).encode()
    in_process.post("/v1/completions", raw)
    assert in_process.inner.bodies == [raw]


@given(raw=st.binary(max_size=40))
@in_process_settings
def test_any_bytes_are_answered(in_process: InProcess, raw: bytes) -> None:
    for body in (raw, b'{"steering": ' + raw + b"}", b'{"steering": {"fork_temperature": 1}, ' + raw + b"}"):
        status, _ = in_process.post("/v1/completions", body)
        assert status in (200, 400)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_json_in_any_encoding_that_vllm_reads_is_looked_at(in_process: InProcess, encoding: str) -> None:
    raw = json.dumps({"prompt": "x", "steering": {"forks": 1}}).encode(encoding)
    assert is_our_refusal(*in_process.post("/v1/completions", raw))


@pytest.mark.parametrize("where", ["steering", "a field of it", "beside it"])
def test_nesting_of_any_depth_is_answered(in_process: InProcess, where: str) -> None:
    """Parsing, showing and writing JSON all recur; whichever runs out of stack first, the client gets an answer."""
    for depth in (*range(1, 60), *range(800, 1100), 100_000):
        nested = b"[" * depth + b"]" * depth
        body = {
            "steering": b'{"prompt": "x", "steering": %s}',
            "a field of it": b'{"prompt": "x", "steering": {"scope": %s}}',
            "beside it": b'{"prompt": "x", "steering": {}, "vllm_xargs": null, "metadata": %s}',
        }[where] % nested
        status, _ = in_process.post("/v1/completions", body)
        assert status == 400 or where == "beside it"


# The real server ----------------------------------------------------------------------------------


def asked_temperatures(steering: dict[str, Any], fork: list[bool]) -> list[float] | None:
    """What each token's temperature must be, None where only the engine knows."""
    asked = registry.parse(steering)
    if asked.policy != "split" or None in (asked.fork_temperature, asked.other_temperature):
        return None
    return [float(asked.fork_temperature if f else asked.other_temperature) for f in fork]  # type: ignore[arg-type]


@pytest.mark.engine
@pytest.mark.parametrize("path", MODELS)
@given(data=st.data())
@settings(in_process_settings, max_examples=30)
def test_the_real_server_never_fails_and_does_what_it_accepts(server_url: str, path: str, data: st.DataObject) -> None:
    steering = data.draw(steerings)
    body = data.draw(beside(**content_of(path), max_tokens=4)) | {"steering": steering}
    raw = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server_url}{path}", content=raw, headers=headers, timeout=PATIENCE_S)
    assert response.status_code < 500, response.text
    if response.status_code == 200 and not response.text.startswith("data:"):
        for choice in response.json()["choices"]:
            report = choice.get("steering", {})
            expected = asked_temperatures(steering, report["fork"]) if "fork" in report else None
            assert expected is None or report["temperature"] == pytest.approx(expected, rel=1e-6)
            assert "fork" not in report or report["tokens"] == len(report["fork"]) > 0
    elif response.status_code != 200:
        error = response.json()["error"]
        assert {"message", "type", "param", "code"} <= set(error)
        is_our_refusal(response.status_code, response.content)
    assert httpx.get(f"{server_url}/health", timeout=PATIENCE_S).status_code == 200
    assert httpx.get(f"{server_url}/v1/steering", timeout=PATIENCE_S).json()["telemetry_lanes_lent"] == 0


@pytest.mark.engine
@given(steering=good, stream=st.booleans(), n=st.sampled_from([1, 2]), seed=st.integers(0, 2**40))
@settings(in_process_settings, max_examples=20)
def test_accepted_temperatures_are_the_applied_ones(
    server_url: str, steering: dict[str, Any], stream: bool, n: int, seed: int
) -> None:
    body = {"prompt": "Once", "max_tokens": 6, "n": n, "seed": seed, "temperature": 0.9, "stream": stream}
    response = httpx.post(f"{server_url}/v1/completions", json=body | {"steering": steering}, timeout=PATIENCE_S)
    assert response.status_code == 200
    lists: dict[int, dict[str, list[Any]]] = {i: {"fork": [], "temperature": [], "entropy_nats": []} for i in range(n)}
    for choice in choices_of(response.content):
        for name, values in lists[choice["index"]].items():
            values += choice["steering"][name]
    threshold_nats = steering.get("threshold_nats", PAPER_THRESHOLD_NATS)
    for of_choice in lists.values():
        fork = [steering.get("select") == "all" or h > threshold_nats for h in of_choice["entropy_nats"]]
        assert of_choice["fork"] == fork
        assert of_choice["temperature"] == pytest.approx(asked_temperatures(steering, fork), rel=1e-6)
        assert 1 <= len(fork) <= 6
