"""Arms that go on from recorded prefixes: what is asked, kept and refused, and what a planted lens shows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml
from typer.testing import CliRunner

from steerdec.benchmarks.design.arm_sets import load_arm_set
from steerdec.benchmarks.design.masks import Places, read_mask
from steerdec.benchmarks.design.plan import SamplingPlan, drawn_prefix
from steerdec.benchmarks.design.resolving import resolve
from steerdec.benchmarks.report.write import write_report
from steerdec.benchmarks.run import session
from steerdec.benchmarks.run.answers import MalformedAnswerError, parse_answer
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.replays import ReplayError
from steerdec.benchmarks.run.targets import Target
from steerdec.benchmarks.verdicts.expectations import Contrast, Design, read_design
from steerdec.benchmarks.verdicts.summary import write_summary
from steerdec.cli.bench import bench_app
from steerdec.problems.prompts import request_body
from steerdec.problems.sets import Problem
from steerdec.records.arms import ArmError, parse_arm_set
from steerdec.records.mask_file import MaskedRequest, MaskError, write_mask
from steerdec.records.run import SettingsError
from tests.support.scripted_endpoint import Body, Script, ScriptedEndpoint, ids_of

QUICK = Retry(attempts=2, endpoint_failures=8, first_pause_s=0.02, longest_pause_s=0.05)
PROBLEMS = {f"What is {i} plus {i * 7}?": str(i * 8) for i in range(1, 11)}  # as many as a verdict needs
TRACES = 3  # recorded responses to each problem
UP = {"select": "first", "first_tokens": 1, "fork_temperature": "x2"}
SAME = {"select": "first", "first_tokens": 1, "fork_temperature": "base", "other_temperature": "base"}
ARMS: dict[str, Any] = {
    "name": "lenses",
    "baseline": "B",
    "temperature": 0.6,
    "replays": {"peaks": {"mask": "peaks"}, "anywhere": {"mask": "peaks", "positions": "any"}},
    "arms": [
        {"name": "B", "role": "baseline"},
        {"name": "L", "role": "replay", "replay": "peaks"},
        {"name": "L-same", "role": "identity", "replay": "peaks", "steering": SAME},
        {"name": "L-up", "role": "treatment", "replay": "peaks", "steering": UP},
        {"name": "R", "role": "replay", "replay": "anywhere"},
        {"name": "R-up", "role": "placebo", "replay": "anywhere", "steering": UP},
    ],
    "claims": [{"id": "up", "statement": "Up there helps.", "arm": "L-up", "baseline": "L", "direction": "higher"}],
}


def prompt_of(problem: str, prompt: str = "aime") -> str:
    return str(request_body(prompt, Problem("", problem, ""), thinking=None)[1]["messages"][0]["content"])


def response(i: int, trace: int) -> str:
    return f"So {i} and {i * 7}, {'well ' * trace}\\boxed{{{i * 8}}}."


def requests(
    fork: Callable[[str], list[int]] | None = None, prompt: Callable[[str], str] = prompt_of
) -> list[MaskedRequest]:
    """Three responses to every problem, in characters; the forks are where `fork` says, else at the digits."""
    made = []
    for i, problem in enumerate(PROBLEMS, start=1):
        for trace in range(TRACES):
            text = response(i, trace)
            at = [t for t, c in enumerate(text) if c.isdigit()] if fork is None else fork(text)
            flags = np.isin(np.arange(len(text)), at)
            made.append(
                MaskedRequest(
                    problem_id=f"p{i - 1}",
                    arm="A/A",
                    sample=trace,
                    prompt_ids=tuple(ids_of(prompt(problem))),
                    token_ids=np.asarray(ids_of(text), np.int32),
                    entropy_nats=np.zeros(len(text), np.float32),
                    score=np.zeros(len(text), np.float32),
                    fork=flags,
                    ids_are="sampled",
                    answer=None,
                    grade="correct",
                )
            )
    return made


def about(**changes: Any) -> dict[str, Any]:
    told = {"lens": "digits", "share": None, "threshold_nats": None, "cut": 0.5, "model": "/models/scripted"}
    return told | {"problems": {"name": "mine", "sha256": "0"}, "prompt": "aime"} | changes


def make_mask(folder: Path, made: list[MaskedRequest] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_mask(folder, requests() if made is None else made, about(**changes))
    return folder


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    lines = [{"id": f"p{i}", "problem": text, "answer": a} for i, (text, a) in enumerate(PROBLEMS.items())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    """An arm file with its mask beside it."""
    folder = tmp_path / "design"
    make_mask(folder / "peaks")
    (folder / "arms.yaml").write_text(yaml.safe_dump(ARMS))
    return folder / "arms.yaml"


def request(problems: Path, arms: Path, **changes: Any) -> session.RunRequest:
    asked: dict[str, Any] = {"limit": None, "prompt": None, "thinking": None, "samples": 3, "seed": 1}
    asked |= {"temperature": None, "max_tokens": 64, "threshold": None, "force": False} | changes
    return session.read_request(str(problems), str(arms), **asked)


def target(url: str) -> Target:
    return Target(endpoints=(url,), model=None, dtype=None, concurrency=8, timeout_s=60.0, api_key=None)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def parts_of(body: Body) -> tuple[str, str]:
    """The problem's prompt, and the prefix of the response after it."""
    asked = "".join(map(chr, body["prompt"]))
    prompt = next(p for p in map(prompt_of, PROBLEMS) if asked.startswith(p))
    return prompt, asked[len(prompt) :]


