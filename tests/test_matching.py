"""Matched arms: the solved temperature gives the other arm's change of entropy, whatever the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from steerdec.benchmarks import calibrate_session, matching, session
from steerdec.benchmarks.arms import Arm, ArmError, ArmSet, load_arm_set
from steerdec.benchmarks.calibration import CalibrationError, load_calibration
from steerdec.benchmarks.cli import calibrate
from steerdec.benchmarks.matching import Contribution, Means
from steerdec.benchmarks.resolving import resolve
from steerdec.benchmarks.targets import Target
from tests.scripted_endpoint import Script, ScriptedEndpoint

BASE = 0.6
LOOKS = (0.03, 0.2, 0.6, 1.0, 1.5, 3.0)
PROBLEMS = {f"What is {i} plus {i * 7}?": str(i * 8) for i in range(1, 7)}


def forks_nats(t: float) -> float:
    return 0.4 * t


def others_nats(t: float) -> float:
    return 0.1 * t**2


def means(looks: tuple[float, ...] = LOOKS) -> Means:
    """Two problems, one of them twice as long, with the curves above as means over both."""
    tokens = np.array([100.0, 200.0])
    measured = {t: Contribution(tokens * forks_nats(t), tokens * others_nats(t), tokens) for t in looks}
    return Means(BASE, measured)


def arm(name: str, matched: str | None = None, **steering: Any) -> Arm:
    return Arm(name=name, role="matched" if matched else "treatment", matched=matched, steering=steering)


def arm_set(*arms: Arm) -> ArmSet:
    return ArmSet(name="test", baseline="B", arms=(Arm(name="B", role="baseline"), *arms))


def test_the_curves_pass_through_what_was_measured_and_grow_in_between() -> None:
    for t in LOOKS:
        assert means().nats("forks", t) == pytest.approx(forks_nats(t))
        assert means().nats("all", t) == pytest.approx(forks_nats(t) + others_nats(t))
    values = [means().nats("others", t) for t in np.geomspace(0.03, 3.0, 200)]
    assert (np.diff(values) > 0).all()


def test_greedy_tokens_have_no_entropy() -> None:
    greedy = arm("F", fork_temperature=0.0)
    assert means().dose_nats(greedy) == pytest.approx(-forks_nats(BASE))


def test_an_arm_at_the_base_temperatures_has_no_dose() -> None:
    assert means().dose_nats(arm("A/A", fork_temperature=BASE, other_temperature=BASE)) == 0.0
    assert means().dose_nats(Arm(name="B", role="baseline")) == 0.0


@pytest.mark.parametrize("temperature", [0.2, 1.0, 1.4])
def test_solving_finds_the_closed_form(temperature: float) -> None:
    """With many looks interpolation is exact enough: others at 0.1 t^2 have the forks' dose at one temperature."""
    fine = means((*np.geomspace(0.03, 3.0, 400), BASE))
    forks_up = arm("F", fork_temperature=temperature)
    if (square := (forks_nats(temperature) - forks_nats(BASE)) / 0.1 + BASE**2) > 0:
        solved = matching.solve(fine, arm("N", "F", other_temperature="solve"), forks_up)
        assert solved == pytest.approx(square**0.5, rel=1e-3)
    everywhere = matching.solve(fine, arm("G", "F", select="all", fork_temperature="solve"), forks_up)
    total = forks_nats(temperature) + others_nats(BASE)
    assert forks_nats(everywhere) + others_nats(everywhere) == pytest.approx(total, rel=1e-3)


def test_a_dose_out_of_reach_is_said_so() -> None:
    """The others hold too little entropy to lose as much as forks do at temperature 0."""
    with pytest.raises(ArmError, match=r'arm "N": no temperature from 0.03 to 3 changes .* by -0.2400 nats, as "F"'):
        matching.solve(means(), arm("N", "F", other_temperature="solve"), arm("F", fork_temperature=0.0))


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ([arm("F", policy="edt"), arm("N", "F", other_temperature="solve")], '"F": its dose cannot be matched'),
        (
            [arm("F", select="random", fork_rate=0.2), arm("N", "F", other_temperature="solve")],
            '"F": its dose cannot be matched',
        ),
        (
            [arm("F", "B", fork_temperature="solve"), arm("N", "F", other_temperature="solve")],
            '"F" has a temperature to solve itself',
        ),
        ([arm("N", "B", fork_temperature="solve", other_temperature="solve")], "exactly one of"),
        ([arm("N", None, fork_temperature="solve")], "needs the field matched"),
    ],
)
def test_arm_sets_that_cannot_be_solved_are_refused(arms: list[Arm], words: str) -> None:
    with pytest.raises(ArmError, match=words):
        list(matching.to_solve(arm_set(*arms)))


def test_the_interval_holds_the_solution_and_shrinks_with_more_problems() -> None:
    rng = np.random.default_rng(0)
    up, matched = arm("F", fork_temperature=1.0), arm("N", "F", other_temperature="solve")

    def interval(n: int) -> tuple[float, float]:
        tokens, forks, others = rng.uniform(50, 150, n), rng.gamma(4, 0.25, n), rng.gamma(4, 0.25, n)
        measured = {
            t: Contribution(tokens * forks * forks_nats(t), tokens * others * others_nats(t), tokens) for t in LOOKS
        }
        low, high = matching.interval(BASE, measured, matched, up, np.random.default_rng(1))
        assert low < matching.solve(Means(BASE, measured), matched, up) < high
        return low, high

    (low, high), (low_many, high_many) = interval(10), interval(300)
    assert high_many - low_many < 0.5 * (high - low)


