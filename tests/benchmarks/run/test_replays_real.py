"""Replayed prefixes on the real server: exact ids, exact text, one steered token, and A/A that changes nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from steerdec.analysis.traces.trace import Trace, read_run
from steerdec.benchmarks.design.masks import MaskedTrace, Prefix
from steerdec.benchmarks.design.plan import PlannedSample
from steerdec.benchmarks.run import session
from steerdec.benchmarks.run.answers import parse_answer
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.endpoints import Endpoint, Timeouts
from steerdec.benchmarks.run.replays import whole_text
from steerdec.benchmarks.run.sample_requests import Prompting, requested_steering, sample_request
from steerdec.benchmarks.run.targets import Target
from steerdec.problems.sets import load_problems
from steerdec.records.arms import Arm
from steerdec.records.mask_file import MaskedRequest, write_mask
from tests.support.serving import PATIENCE_S

pytestmark = pytest.mark.engine

MODEL = "SmolLM2-135M-Instruct"
ONE = {"select": "first", "first_tokens": 1}
ARMS: dict[str, Any] = {
    "name": "lens",
    "baseline": "B",
    "replays": {"lens": {"mask": "lens"}},
    "arms": [
        {"name": "B", "role": "baseline"},
        {"name": "L", "role": "replay", "replay": "lens"},
        {
            "name": "L-same",
            "role": "identity",
            "replay": "lens",
            "steering": ONE | {"fork_temperature": "base", "other_temperature": "base"},
        },
        {"name": "L-up", "role": "treatment", "replay": "lens", "steering": ONE | {"fork_temperature": 3.0}},
    ],
}
ARM = Arm(name="L-up", role="treatment", replay="lens", temperature=0.6, steering=ONE | {"fork_temperature": 1.5})
PLAIN = {"name": "plain", "baseline": "B", "arms": ARMS["arms"][:1]}


def run(url: str, folder: Path, arms: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """The samples of a run of three embedded problems, its arm file beside the masks."""
    path = folder.parent / f"{arms['name']}.yaml"
    path.write_text(yaml.safe_dump(arms))
    asked: dict[str, Any] = {"limit": 3, "prompt": None, "thinking": None, "samples": 3, "seed": 1}
    asked |= {"temperature": 0.6, "max_tokens": 20, "threshold": "0.6", "force": False} | changes
    target = Target(endpoints=(url,), model=None, dtype=None, concurrency=16, timeout_s=120.0, api_key=None)
    assert session.run(session.read_request("embedded", str(path), **asked), target, folder, Retry()).failed == 0
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def masked(trace: Trace) -> MaskedRequest:
    """Every token of the response but the first is pointed at."""
    n = len(trace.response_ids)
    return MaskedRequest(
        problem_id=trace.problem_id,
        arm=trace.arm,
        sample=trace.sample,
        prompt_ids=trace.prompt_ids,
        token_ids=np.asarray(trace.response_ids, np.int32),
        entropy_nats=np.zeros(n, np.float32),
        score=np.ones(n, np.float32),
        fork=np.arange(n) > 0,
        ids_are=trace.ids_are,
        answer=trace.answer,
        grade=trace.grade,
    )


@pytest.mark.parametrize("prompt", [pytest.param("few-shot", marks=pytest.mark.thorough), "number"])
def test_nearly_greedy_every_prefix_is_gone_on_with_as_it_was(
    server_url: str, weights: Path, tmp_path: Path, prompt: str
) -> None:
    """At T = 0.01 a response has one way to go on: token ids, stop texts and the text put together are all exact."""
    plain = run(server_url, tmp_path / "plain", PLAIN, temperature=0.01, prompt=prompt, samples=1)
    traces = read_run(tmp_path / "plain", AutoTokenizer.from_pretrained(str(weights)))
    (tmp_path / "lens").mkdir()
    write_mask(tmp_path / "lens", map(masked, traces), {"model": MODEL, "prompt": prompt, "lens": "all"})
    samples = run(server_url, tmp_path / "replayed", ARMS, temperature=0.01, prompt=prompt, samples=6)
    text_of = {s["problem_id"]: (s["text"], s["finish_reason"], s["grade"]) for s in plain}
    replayed = [s for s in samples if s["arm"] in ("L", "L-same")]
    assert len({(s["problem_id"], s["position"]) for s in replayed}) > 9
    for sample in replayed:
        assert (sample["text"], sample["finish_reason"], sample["grade"]) == text_of[sample["problem_id"]]


def test_identity_after_a_prefix_gives_its_controls_texts_and_the_raised_arm_does_not(
    server_url: str, weights: Path, tmp_path: Path
) -> None:
    run(server_url, tmp_path / "plain", PLAIN)
    traces = read_run(tmp_path / "plain", AutoTokenizer.from_pretrained(str(weights)))
    (tmp_path / "lens").mkdir()
    write_mask(tmp_path / "lens", map(masked, traces), {"model": MODEL, "prompt": "few-shot", "lens": "all"})
    samples = run(server_url, tmp_path / "replayed", ARMS, samples=6)
    by_arm: dict[str, dict[Any, dict[str, Any]]] = {}
    for sample in samples:
        by_arm.setdefault(sample["arm"], {})[sample["problem_id"], sample["sample"]] = sample
    for key, control in by_arm["L"].items():
        assert by_arm["L-same"][key]["text"] == control["text"]
        up = by_arm["L-up"][key]
        assert (up["seed"], up["position"], up["replayed_sample"]) == tuple(
            control[name] for name in ("seed", "position", "replayed_sample")
        )
        assert up["forks"] == 1
    assert [s["text"] for s in by_arm["L-up"].values()] != [s["text"] for s in by_arm["L"].values()]


def test_exactly_the_first_token_of_the_continuation_is_steered(server_url: str, weights: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(weights))
    problem = load_problems("embedded", limit=1).problems[0]
    prefix = Prefix(recorded(tokenizer, "Question: why?\nAnswer:", " Because it has many parts"), 3)
    item = PlannedSample(0, problem, ARM, 0, 5, prefix)
    path, body = sample_request(item, Prompting(MODEL, "number"), max_tokens=12, per_token=True, token_text=True)
    raw = httpx.post(server_url + path, json=body, timeout=PATIENCE_S).raise_for_status().content
    answer = parse_answer(raw, max_tokens=12, steering=requested_steering(ARM, per_token=True))
    assert answer.temperature is not None
    assert answer.temperature == pytest.approx([1.5] + [0.6] * (answer.completion_tokens - 1))
    assert answer.fork == [True] + [False] * (answer.completion_tokens - 1)
    assert json.loads(raw)["usage"]["prompt_tokens"] == len(prefix.trace.prompt_ids) + 3


def test_a_prefix_may_end_in_the_middle_of_a_character(server_url: str, weights: Path) -> None:
    """There the server's own text of the continuation begins with the whole prompt; the ids do not."""
    tokenizer = AutoTokenizer.from_pretrained(str(weights))
    response = " The abacus \U0001f9ee counts"
    trace = recorded(tokenizer, "Question: what counts?\nAnswer:", response)
    cut = next(t for t in range(len(trace.response_ids)) if tokenizer.decode(trace.response_ids[:t])[-1:] == "\ufffd")

    async def text_of(new_ids: list[int], position: int, stops: list[str]) -> str:
        endpoint = Endpoint(server_url, connections=1, timeouts=Timeouts())
        try:
            return await whole_text(endpoint, Prefix(trace, position), new_ids, model=MODEL, stops=stops)
        finally:
            await endpoint.close()

    for position in (0, cut, len(trace.response_ids)):
        rest = [int(token) for token in trace.response_ids[position:]]
        assert asyncio.run(text_of(rest, position, [])) == response
    item = PlannedSample(0, load_problems("embedded", limit=1).problems[0], ARM, 0, 5, Prefix(trace, cut))
    path, body = sample_request(item, Prompting(MODEL, "number"), max_tokens=4)
    raw = httpx.post(server_url + path, json=body, timeout=PATIENCE_S).raise_for_status().content
    new_ids = parse_answer(raw, max_tokens=4, steering=requested_steering(ARM, per_token=False)).token_ids
    assert new_ids
    text = asyncio.run(text_of(new_ids, cut, []))
    assert text.startswith(" The abacus ")
    assert "Question" not in text
    assert asyncio.run(text_of([], 0, [])) == ""
    assert asyncio.run(text_of([], len(trace.response_ids), ["count", "bac"])) == " The a"


def recorded(tokenizer: Any, prompt: str, response: str) -> MaskedTrace:
    ids = np.asarray(tokenizer(response, add_special_tokens=False).input_ids, np.int32)
    prompt_ids = tuple(tokenizer(prompt, add_special_tokens=False).input_ids)
    return MaskedTrace("p", "A/A", 0, prompt_ids, ids, np.ones(len(ids), bool))