# What is asked and kept ---------------------------------------------------------------------------


def test_every_replayed_sample_goes_on_from_one_masked_position_of_a_recorded_response(
    problems: Path, arms: Path, tmp_path: Path
) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, lambda problem, body: 1.0)) as server:
        assert session.run(request(problems, arms), target(server.url), tmp_path / "run", QUICK).failed == 0
        bodies = [body for body in server.bodies if isinstance(body.get("prompt"), list) and body["max_tokens"] != 8]
    asked = {(json.dumps(body["prompt"]), json.dumps(body.get("steering")), body["seed"]): body for body in bodies}
    samples = [s for s in lines(tmp_path / "run") if s["arm"] != "B"]
    assert len(samples) == len(bodies) == len(PROBLEMS) * 3 * 5
    for sample in samples:
        i = int(sample["problem_id"][1:]) + 1
        replayed = response(i, sample["replayed_sample"])
        assert sample["replayed_arm"] == "A/A"
        if sample["arm"].startswith("L"):
            assert replayed[sample["position"]].isdigit()
        prefix = replayed[: sample["position"]]
        assert sample["text"] == f"{prefix}So it is \\boxed{{{i * 8}}}."
        assert (sample["grade"], sample["answer"]) == ("correct", str(i * 8))
        assert sample["completion_tokens"] == len(f"So it is \\boxed{{{i * 8}}}.") + 1
        assert "entropy_nats" not in sample
        assert sample["forks"] == {"L": None, "R": None, "L-same": 1, "L-up": 1, "R-up": 1}[sample["arm"]]
    for body in asked.values():
        _, prefix = parts_of(body)
        assert body["max_tokens"] == 64 - len(prefix), "the whole response is as long as any other arm's"
        assert body["temperature"] == 0.6
        steering = body.get("steering", {"select": "first", "first_tokens": 1})
        assert (steering["select"], steering["first_tokens"]) == ("first", 1)