# Through HTTP ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(calibration file, bodies sent): the built-in causal set solved against curves known in closed form.

    Every fifth of ten tokens is a fork; forks have 2 t nats at temperature t, the others 0.5 t^2.
    """
    folder = tmp_path_factory.mktemp("matching")
    lines = [{"id": f"p{i}", "problem": text, "answer": PROBLEMS[text]} for i, text in enumerate(list(PROBLEMS)[:3])]
    (folder / "problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    script = Script(PROBLEMS, tokens=10, entropy_at=lambda fork, t: 2 * t if fork else 0.5 * t**2)
    with ScriptedEndpoint(script) as server:
        calibrate_session.run(
            str(folder / "problems.jsonl"),
            Target((server.url,), None, None, concurrency=4, timeout_s=10.0, api_key=None),
            folder / "c.json",
            arms="causal",
            temperature=BASE,
            tokens=200,
            limit=None,
            seed=0,
            max_tokens=32,
            prompt=None,
            thinking=None,
        )
        return folder / "c.json", server.bodies


def test_an_arm_out_of_reach_does_not_lose_the_others(tmp_path: Path) -> None:
    """Forks without entropy cannot lose as much as the others do."""
    problems = tmp_path / "p.jsonl"
    problems.write_text(json.dumps({"id": "x", "problem": next(iter(PROBLEMS)), "answer": "8"}) + "\n")
    script = Script(PROBLEMS, tokens=10, entropy_at=lambda fork, t: 1e-6 * t if fork else 0.5 * t**2)
    app = typer.Typer()
    app.command()(calibrate)
    with ScriptedEndpoint(script) as server:
        asked = ["--endpoint", server.url, "--problems", str(problems), "--arms", "causal", "--temperature", "0.6"]
        asked += ["--tokens", "50", "--max-tokens", "16", "--out", str(tmp_path / "c.json")]
        result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1
    assert 'arm "F-down-m": no temperature' in result.stderr
    found = load_calibration(tmp_path / "c.json").matching
    assert found is not None
    assert {m.arm for m in found.matched} == {"G-up", "G-down", "N-up-m"}
    assert set(found.unmatched) == {"F-down-m"}


def test_causal_is_solved_to_a_thousandth_of_a_nat(solved: Any) -> None:
    found = load_calibration(solved[0]).matching
    assert found is not None
    assert (found.temperature, found.arms) == (BASE, "causal")
    by_arm = {m.arm: m for m in found.matched}
    assert set(by_arm) == {"G-up", "G-down", "N-up-m", "F-down-m"}

    def contribution(forks_t: float, others_t: float) -> float:
        return 0.2 * 2 * forks_t + 0.8 * 0.5 * others_t**2

    base = contribution(BASE, BASE)
    targets = {
        "F-up": contribution(1.0, BASE) - base,
        "F-down": contribution(0.2, BASE) - base,
        "N-down": contribution(BASE, 0.2) - base,
    }
    for name, m in by_arm.items():
        t = m.temperature
        forks_t, others_t = {"G": (t, t), "N": (BASE, t), "F": (t, BASE)}[name[0]]
        assert m.target_nats == pytest.approx(targets[m.matched], abs=1e-4)
        assert contribution(forks_t, others_t) - base == pytest.approx(m.target_nats, abs=1e-3)
        assert m.dose_nats == pytest.approx(m.target_nats, abs=1e-3)


def test_every_look_is_at_the_same_text(solved: Any) -> None:
    """Same seeds, base temperatures throughout: only where the entropy is measured changes."""
    looks: dict[float, set[tuple[int, str]]] = {}
    for body in solved[1]:
        probe = body["steering"].get("probe_temperature")
        if isinstance(probe, float):
            assert {body["temperature"], body["steering"]["fork_temperature"]} == {BASE}
            looks.setdefault(probe, set()).add((body["seed"], json.dumps(body["messages"])))
    assert len(looks) >= 8
    assert len({frozenset(asked) for asked in looks.values()}) == 1


def test_a_run_takes_the_solved_temperatures(solved: Any) -> None:
    calibration = load_calibration(solved[0])
    assert calibration.matching is not None
    threshold = session.Threshold.of(calibration, "here")
    arms = resolve(
        load_arm_set("causal"),
        temperature=BASE,
        threshold_nats=threshold.nats,
        fork_rate=threshold.fork_rate,
        solved=threshold.solved,
    )
    for m in calibration.matching.matched:
        steering = arms.arm(m.arm).steering
        assert steering is not None
        assert m.temperature in steering.values()


def test_a_run_at_another_base_temperature_is_refused(solved: Any, tmp_path: Path) -> None:
    problems = tmp_path / "other.jsonl"
    problems.write_text(json.dumps({"id": "x", "problem": list(PROBLEMS)[5], "answer": "48"}) + "\n")
    words: dict[str, Any] = {"limit": None, "prompt": None, "thinking": None, "samples": 1, "seed": 0}
    words |= {"max_tokens": 8, "force": False}
    with pytest.raises(CalibrationError, match=r"solved at base temperature 0.6, the run has 1 .*--temperature 1"):
        session.read_request(str(problems), "causal", temperature=1.0, threshold=str(solved[0]), **words)
    request = session.read_request(str(problems), "causal", temperature=BASE, threshold=str(solved[0]), **words)
    assert request.temperature == BASE


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--arms", "quick"], '"quick" has no temperature to solve'),
        (["--arms", "nosuch"], "neither a built-in set"),
        (["--arms", "causal", "--temperature", "-1"], "-1"),
    ],
)
def test_wrong_usage_is_one_line(extra: list[str], words: str, tmp_path: Path) -> None:
    out, app = tmp_path / "c.json", typer.Typer()
    app.command()(calibrate)
    asked = ["--endpoint", "http://127.0.0.1:1", "--problems", "embedded-calibration", "--out", str(out)]
    result = CliRunner().invoke(app, [*asked, *extra])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not out.exists()
