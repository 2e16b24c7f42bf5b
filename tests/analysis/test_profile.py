"""`steerdec profile`: its numbers are those of the tokens it kept; stopped or done, the same command goes on."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerdec.analysis.profile.run import profile
from steerdec.analysis.traces.loading import load_tokenizer
from steerdec.analysis.traces.source import Source, resolve
from steerdec.analysis.traces.trace import read_run
from steerdec.benchmarks.run import session
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.targets import Target
from steerdec.common.errors import InputError
from steerdec.problems.sets import load_problems
from tests.support.scripted_endpoint import Script, ScriptedEndpoint
from tests.support.tiny_lm import tiny_lm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("tiny") / "model")


def made(model: Path, out: Path, **how: Any) -> tuple[Path, dict[str, Any]]:
    asked = Source(model=str(model), problems="embedded", limit=3, samples=2, max_tokens=40, temperature=1.0)
    return profile(resolve(asked), out, **how)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_number_is_that_of_the_kept_tokens(model: Path, tmp_path: Path) -> None:
    page, told = made(model, tmp_path / "p", min_count=2)
    assert json.loads(json.dumps(told)) == json.loads((tmp_path / "p" / "profile.json").read_text("utf-8"))
    traces, scores = lines(tmp_path / "p" / "traces.jsonl"), lines(tmp_path / "p" / "scores.jsonl")
    by_key = {(s["problem_id"], s["sample"]): s["entropy_nats"] for s in scores}
    of_token: dict[int, list[float]] = defaultdict(list)
    for trace in traces:
        for token, h in zip(trace["response_ids"], by_key[trace["problem_id"], trace["sample"]], strict=True):
            of_token[token].append(h)
    h = np.array([value for values in of_token.values() for value in values])
    assert (told["traces"], told["problems"], told["tokens"]) == (6, 3, len(h))
    assert told["mean_entropy_nats"]["value"] == pytest.approx(h.mean(), rel=1e-6)
    for name in ("p50", "p80", "p99"):
        assert told["quantiles_nats"][name]["value"] == pytest.approx(np.quantile(h, int(name[1:]) / 100), rel=1e-6)
    assert told["share_below_0_01"]["value"] == np.mean(h < 0.01)
    top = h >= np.quantile(h, 0.8)
    assert told["entropy_share_of_top_fifth"]["value"] == pytest.approx(h[top].sum() / h.sum(), rel=1e-6)
    assert sum(told["histogram"]) == len(h)
    assert told["threshold_nats"] == told["quantiles_nats"]["p80"]["value"]

    means = {token: float(np.mean(values)) for token, values in of_token.items() if len(values) > 2}
    assert told["frequent"] == len(means) > 1
    ranked, upper = sorted(means, key=lambda t: (-means[t], t)), (len(means) + 1) // 2
    assert [t["token"] for t in told["most_uncertain"]] == ranked[:upper][:20]
    assert [t["token"] for t in told["least_uncertain"]] == ranked[upper:][::-1][:20]
    for shown in told["most_uncertain"]:
        assert shown["mean_entropy_nats"] == pytest.approx(means[shown["token"]], rel=1e-6)
        assert shown["count"] == len(of_token[shown["token"]])
    text = page.read_text("utf-8")
    assert str(tmp_path) not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "src=" not in text


def test_done_it_makes_nothing_again_and_stopped_it_goes_on(model: Path, tmp_path: Path) -> None:
    _, first = made(model, tmp_path / "p")
    kept = {name: (tmp_path / "p" / name).read_bytes() for name in ("traces.jsonl", "scores.jsonl")}
    _, again = made(model, tmp_path / "p", threshold_nats=1.5)
    assert (again["threshold_nats"], again["threshold_origin"]) == (1.5, "the one given")
    assert again["quantiles_nats"] == first["quantiles_nats"]
    assert {name: (tmp_path / "p" / name).read_bytes() for name in kept} == kept

    (tmp_path / "p" / "scores.jsonl").write_bytes(kept["scores.jsonl"][: len(kept["scores.jsonl"]) // 2])
    _, resumed = made(model, tmp_path / "p")
    assert resumed == first


def scripted_run(folder: Path) -> None:
    """A finished run of two problems, whose server is scripted: what a run's files say is under test, not a model."""
    asked = session.read_request(
        "embedded", "quick", limit=2, prompt=None, thinking=None, samples=1, seed=0, temperature=None, max_tokens=16,
        threshold=None, force=False,
    )  # fmt: skip
    answers = {p.problem: p.answer for p in load_problems("embedded", limit=2).problems}
    with ScriptedEndpoint(Script(answers)) as server:
        target = Target(endpoints=(server.url,), model=None, dtype=None, concurrency=4, timeout_s=60.0, api_key=None)
        session.run(asked, target, folder, Retry())