def test_arms_of_a_replay_share_prefix_and_seed_and_draw_with_other_numbers_than_the_baseline(
    problems: Path, arms: Path, tmp_path: Path
) -> None:
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems, arms), target(server.url), tmp_path / "run", QUICK)
    by_key: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for sample in lines(tmp_path / "run"):
        by_key.setdefault((sample["problem_id"], sample["sample"]), {})[sample["arm"]] = sample
    drawn = set()
    for found in by_key.values():
        assert len({(found[arm]["position"], found[arm]["replayed_sample"]) for arm in ("L", "L-same", "L-up")}) == 1
        assert found["R"]["position"] == found["R-up"]["position"]
        assert found["R"]["replayed_sample"] == found["L"]["replayed_sample"], "lenses look at the same responses"
        assert len({found[arm]["seed"] for arm in ("L", "L-same", "L-up", "R", "R-up")}) == 1
        assert found["L"]["seed"] != found["B"]["seed"], "the prefix may have been drawn with the baseline's"
        assert found["L"]["text"] == found["L-same"]["text"]
        drawn.add((found["L"]["position"], found["R"]["position"]))
    assert len(drawn) > 6


def test_positions_are_drawn_evenly_from_all_that_a_mask_points_at(tmp_path: Path) -> None:
    mask = read_mask(make_mask(tmp_path / "m", requests(fork=lambda text: [0, 2, 9])))
    for which, points in (("fork", [0, 2, 9]), ("other", [1, *range(3, 9), *range(10, 60)])):
        places = Places(mask, which)
        drawn = [drawn_prefix(places, 7, "p0", sample) for sample in range(3000)]
        traces = Counter(prefix.trace.sample for prefix in drawn)
        assert scipy.stats.chisquare(list(traces.values())).pvalue > 1e-3
        first = [prefix.position for prefix in drawn if prefix.trace.sample == 0]
        expected = [t for t in points if t < len(response(1, 0))]
        assert set(first) == set(expected)
        assert scipy.stats.chisquare([first.count(t) for t in expected]).pvalue > 1e-3
    again = [drawn_prefix(places, 7, "p0", sample) for sample in range(3000)]
    assert [(p.trace.sample, p.position) for p in again] == [(p.trace.sample, p.position) for p in drawn]
    other = [drawn_prefix(places, 8, "p0", sample).position for sample in range(3000)]
    assert other != [prefix.position for prefix in drawn]


def test_a_response_without_such_a_position_is_never_drawn(tmp_path: Path) -> None:
    mask = read_mask(make_mask(tmp_path / "m", requests(fork=lambda text: [3] if "well well" in text else [])))
    places = Places(mask, "fork")
    assert {drawn_prefix(places, 0, "p1", s).trace.sample for s in range(50)} == {2}
    empty = drawn_prefix(Places(mask, "any"), 0, "p1", 0)
    assert empty.token_ids == [*empty.trace.prompt_ids, *empty.response_ids]
    assert len(empty.response_ids) == empty.position


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        ({"finish_reason": "stop", "stop_reason": None}, [5, 6]),  # the model's own end
        ({"finish_reason": "stop", "stop_reason": 7}, [5, 6]),  # another token that ends
        ({"finish_reason": "stop", "stop_reason": "\n"}, [5, 6, 7]),  # a text, which may end within the token
        ({"finish_reason": "length"}, [5, 6, 7]),
    ],
)
def test_the_token_that_ends_a_text_is_no_part_of_it(end: dict[str, Any], kept: list[int]) -> None:
    body = {"choices": [{"text": "x", "token_ids": [5, 6, 7]} | end], "usage": {"completion_tokens": 3}}
    assert parse_answer(json.dumps(body).encode(), max_tokens=8, steering=None).token_ids == kept
    body["usage"] = {"completion_tokens": 4}
    with pytest.raises(MalformedAnswerError, match="token_ids has 3 entries for 4 tokens"):
        parse_answer(json.dumps(body).encode(), max_tokens=8, steering=None)


def test_a_plan_without_replays_has_no_prefixes_and_the_seeds_it_always_had() -> None:
    quick = load_arm_set("quick")
    items = list(SamplingPlan([Problem("p", "x", "1")], quick.arms, 2, 3).items())
    assert all(item.prefix is None for item in items)
    assert len({item.seed for item in items if item.sample == 0}) == 1


