"""Arms that branch off responses of the same run: what is asked and kept, the planted truth, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from steerdec.benchmarks.design.arm_sets import built_in_text
from steerdec.benchmarks.run import session
from steerdec.benchmarks.run.branches import BranchError
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.endpoints import RefusedError
from steerdec.benchmarks.run.preflight import PreflightError
from steerdec.benchmarks.run.targets import Target
from steerdec.benchmarks.stats.branching import OUTCOMES, trees_of
from steerdec.benchmarks.verdicts.summary import read_run_data, summarize
from steerdec.cli.bench import bench_app
from steerdec.phantom.chain import Chain
from steerdec.records.arms import ArmError, parse_arm_set
from tests.support.chain_endpoint import NAMES, RIGHT, RULES, THRESHOLD_NATS, chain_of, decided, exact, first, late
from tests.support.chain_endpoint import target as chain_target
from tests.support.scripted_endpoint import Body, Script, ScriptedEndpoint

QUICK = Retry(attempts=2, endpoint_failures=8, first_pause_s=0.01, longest_pause_s=0.02)
ARMS: dict[str, Any] = yaml.safe_load(built_in_text("branching"))
BRANCHES = {arm["name"]: arm["branch"]["place"] for arm in ARMS["arms"] if "branch" in arm}
ONE = {**ARMS, "arms": ARMS["arms"][:3]}  # without the arms that branch elsewhere than at the top fork
SAMPLES, PROBLEMS = 16, 15


def problems(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "problems.jsonl"
    texts = [f"Problem {i}, by{NAMES[i % RULES]}: what is it?" for i in range(number)]
    lines = [{"id": f"p{i}", "problem": text, "answer": RIGHT} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def request(folder: Path, number: int, **changes: Any) -> session.RunRequest:
    asked: dict[str, Any] = {"limit": None, "prompt": "aime", "thinking": None, "samples": SAMPLES, "seed": 1}
    asked |= {"temperature": None, "max_tokens": 64, "threshold": str(THRESHOLD_NATS), "force": False} | changes
    return session.read_request(str(problems(folder, number)), asked.pop("arms", "branching"), **asked)


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def by_key(folder: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    return {(s["arm"], s["problem_id"], s["sample"]): s for s in samples(folder)}


def made(folder: Path, chain: Chain, number: int = 10, **changes: Any) -> Path:
    """The run of a chain, in which no sample failed."""
    assert session.run(request(folder, number, **changes), chain_target(chain), folder / "run", QUICK).failed == 0
    return folder / "run"


@pytest.fixture(scope="module")
def late_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("late"), chain_of(late), PROBLEMS)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    return made(folder, chain_of(first), PROBLEMS, arms=one_arm(folder))


@pytest.fixture(scope="module")
def decided_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decided")
    return made(folder, chain_of(decided), PROBLEMS, arms=one_arm(folder))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("small"), chain_of(late), samples=8)


def one_arm(folder: Path) -> str:
    (folder / "one.yaml").write_text(yaml.safe_dump(ONE))
    return str(folder / "one.yaml")


# What is asked and kept ---------------------------------------------------------------------------


def test_every_sample_of_a_tree_goes_on_from_one_place_of_its_root(late_run: Path) -> None:
    chain, found = chain_of(late), by_key(late_run)
    assert len(found) == PROBLEMS * SAMPLES * 5
    entropy, after = chain.entropy_nats(), chain.state_after()
    for (arm, problem, number), sample in found.items():
        if arm not in BRANCHES:
            assert ("token_ids" in sample) == (arm == "A/A" and number % 4 == 0)
            continue
        root = found["A/A", problem, number - number % 4]
        assert (sample["replayed_arm"], sample["replayed_sample"]) == ("A/A", root["sample"])
        texts = [NAMES[int(problem[1:]) % RULES], *(chain.tokens[i] for i in root["token_ids"])]
        state = after[texts[sample["position"]]]  # before the first token that is sampled anew
        assert state is not None
        assert (entropy[state] > THRESHOLD_NATS) == (arm != "other")
        kept = "".join(texts[1 : sample["position"] + 1])
        assert sample["text"].startswith(kept)
        assert sample["completion_tokens"] == len(sample["text"].removeprefix(kept).split()) + 1  # and the end
        assert sample["position"] == found[arm, problem, root["sample"]]["position"]
        assert sample["seed"] == found["other", problem, number]["seed"]
    assert len({s["seed"] for key, s in found.items() if key[:2] == ("other", "p0")}) == SAMPLES
    assert all(s["text"] == found["A/A", *key[1:]]["text"] for key, s in found.items() if key[0] == "B")


def test_a_root_without_such_a_token_is_continued_from_its_prompt(tmp_path: Path) -> None:
    found = samples(made(tmp_path, chain_of(late), threshold="3", samples=8))
    assert {s["position"] for s in found if s["arm"] in ("top-fork", "any-fork")} == {0}
    assert {s["position"] for s in found if s["arm"] == "other"} > {0}


# The planted truth --------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "run"), [(late, "late_run"), (first, "first_run"), (decided, "decided_run")])
def test_trees_and_as_many_plain_tokens_have_the_exact_values(
    model: Any, run: str, request: pytest.FixtureRequest
) -> None:
    """Each outcome of every arm is within 4 standard errors of the value summed over all responses of the chain."""
    data, chain = read_run_data(request.getfixturevalue(run)), chain_of(model)
    for arm in data.design.branches:
        found = trees_of(data.tables[arm], data.tables["A/A"], data.tables["B"], 4)
        truth = [exact(chain, i % RULES, BRANCHES[arm], 4) for i in range(PROBLEMS)]
        assert (found.whole == SAMPLES // 4).all()
        near(found.tree_tokens, [one.tree_tokens for one in truth])
        near(found.plain_tokens, [one.plain_tokens for one in truth])
        for at, outcome in enumerate(OUTCOMES):
            near(found.tree[outcome], [one.tree[at] for one in truth])
            for size in range(6):
                near(found.plain[outcome][:, size], [one.plain[size][at] for one in truth])


def near(measured: np.ndarray, truth: list[float]) -> None:
    error = measured - np.array(truth)
    se = float(np.std(error, ddof=1)) / math.sqrt(len(error))
    assert abs(float(error.mean())) <= 4 * se + 1e-9


def any_right(run: Path) -> tuple[float, float]:
    row = next(row for row in summarize(run).branching if row.arm == "top-fork")
    assert (row.trees, row.trees_planned, row.n_problems, row.note) == (4 * PROBLEMS, 4 * PROBLEMS, PROBLEMS, "")
    ci95 = row.outcomes[0].ci95
    assert ci95 is not None
    return ci95


def test_a_late_fork_makes_trees_worth_more_than_plain_samples(late_run: Path) -> None:
    assert any_right(late_run)[0] > 0.05


def test_a_fork_at_the_first_token_makes_trees_worth_as_much_as_plain_samples(first_run: Path) -> None:
    low, high = any_right(first_run)
    assert low < 0 < high
    row = summarize(first_run).branching[0]
    assert row.plain_samples == pytest.approx(5, abs=0.25)  # as many as a tree has leaves


def test_a_fork_after_the_decision_makes_trees_worth_less(decided_run: Path) -> None:
    assert any_right(decided_run)[1] < -0.01


def test_place_is_compared_with_place(late_run: Path) -> None:
    summary = summarize(late_run)
    rows = {(row.arm, row.against, row.outcome): row for row in summary.branch_contrasts}
    assert len(rows) == 3 * 3
    place = rows["top-fork", "other", "any right"]
    gains = {row.arm: row.outcomes[0].diff for row in summary.branching}
    assert place.diff == pytest.approx((gains["top-fork"] or 0) - (gains["other"] or 0))
    assert place.ci95 is not None
    assert place.ci95[0] > 0.05


# The summary and the report -----------------------------------------------------------------------


def test_leaves_are_not_taken_for_independent_samples(late_run: Path) -> None:
    summary = summarize(late_run)
    for arm in BRANCHES:
        row = summary.arms[arm]
        assert (row.pass_at_k, row.pass_at, row.maj_at_k, row.tokens_per_correct) == (None, {}, None, None)
        assert row.avg_at_k is not None
    assert not {row.arm for row in (*summary.comparisons, *summary.other_metrics)} & set(BRANCHES)


def test_the_report_shows_trees_beside_plain_samples(small_run: Path) -> None:
    printed = CliRunner().invoke(bench_app, ["report", str(small_run)], env={"COLUMNS": "120"}).output
    for text in (printed, (small_run / "report.html").read_text(), (small_run / "report.md").read_text()):
        assert "Branching at equal tokens" in text
        assert "any right" in text
        assert "the fork with the highest entropy" in " ".join(text.split())


def test_with_few_problems_there_is_no_interval(tmp_path: Path) -> None:
    summary = summarize(made(tmp_path, chain_of(late), 9, samples=8))
    assert all(one.ci95 is None for row in summary.branching for one in row.outcomes)
    assert "too few for an interval" in summary.branching[0].note


def copied(run: Path, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """The same run with other samples; None leaves one out."""
    folder.mkdir()
    (folder / "run.json").write_bytes((run / "run.json").read_bytes())
    kept = [changed for sample in samples(run) if (changed := change(sample)) is not None]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in kept))
    return folder


def test_a_run_without_samples_has_rows_without_numbers(small_run: Path, tmp_path: Path) -> None:
    summary = summarize(copied(small_run, tmp_path / "run", lambda sample: None))
    for row in summary.branching:
        assert (row.trees, row.n_problems, row.plain_samples, row.tree_tokens) == (0, 0, None, None)
        assert {(one.tree, one.plain, one.diff, one.ci95) for one in row.outcomes} == {(None, None, None, None)}
    assert {row.diff for row in summary.branch_contrasts} == {None}


def test_a_tree_that_costs_too_much_is_named(small_run: Path, tmp_path: Path) -> None:
    def longer(sample: dict[str, Any]) -> dict[str, Any]:
        times = 30 if sample["arm"] == "top-fork" else 1
        return sample | {"completion_tokens": times * sample["completion_tokens"]}

    row = summarize(copied(small_run, tmp_path / "run", longer)).branching[0]
    assert row.note == "a tree costs more than 8 plain samples, which are not there"
    assert row.outcomes[0].tree is not None
    assert row.outcomes[0].diff is None


# Stopping and going on ----------------------------------------------------------------------------


class KilledError(Exception):
    pass


@pytest.mark.parametrize("number", [60, 230, 370])  # among roots, and among what branches off them
def test_a_run_stopped_anywhere_comes_to_the_same_samples_and_summary(
    small_run: Path, tmp_path: Path, number: int
) -> None:
    def fails(asked: int, body: Body) -> None:
        if asked >= number:
            raise KilledError

    chain = chain_of(late)
    with pytest.raises(KilledError):
        session.run(request(tmp_path, 10, samples=8), chain_target(chain, fails), tmp_path / "run", QUICK)
    begun = samples(tmp_path / "run")
    assert 0 < len(begun) < 400
    with (tmp_path / "run" / "samples.jsonl").open("ab") as file:
        file.write(b'{"problem_id": "p0", "arm": "B", "sam')
    assert made(tmp_path, chain, samples=8)
    assert samples(tmp_path / "run")[: len(begun)] == begun
    assert by_key(tmp_path / "run") == by_key(small_run)
    assert summarize(tmp_path / "run") == summarize(small_run)


def test_what_continues_a_failed_root_waits_until_the_root_is_there(small_run: Path, tmp_path: Path) -> None:
    def fails(asked: int, body: Body) -> None:
        root = "messages" in body and "return_token_ids" in body and body["max_tokens"] == 64
        if root and "Problem 3," in body["messages"][-1]["content"]:
            raise RefusedError("not this one", 400)

    chain = chain_of(late)
    begun = session.run(request(tmp_path, 10, samples=8), chain_target(chain, fails), tmp_path / "run", QUICK)
    assert begun.failed == 2 * (1 + 3 * 4)
    assert not any(s["problem_id"] == "p3" and s["arm"] in BRANCHES for s in samples(tmp_path / "run"))
    summary = summarize(tmp_path / "run")
    assert (summary.interim, summary.branching[0].trees) == (True, 18)
    assert "2 trees of 20 not whole" in summary.branching[0].note
    assert made(tmp_path, chain, samples=8)
    assert by_key(tmp_path / "run") == by_key(small_run)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        ({"branch": None}, 'arm "X": role branch and the field branch go together'),
        ({"role": "treatment"}, 'arm "X": role branch and the field branch go together'),
        ({"steering": {"fork_temperature": 1.0}}, 'arm "X": a branch takes no steering'),
        ({"branch": {"roots": "B"}}, 'arm "X": branch: roots: "B" is not an arm with role identity that starts from'),
        ({"branch": {"place": "first"}}, 'arm "X" branch place: '),
        ({"branch": {"continuations": 0}}, 'arm "X" branch continuations: '),
        ({"branch": {"width": 3}}, "width"),
        ({"temperature": 0.9}, 'arm "X": temperature: a branch decodes at the base temperature, 1'),
    ],
)
def test_an_arm_that_cannot_branch_is_refused(tmp_path: Path, arm: dict[str, Any], reason: str) -> None:
    branch = {"roots": "A/A", "place": "fork", "continuations": 2}
    given = {"name": "X", "role": "branch", "branch": branch} | arm
    if arm.get("branch"):
        given["branch"] = branch | arm["branch"]
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump({**ARMS, "arms": [*ARMS["arms"], given]}))
    with pytest.raises(ArmError, match=re.escape(reason)):
        request(tmp_path, 1, arms=str(tmp_path / "arms.yaml"))


def test_a_claim_about_a_branching_arm_is_refused() -> None:
    claim = {"id": "more", "statement": "It finds more.", "arm": "top-fork", "baseline": "B", "direction": "higher"}
    with pytest.raises(ArmError, match=r'"top-fork" branches, so its samples are not independent.* claim more'):
        parse_arm_set({**ARMS, "claims": [claim]})
    with pytest.raises(ArmError, match=r'"other" branches.* comparisons'):
        parse_arm_set({**ARMS, "comparisons": [{"arm": "other", "baseline": "B"}]})


def test_less_than_a_tree_is_refused_and_a_part_of_one_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        BranchError, match=r"--samples: 7 are less than two trees of arm \"top-fork\", which take 4 each"
    ):
        request(tmp_path, 1, samples=7)
    row = summarize(made(tmp_path, chain_of(late), 1, samples=10)).branching[0]
    assert (row.trees, row.trees_planned) == (2, 2)
    assert "warning: 10 samples are no multiple of 4, so the last 2 of arm top-fork" in capsys.readouterr().err


def target(url: str) -> Target:
    return Target(endpoints=(url,), model=None, dtype=None, concurrency=8, timeout_s=60.0, api_key=None)


def scripted(**changes: Any) -> ScriptedEndpoint:
    texts = [f"Problem {i}, by{NAMES[i % RULES]}: what is it?" for i in range(2)]
    return ScriptedEndpoint(Script(dict.fromkeys(texts, RIGHT), **changes))


def test_a_server_without_tokenize_is_refused(tmp_path: Path) -> None:
    with scripted(hides_tokens=True) as server, pytest.raises(BranchError, match="at /tokenize, which branching needs"):
        session.run(request(tmp_path, 2, samples=8), target(server.url), tmp_path / "run", QUICK)
    assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_a_server_without_token_ids_is_refused_before_the_first_sample(tmp_path: Path) -> None:
    def without_ids(number: int, body: Body) -> Any:
        body.pop("return_token_ids", None)

    with (
        scripted(fault=without_ids) as server,
        pytest.raises(PreflightError, match=r'arm "A/A": no token_ids \(return_token_ids\), which branching needs'),
    ):
        session.run(request(tmp_path, 2, samples=8), target(server.url), tmp_path / "run", QUICK)
    assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_it_runs_over_http(tmp_path: Path) -> None:
    with scripted() as server:
        finished = session.run(request(tmp_path, 2, samples=8), target(server.url), tmp_path / "run", QUICK)
    assert finished == session.Finished(2 * 8 * 5, 0)
    assert all(row.trees == 4 for row in summarize(tmp_path / "run").branching)


def test_a_journal_without_the_ids_of_a_root_is_named(tmp_path: Path) -> None:
    path = made(tmp_path, chain_of(late), 1, samples=8) / "samples.jsonl"
    kept = [s for s in samples(path.parent) if s["arm"] in ("B", "A/A")]
    path.write_text("".join(json.dumps({k: v for k, v in s.items() if k != "token_ids"}) + "\n" for s in kept))
    with pytest.raises(BranchError, match="arm A/A, sample 0 has no token ids and entropies"):
        made(tmp_path, chain_of(late), 1, samples=8)