@pytest.mark.parametrize(
    ("missing", "reason", "ended", "origin"),
    [
        (0, "stop", False, "counted"),
        (1, "stop", True, "counted"),
        (1, "length", False, "differ"),
        (2, "stop", False, "differ"),
    ],
)
def test_the_token_that_ends_a_response_belongs_to_it_though_its_text_is_not_stored(
    missing: int, reason: str, ended: bool, origin: str, model: Path, tmp_path: Path
) -> None:
    """Else a run's profile has an end token in the few responses that keep their tokens' texts, and in no other."""
    scripted_run(tmp_path / "run")
    tokenizer = load_tokenizer(str(model))
    ids, (end,) = tokenizer(" 3 + 4 = 7.").input_ids, tokenizer("\n").input_ids  # few-shot stops at a line's end
    stored = {"text": " 3 + 4 = 7.", "finish_reason": reason, "completion_tokens": len(ids) + missing}
    found = lines(tmp_path / "run" / "samples.jsonl")
    bare = [
        {k: v for k, v in sample.items() if k not in ("token_text", "entropy_nats", "fork")} | stored
        for sample in found
    ]
    (tmp_path / "run" / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in bare), "utf-8")
    for trace in read_run(tmp_path / "run", tokenizer):
        assert (list(trace.response_ids), trace.ids_are) == ([*ids, end] if ended else ids, origin)


def test_of_a_grade_only_the_responses_with_it_are_profiled(model: Path, tmp_path: Path) -> None:
    scripted_run(tmp_path / "run")
    found = lines(tmp_path / "run" / "samples.jsonl")
    of_arm = [sample for sample in found if sample["arm"] == "A/A"]
    of_arm[0]["grade"], of_arm[1]["grade"] = "incorrect", "correct"
    (tmp_path / "run" / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in found), "utf-8")
    asked = resolve(Source(run=tmp_path / "run", model=str(model), grade="correct", limit=1))
    _, told = profile(asked, tmp_path / "p")
    assert told["grades"] == {"correct": 1}
    (trace,) = read_run(tmp_path / "run", load_tokenizer(str(model)), grade="correct", limit=1)
    assert (trace.problem_id, trace.text) == (of_arm[1]["problem_id"], of_arm[1]["text"])
    assert told["tokens"] == len(trace.response_ids)
    of_arm[1]["grade"] = "incorrect"
    (tmp_path / "run" / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in found), "utf-8")
    with pytest.raises(InputError, match=r"^--grade: arm A/A of .* has no correct response$"):
        profile(asked, tmp_path / "p")


def test_of_a_grade_only_the_sampled_responses_with_it_are_profiled(model: Path, tmp_path: Path) -> None:
    asked = Source(model=str(model), problems="embedded", limit=3, samples=2, max_tokens=40, temperature=1.0)
    with pytest.raises(InputError, match="--grade: none of the 6 responses is correct"):
        profile(resolve(replace(asked, grade="correct")), tmp_path / "p")
    path = tmp_path / "p" / "traces.jsonl"
    path.write_text(path.read_text("utf-8").replace('"grade": "incorrect"', '"grade": "correct"', 2), "utf-8")
    assert sum(trace["grade"] == "correct" for trace in lines(path)) == 2
    _, told = profile(resolve(replace(asked, grade="correct")), tmp_path / "p")
    assert told["grades"] == {"correct": 2}
    assert len(lines(tmp_path / "p" / "scores.jsonl")) == 2


def test_of_a_run_an_arm_that_goes_on_from_prefixes_is_not_the_one_in_which_nothing_is_changed(
    model: Path, tmp_path: Path
) -> None:
    """As in a set that asks what a lens points at: its identity arm replays, and stands before any other."""
    scripted_run(tmp_path / "run")
    told = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    (plain, same, *others), told["arms"]["replays"] = told["arms"]["arms"], {"peaks": {"mask": "peaks"}}
    replayed = [
        plain | {"name": "E", "role": "replay", "replay": "peaks"},
        same | {"name": "E-same", "replay": "peaks"},
    ]
    found = lines(tmp_path / "run" / "samples.jsonl")
    found += [sample | {"arm": "E-same"} for sample in found if sample["arm"] == "A/A"]
    (tmp_path / "run" / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in found), "utf-8")
    for arms, taken in (([plain, *replayed, same, *others], "A/A"), ([plain, *replayed, *others], "B")):
        told["arms"]["arms"] = arms
        (tmp_path / "run" / "run.json").write_text(json.dumps(told), "utf-8")
        traces = read_run(tmp_path / "run", load_tokenizer(str(model)))
        assert [trace.arm for trace in traces] == [taken] * 2