def documented(name: str) -> Design:
    """Of the arm set of that name in the documentation, of which there is one."""
    text = (Path(__file__).parents[3] / "docs" / "method.md").read_text("utf-8")
    sets = [parse_arm_set(yaml.safe_load(block)) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    (found,) = [resolve(one, temperature=0.6, threshold_nats=0.6) for one in sets if one.name == name]
    assert {arm.replay for arm in found.arms if arm.replay} == set(found.replays)
    return read_design(found.model_dump(mode="json"))


def test_the_arm_set_of_the_documentation_is_one() -> None:
    design = documented("entropy-lens")
    assert dict(design.pairs)["E-up"] == "E"
    assert [(c.arm, c.placebo) for c in design.contrasts] == [
        ("E-up", "R-up"), ("E-down", "R-down"), ("N-up", "R-up"), ("N-down", "R-down"),
    ]  # fmt: skip
    assert design.identities == ("E-same",)


def test_the_documentation_s_numbers_are_compared_with_their_controls_and_with_other_tokens() -> None:
    design = documented("numbers")
    assert {("D-up", "D"), ("D-down", "D"), ("O-up", "O"), ("O-down", "O"), ("D-same", "D")} < set(design.pairs)
    assert design.contrasts == (Contrast("D-up", "D", "O-up", "O"), Contrast("D-down", "D", "O-down", "O"))
    assert design.identities == ("D-same",)


# What it shows ------------------------------------------------------------------------------------


def test_a_planted_effect_at_masked_positions_is_found_there_and_is_less_anywhere(
    problems: Path, arms: Path, tmp_path: Path
) -> None:
    """Raised at a digit, a response is right nine times of ten; elsewhere raising does nothing."""

    def chance(problem: str, body: Body) -> float:
        raised = body.get("steering", {}).get("fork_temperature") == 1.2
        if not isinstance(body.get("prompt"), list) or not raised:
            return 0.4
        _, prefix = parts_of(body)
        i = next(i for i, p in enumerate(PROBLEMS, start=1) if p == problem)
        texts = [text for trace in range(TRACES) if (text := response(i, trace)).startswith(prefix)]
        return 0.9 if all(text[len(prefix)].isdigit() for text in texts) else 0.4

    folder = tmp_path / "run"
    with ScriptedEndpoint(Script(PROBLEMS, chance)) as server:
        session.run(request(problems, arms, samples=36), target(server.url), folder, QUICK)
    summary = json.loads(write_summary(folder).read_text())
    rows = {(row["arm"], row["baseline"]): row for row in summary["comparisons"]}
    assert list(dict.fromkeys((row["arm"], row["baseline"]) for row in summary["comparisons"])) == [
        ("L", "B"), ("L-same", "L"), ("L-up", "L"), ("R", "B"), ("R-up", "R"),
    ]  # fmt: skip
    assert rows["L-up", "L"]["diff"] == pytest.approx(0.5, abs=0.1)
    assert rows["L-same", "L"]["diff"] == 0
    assert abs(rows["R-up", "R"]["diff"]) < 0.25
    assert rows["L", "B"]["p"] > 1e-3
    (contrast,) = summary["contrasts"]
    assert [contrast[key] for key in ("arm", "control", "placebo", "placebo_control")] == ["L-up", "L", "R-up", "R"]
    assert contrast["diff"] == pytest.approx(rows["L-up", "L"]["diff"] - rows["R-up", "R"]["diff"], abs=1e-12)
    assert contrast["ci95"][0] > 0
    assert summary["instrument"] == "valid"
    told = "L-same, with L as its baseline: A/A gave the baseline's text in all 360 pairs"
    assert summary["instrument_reason"] == told
    assert [claim["verdict"] for claim in summary["claims"]] == ["holds"]
    assert summary["trends"] == []
    page = write_report(folder).read_text()
    assert "Where a lens points" in page
    table = (folder / "report.md").read_text().split("## Where a lens points")[1].split("## Arms")[0]
    (row,) = [line for line in table.splitlines() if line.startswith("| L-up |")]
    assert row.startswith("| L-up | digits | peaks | fork | L | +")
    assert "| R-up: +" in row


def test_an_identity_arm_that_changes_texts_after_prefixes_makes_the_instrument_invalid(
    problems: Path, arms: Path, tmp_path: Path
) -> None:
    def chance(problem: str, body: Body) -> float:
        return 1.0 if body.get("steering", {}).get("fork_temperature") == 0.6 else 0.0

    with ScriptedEndpoint(Script(PROBLEMS, chance)) as server:
        session.run(request(problems, arms), target(server.url), tmp_path / "run", QUICK)
    summary = json.loads(write_summary(tmp_path / "run").read_text())
    assert summary["instrument"] == "invalid"


# Going on, and repeating --------------------------------------------------------------------------


def test_a_run_goes_on_with_the_same_mask_only(problems: Path, arms: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems, arms), target(server.url), folder, QUICK)
        whole = {json.dumps(s, sort_keys=True) for s in lines(folder)}
        kept = (folder / "samples.jsonl").read_bytes().splitlines(keepends=True)[:40]
        (folder / "samples.jsonl").write_bytes(b"".join(kept))
        make_mask(arms.parent / "peaks", created="at another time")  # the same rows
        session.run(request(problems, arms), target(server.url), folder, QUICK)
        assert {json.dumps(s, sort_keys=True) for s in lines(folder)} == whole
        make_mask(arms.parent / "peaks", requests(fork=lambda text: [1, 2]))
        with pytest.raises(SettingsError, match=r"arms\.replays\.peaks") as e:
            session.run(request(problems, arms), target(server.url), folder, QUICK)
    assert "\n" not in str(e.value)


