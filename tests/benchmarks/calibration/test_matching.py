"""Matched arms: the solved temperature gives the other arm's change of entropy, whatever the curves."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from steerdec.benchmarks.calibration import matching
from steerdec.benchmarks.calibration import session as calibrate_session
from steerdec.benchmarks.calibration.match_arms import MAX_TIMES_TOKENS
from steerdec.benchmarks.calibration.matching import Contribution, Means
from steerdec.benchmarks.design.arm_sets import load_arm_set
from steerdec.benchmarks.design.resolving import resolve
from steerdec.benchmarks.run import session
from steerdec.benchmarks.run.targets import Target
from steerdec.cli.calibrate import calibrate
from steerdec.common import bootstrap
from steerdec.records.arms import Arm, ArmError, ArmSet
from steerdec.records.calibration import CalibrationError, Threshold, load_calibration
from tests.support.scripted_endpoint import Script, ScriptedEndpoint

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
    role: Any = "matched" if matched else "treatment"
    return Arm(name=name, role=role, temperature=BASE, matched=matched, steering=steering)


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
    assert means().dose_nats(Arm(name="B", role="baseline", temperature=BASE)) == 0.0


def test_what_an_arm_does_not_steer_is_at_its_own_temperature() -> None:
    everywhere = forks_nats(0.9) + others_nats(0.9) - forks_nats(BASE) - others_nats(BASE)
    plain = Arm(name="T-up", role="global", temperature=0.9)
    fine = means((*LOOKS, 0.9))
    assert fine.dose_nats(plain) == pytest.approx(everywhere)
    assert fine.dose_nats(plain.model_copy(update={"steering": {"select": "all"}})) == pytest.approx(everywhere)
    forks_back = plain.model_copy(update={"steering": {"fork_temperature": BASE}})
    assert fine.dose_nats(forks_back) == pytest.approx(others_nats(0.9) - others_nats(BASE))
    assert matching.solve(fine, arm("G", "T-up", select="all", fork_temperature="solve"), plain) == pytest.approx(0.9)


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
            [arm("F", fork_temperature=1.0, hysteresis=0.2), arm("N", "F", other_temperature="solve")],
            '"F": its dose cannot be matched',
        ),
        (
            [arm("F", fork_temperature=1.0), arm("N", "F", other_temperature="solve", guard_mean_entropy_nats=2.0)],
            '"N": its dose cannot be matched',
        ),
        (
            [arm("F", "B", fork_temperature="solve"), arm("N", "F", other_temperature="solve")],
            '"F" has a temperature to solve itself',
        ),
        ([arm("N", "B", fork_temperature="solve", other_temperature="solve")], "exactly one of"),
        ([arm("N", None, fork_temperature="solve")], "needs the field matched"),
        (
            [arm("F", fork_temperature=1.0, threshold_nats=0.3), arm("N", "F", other_temperature="solve")],
            'arm "F": threshold_nats: 0.3 is its own',
        ),
        (
            [arm("N", "B", other_temperature="solve", threshold_nats=0.3)],
            'arm "N": threshold_nats: 0.3 is its own',
        ),
        ([Arm(name="G", role="global", temperature="solve", matched="B")], "exactly one of"),
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
        draws = bootstrap.weights(n, np.random.default_rng(1), 200)
        low, high = matching.interval((Means(BASE, weighted(measured, w)) for w in draws), matched, up)
        assert low < matching.solve(Means(BASE, measured), matched, up) < high
        return low, high

    (low, high), (low_many, high_many) = interval(10), interval(300)
    assert high_many - low_many < 0.5 * (high - low)


def weighted(measured: dict[float, Contribution], w: Any) -> dict[float, Contribution]:
    return {t: Contribution(w * c.forks_nats, w * c.others_nats, w * c.tokens) for t, c in measured.items()}


# Through HTTP ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(calibration file, bodies sent): the built-in causal set solved against curves known in closed form.

    Every fifth of ten tokens is a fork; forks have 2 t nats at temperature t, the others 0.5 t^2.
    """
    return solve_set(tmp_path_factory.mktemp("matching"), "causal", lambda fork, t: 2 * t if fork else 0.5 * t**2)