def test_a_run_is_repeated_from_its_run_json_with_the_masks_beside_it(
    problems: Path, arms: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems, arms), target(server.url), folder, QUICK)
        told = json.loads((folder / "run.json").read_text())["arms"]["replays"]
        assert told["peaks"]["mask"] == "peaks"
        assert str(tmp_path) not in json.dumps(told)
        assert (told["peaks"]["about"]["lens"], told["peaks"]["about"]["model"]) == ("digits", "scripted")
        with pytest.raises(MaskError, match=r"mask\.json cannot be read"):
            session.repeated_request(folder / "run.json")
        make_mask(folder / "peaks")
        again, _ = session.repeated_request(folder / "run.json")
        session.run(again, target(server.url), tmp_path / "again", QUICK)
        make_mask(folder / "peaks", requests(fork=lambda text: [1, 2]))
        with pytest.raises(ReplayError, match=r"mask peaks has changed since the run: sha256 \w{12} -> \w{12}$"):
            session.repeated_request(folder / "run.json")
    texts = [
        {(s["problem_id"], s["arm"], s["sample"]): s["text"] for s in lines(tmp_path / f)} for f in ("run", "again")
    ]
    assert texts[0] == texts[1]


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "changes", "told"),
    [
        ({"prompt": "math"}, {}, "mask peaks is of responses to prompt math, the run has aime; set --prompt"),
        ({"made": []}, {}, "mask peaks has no response to problem p0 and 9 more; it is of mine"),
        (
            {"made": [r for r in requests() if r.problem_id != "p4"]},
            {},
            "mask peaks has no response to problem p4; it is of mine",
        ),
        (
            {"made": requests(fork=lambda text: [] if "So 3" in text else [1])},
            {},
            "mask peaks has no token that is a fork in any response to problem p2",
        ),
        ({}, {"max_tokens": 10}, "--max-tokens: 10 ends before position"),
    ],
)
def test_a_mask_that_does_not_fit_is_one_line_before_any_server_is_asked(
    problems: Path, arms: Path, mask: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    make_mask(arms.parent / "peaks", **mask)
    with pytest.raises(ReplayError) as e:
        request(problems, arms, **changes)
    assert str(e.value).startswith(told)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("mask", "script", "told"),
    [
        ({"model": "Else/other-7B"}, {}, "mask peaks is of other-7B, served is scripted"),
        ({}, {"max_model_len": 120}, "--max-tokens: 64 after a prompt of"),
        (
            {"made": requests(prompt=lambda problem: prompt_of(problem, "math"))},
            {},
            "mask peaks: the prompt of problem p0 differs from the server's",
        ),
    ],
)
def test_a_mask_that_does_not_fit_the_server_is_one_line_before_the_first_sample(
    problems: Path, arms: Path, tmp_path: Path, mask: dict[str, Any], script: dict[str, Any], told: str
) -> None:
    make_mask(arms.parent / "peaks", **mask)
    with ScriptedEndpoint(Script(PROBLEMS, **script)) as server:
        with pytest.raises(ReplayError) as e:
            session.run(request(problems, arms), target(server.url), tmp_path / "run", QUICK)
        assert not server.bodies
    assert str(e.value).startswith(told)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_a_mask_that_is_broken_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    folder = make_mask(tmp_path / "m")
    good = {path.name: path.read_bytes() for path in folder.iterdir()}

    def told(name: str, content: bytes | None) -> str:
        for each, whole in good.items():
            (folder / each).write_bytes(whole)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(MaskError) as e:
            read_mask(folder)
        assert "\n" not in str(e.value)
        return str(e.value).replace(str(folder), "m")

    assert told("mask.json", None).startswith("m/mask.json cannot be read")
    assert told("mask.json", b"{").startswith("m/mask.json is not JSON")
    assert told("mask.json", b'{"format": 2, "sha256": {}}') == "m/mask.json is not of a mask in format 1"
    assert told("mask.parquet", None).startswith("m/mask.parquet cannot be read")
    assert told("mask.parquet", b"PAR1").startswith("m/mask.parquet is not the file described by mask.json")
    assert told("requests.parquet", good["mask.parquet"]).startswith("m/requests.parquet is not the file")


def test_a_wrong_mask_is_status_2_and_one_line_and_makes_no_folder(problems: Path, arms: Path, tmp_path: Path) -> None:
    (arms.parent / "peaks" / "mask.json").unlink()
    given = ("--problems", problems, "--arms", arms, "--endpoint", "http://127.0.0.1:9", "--out", tmp_path / "run")
    result = CliRunner().invoke(bench_app, ["run", *map(str, given)])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "mask.json cannot be read" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_server_that_does_not_tell_its_tokens_is_named_with_the_reason(
    problems: Path, arms: Path, tmp_path: Path
) -> None:
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        server.script.hides_tokens = True
        with pytest.raises(ReplayError, match=r"answered 404: .*\(at /tokenize, which replays need\)$"):
            session.run(request(problems, arms), target(server.url), tmp_path / "run", QUICK)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"role": "replay"}, 'arm "X": role replay needs the field replay'),
        ({"role": "replay", "replay": "l", "steering": {}}, "takes no steering"),
        ({"role": "replica", "replay": "l"}, 'arm "X": a replica cannot replay'),
        ({"role": "treatment", "replay": "none"}, '"none" is not one of the replays (there are: l)'),
        ({"role": "replay", "replay": "l"}, 'replays "l": needs one arm with role replay to compare with, has 2'),
    ],
)
def test_a_wrong_arm_with_a_replay_is_refused_in_one_line(change: dict[str, Any], told: str) -> None:
    value = {
        "name": "x",
        "baseline": "B",
        "replays": {"l": {"mask": "m"}},
        "arms": [
            {"name": "B", "role": "baseline"},
            {"name": "L", "role": "replay", "replay": "l"},
            {"name": "X"} | change,
        ],
    }
    with pytest.raises(ArmError) as e:
        parse_arm_set(value)
    assert told in str(e.value)
    assert "\n" not in str(e.value)