def solve_set(folder: Path, arms: str, entropy_at: Callable[[bool, float], float]) -> tuple[Path, list[Any]]:
    lines = [{"id": f"p{i}", "problem": text, "answer": PROBLEMS[text]} for i, text in enumerate(list(PROBLEMS)[:3])]
    (folder / "problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    script = Script(PROBLEMS, tokens=10, entropy_at=entropy_at)
    with ScriptedEndpoint(script) as server:
        calibrate_session.run(
            str(folder / "problems.jsonl"),
            Target(endpoints=(server.url,), model=None, dtype=None, concurrency=4, timeout_s=60.0, api_key=None),
            folder / "c.json",
            arms=arms,
            temperature=BASE,
            tokens=900,
            limit=None,
            seed=0,
            max_tokens=32,
            prompt=None,
            thinking=None,
        )
        return folder / "c.json", server.bodies


def test_an_arm_out_of_reach_does_not_lose_the_others(tmp_path: Path) -> None:
    """Forks whose entropy stays at any temperature cannot lose as much as the others do."""
    problems = tmp_path / "p.jsonl"
    problems.write_text(json.dumps({"id": "x", "problem": next(iter(PROBLEMS)), "answer": "8"}) + "\n")
    script = Script(PROBLEMS, tokens=10, entropy_at=lambda fork, t: 0.6 + 1e-4 * t if fork else 0.5 * t**2)
    app = typer.Typer()
    app.command()(calibrate)
    with ScriptedEndpoint(script) as server:
        asked = ["--endpoint", server.url, "--problems", str(problems), "--arms", "causal", "--temperature", "0.6"]
        asked += ["--tokens", "300", "--max-tokens", "16", "--out", str(tmp_path / "c.json")]
        result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1
    assert 'arm "F-down-m": no temperature' in result.stderr
    found = load_calibration(tmp_path / "c.json").matching
    assert found is not None
    assert {m.arm for m in found.matched} == {"G-up", "G-down", "N-up-m"}
    assert set(found.unmatched) == {"F-down-m"}

    # A run of this set names the reason; "calibrate again" would send the user in a circle.
    problems.write_text(json.dumps({"id": "y", "problem": list(PROBLEMS)[5], "answer": "48"}) + "\n")
    words: dict[str, Any] = {"limit": None, "prompt": None, "thinking": None, "samples": 1, "seed": 0}
    words |= {"max_tokens": 8, "force": False, "temperature": 0.6, "threshold": str(tmp_path / "c.json")}
    with pytest.raises(CalibrationError) as e:
        session.read_request(str(problems), "causal", **words)
    assert found.unmatched["F-down-m"] in str(e.value)
    assert 'remove arm "F-down-m"' in str(e.value)
    assert "do so with" not in str(e.value)


def test_an_arm_that_does_not_converge_is_not_listed_as_matched(tmp_path: Path) -> None:
    """Above temperature 1 the entropy of the others jumps past the dose of F: no temperature has it."""
    arms = write_set(
        tmp_path, {"name": "F", "role": "treatment", "steering": {"fork_temperature": "x1.5"}}, matched="F"
    )
    path, _ = solve_set(tmp_path, arms, lambda fork, t: 2 * t if fork else 0.3 * t + (1.0 if t > 1.0 else 0.0))
    found = load_calibration(path).matching
    assert found is not None
    assert found.matched == ()
    words = r'arm "N": no temperature was found in 6 rounds; .* misses the dose of "F", \+0.1200 nats, by .*0.001'
    assert re.fullmatch(words, found.unmatched["N"])


def test_the_dose_of_an_arm_with_a_temperature_of_its_own(tmp_path: Path) -> None:
    """Also where the arm to solve has one, for the tokens that it does not solve for."""
    arms = write_set(tmp_path, {"name": "T", "role": "global", "temperature": "x1.5"}, matched="T", temperature="x1.2")
    path, _ = solve_set(tmp_path, arms, lambda fork, t: 2 * t if fork else 0.5 * t**2)
    matched = load_calibration(path).matching
    assert matched is not None
    (m,) = matched.matched
    assert m.target_nats == pytest.approx(0.4 * (0.9 - BASE) + 0.4 * (0.9**2 - BASE**2), abs=1e-6)
    assert m.dose_nats == pytest.approx(0.4 * (0.72 - BASE) + 0.4 * (m.temperature**2 - BASE**2), abs=1e-3)
    assert m.dose_nats == pytest.approx(m.target_nats, abs=1e-3)
    assert (m.arm_at, m.matched_at) == ({"forks": 0.72, "others": m.temperature}, {"forks": 0.9, "others": 0.9})


def write_set(folder: Path, other: dict[str, Any], **of_n: Any) -> str:
    """A set of B, `other` and N, whose others' temperature is to be solved."""
    arms = [{"name": "B", "role": "baseline"}, other]
    arms.append({"name": "N", "role": "matched", "steering": {"other_temperature": "solve"}} | of_n)
    (folder / "set.yaml").write_text(json.dumps({"name": "test", "baseline": "B", "arms": arms}))
    return str(folder / "set.yaml")


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


def test_the_file_has_both_doses_of_every_arm(solved: Any) -> None:
    """Closed forms: forks of 2 t nats diverge by (T' - T)^2 / T, and others of t^2 / 2 by T'^3/3T - T'^2/2 + T^2/6."""
    found = load_calibration(solved[0]).matching
    assert found is not None
    assert set(found.doses) == {arm.name for arm in load_arm_set("causal").arms}
    for name, dose in found.doses.items():
        at = {part.tokens: part.temperature for part in dose.parts}
        if name.startswith(("F", "N")):
            forks_t, others_t = at["forks"], at["others"]
            others = 0.8 * (others_t**3 / (3 * BASE) - others_t**2 / 2 + BASE**2 / 6)
            assert dose.kl_nats == pytest.approx(0.2 * (forks_t - BASE) ** 2 / BASE + others, abs=2e-3), name
    assert found.doses["A/A"].kl_nats == found.doses["B"].kl_nats == 0.0
    for m in found.matched:
        dose = found.doses[m.arm]
        assert dose.matched == m.matched
        assert dose.dose_nats == pytest.approx(m.dose_nats, abs=1e-9)
        assert dose.mismatch_nats == pytest.approx(m.dose_nats - m.target_nats, abs=1e-9)
        assert dose.mismatch_se_nats is not None


def test_no_text_is_sampled_twice_and_all_rounds_stay_within_the_announced_tokens(solved: Any) -> None:
    """The temperatures take turns over the samples, at base temperatures throughout."""
    sampled = [body for body in solved[1] if "seed" in body]
    assert len({(body["seed"], json.dumps(body["messages"])) for body in sampled}) == len(sampled)
    assert {body["temperature"] for body in sampled} == {BASE} == {b["steering"]["fork_temperature"] for b in sampled}
    turns = Counter(body["steering"]["probe_temperature"] for body in sampled[:80])
    assert set(turns) == {0.03, 0.15, 0.2, 0.3, 0.6, 0.9, 1.5, 3.0}, "the entropy at 1 is known for all of them"
    assert max(turns.values()) - min(turns.values()) <= 4  # they arrive four at once, not quite in order
    assert sum(10 for _ in sampled) <= MAX_TIMES_TOKENS * 900 + 4 * 10


def test_a_run_takes_the_solved_temperatures(solved: Any) -> None:
    calibration = load_calibration(solved[0])
    assert calibration.matching is not None
    threshold = Threshold.of(calibration, "here")
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
    ("arm", "change", "words"),
    [
        (
            "F-up",
            {"steering": {"fork_temperature": "x3"}},
            '"G-up": .* with "F-up" at 1 .*others.* is at 1.8 .forks., 0.6',
        ),
        ("F-up", {"temperature": "x1.1"}, r'"G-up": .* with "F-up" at 1 \(forks\), 0.6 .* is at 1 \(forks\), 0.66'),
        ("N-up-m", {"matched": "F-down"}, '"N-up-m": .* solved to match "F-up", here it is to match "F-down"'),
        ("N-up-m", {"steering": {"fork_temperature": "solve"}}, 'solved with "N-up-m" at 0.6 .forks.'),
        ("F-up", {"steering": {"fork_temperature": "x1.667", "threshold_nats": 0.1}}, '"F-up": threshold_nats: 0.1'),
    ],
)
def test_a_run_with_other_arms_than_those_solved_for_is_refused(
    solved: Any, tmp_path: Path, arm: str, change: dict[str, Any], words: str
) -> None:
    changed = load_arm_set("causal").model_dump()
    next(a for a in changed["arms"] if a["name"] == arm).update(change)
    (tmp_path / "set.yaml").write_text(json.dumps(changed))
    with pytest.raises((CalibrationError, ArmError), match=words) as e:
        ask(tmp_path, str(tmp_path / "set.yaml"), solved[0])
    assert "\n" not in str(e.value)


def test_a_calibration_that_does_not_say_what_it_solved_for_is_refused_where_that_matters(
    solved: Any, tmp_path: Path
) -> None:
    told = json.loads(solved[0].read_text())
    for m in told["matching"]["matched"]:
        del m["arm_at"], m["matched_at"]
    (tmp_path / "old.json").write_text(json.dumps(told))
    with pytest.raises(CalibrationError, match=r'"G-up": the calibration is from an older version.*; calibrate again'):
        ask(tmp_path, "causal", tmp_path / "old.json")
    ask(tmp_path, "quick", tmp_path / "old.json")


def ask(folder: Path, arms: str, calibration: Path) -> session.RunRequest:
    problems = folder / "other.jsonl"
    problems.write_text(json.dumps({"id": "x", "problem": list(PROBLEMS)[5], "answer": "48"}) + "\n")
    words: dict[str, Any] = {"limit": None, "prompt": None, "thinking": None, "samples": 1, "seed": 0}
    words |= {"max_tokens": 8, "force": False, "temperature": BASE, "threshold": str(calibration)}
    return session.read_request(str(problems), arms, **words)


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
