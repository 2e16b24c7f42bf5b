"""Arm sets: what is declared is what is asked of the server, and nothing wrong gets that far."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from steerdec.benchmarks.design.arm_sets import BUILT_IN, load_arm_set, with_engine_floor
from steerdec.benchmarks.design.resolving import resolve
from steerdec.cli.arms import arms_app
from steerdec.policies import registry
from steerdec.records.arms import ArmError, ArmSet, parse_arm_set

SOLVED = {"G-up": 1.4, "G-down": 0.7, "N-up-m": 1.9, "F-down-m": 0.8}


def numbers(name: str, temperature: float = 1.0) -> ArmSet:
    return resolve(load_arm_set(name), temperature=temperature, threshold_nats=0.6, fork_rate=0.2, solved=SOLVED)


def minimal(**changes: Any) -> dict[str, Any]:
    return {
        "name": "mine",
        "baseline": "B",
        "arms": [
            {"name": "B", "role": "baseline"},
            {"name": "F", "role": "treatment", "steering": {"fork_temperature": "x2"}},
        ],
    } | changes


def with_arm(**arm: Any) -> dict[str, Any]:
    return minimal(arms=[{"name": "B", "role": "baseline"}, {"name": "X", "role": "treatment"} | arm])


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_set_asks_only_for_valid_steering(name: str) -> None:
    for arm in numbers(name).arms:
        if arm.steering is not None:
            registry.parse(arm.steering)
            assert arm.steering["threshold_nats"] == 0.6


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_baseline_is_a_plain_request_and_identity_changes_no_temperature(name: str) -> None:
    arms = numbers(name, temperature=0.7 if name != "figure3" else 1.0)
    base = arms.temperature
    assert arms.arm(arms.baseline).steering is None
    assert arms.arm(arms.baseline).temperature == base
    identity = next(arm for arm in arms.arms if arm.role == "identity")
    assert identity.steering is not None
    assert {identity.steering["fork_temperature"], identity.steering["other_temperature"], identity.temperature} == {
        base
    }


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_resolved_set_survives_json_and_resolves_to_itself(name: str) -> None:
    arms = numbers(name)
    again = parse_arm_set(json.loads(json.dumps(arms.model_dump(mode="json"))))
    assert again == arms
    assert resolve(again, temperature=1.0, threshold_nats=0.6) == arms


def test_quick_has_the_doses_its_claims_speak_of() -> None:
    arms = resolve(load_arm_set("quick"), temperature=0.6, threshold_nats=0.6)
    told = {
        a.name: (a.steering or {}).get("fork_temperature", (a.steering or {}).get("other_temperature"))
        for a in arms.arms
    }
    assert told == {"B": None, "A/A": 0.6, "F-up": 1.0, "F-down": 0.2, "N-up": 1.0, "N-down": 0.2}
    assert [(c.id, c.arm, c.direction, c.baseline) for c in arms.claims] == [
        ("lowering-forks-hurts", "F-down", "lower", "B"),
        ("raising-forks-helps", "F-up", "higher", "B"),
        ("forks-beat-others", "F-up", "higher", "N-up"),
        ("others-are-harmless-to-lower", "F-down", "lower", "N-down"),
    ]


def test_figure3_covers_the_paper_axis_on_both_curves() -> None:
    told: dict[str, set[float]] = {"fork_temperature": {1.0}, "other_temperature": {1.0}}
    for arm in numbers("figure3").arms:
        if arm.role == "treatment":
            assert arm.steering is not None
            (field,) = set(arm.steering) & set(told)
            told[field].add(arm.steering[field])
    assert told["fork_temperature"] == told["other_temperature"] == {0, 0.05, 0.3, 0.6, 1, 2, 3, 5}


def test_placebos_take_the_calibrated_rate_and_the_doses_of_what_they_stand_for() -> None:
    arms = numbers("causal")
    for direction in ("up", "down"):
        placebo, real = arms.arm(f"P-{direction}").steering, arms.arm(f"F-{direction}").steering
        assert placebo is not None
        assert real is not None
        assert placebo["fork_temperature"] == real["fork_temperature"]
        assert (placebo["select"], placebo["fork_rate"]) == ("random", 0.2)


@pytest.mark.parametrize(
    ("known", "hint"),
    [({"fork_rate": None, "solved": SOLVED}, "calibrated"), ({"fork_rate": 0.2, "solved": {}}, "is to be solved")],
)
def test_what_only_a_calibration_knows_is_refused_without_one(known: dict[str, Any], hint: str) -> None:
    with pytest.raises(ArmError, match=hint) as e:
        resolve(load_arm_set("causal"), temperature=1.0, threshold_nats=0.6, **known)
    assert "steerdec calibrate" in str(e.value)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (minimal(colour="red"), ["colour"]),
        (with_arm(stering={}), ['arm "X"', "stering"]),
        (with_arm(role="treatmnt"), ['arm "X"', "role", "treatmnt"]),
        (with_arm(name="B"), ['"B"', "2 times"]),
        (with_arm(role="baseline"), ["baseline"]),
        (minimal(baseline="F"), ["baseline", '"F"']),
        (with_arm(name=""), ["name"]),
        (with_arm(name="a\nb"), ["name"]),
        (with_arm(role="matched", steering={"fork_temperature": "solve"}), ['arm "X"', "matched"]),
        (with_arm(role="matched", matched="Y", steering={}), ['arm "X"', '"Y"']),
        (with_arm(role="replica", steering={}), ['arm "X"', "no steering"]),
        (
            minimal(claims=[{"id": "c", "statement": "", "arm": "F", "baseline": "Z", "direction": "higher"}]),
            ['"Z"', "B, F"],
        ),
        (minimal(claims=[{"id": "c", "statement": "", "arm": "F", "baseline": "B", "direction": "up"}]), ["direction"]),
        (minimal(arms=[]), ["arms"]),
        ([], ["arm set"]),
        (None, ["arm set"]),
        ({"arms": [None]}, ["name"]),
    ],
)
def test_a_wrong_set_is_refused_in_one_line_that_names_the_place(value: Any, names: list[str]) -> None:
    with pytest.raises(ArmError) as e:
        parse_arm_set(value)
    assert "\n" not in str(e.value)
    for name in names:
        assert name in str(e.value)


@pytest.mark.parametrize(
    ("steering", "names"),
    [
        ({"fork_temperature": 0.005}, ["fork_temperature", "0.005", "0.01"]),
        ({"fork_temperature": "x0.001"}, ["fork_temperature", "x0.001"]),
        ({"fork_temperature": "hot"}, ["fork_temperature", "hot"]),
        ({"fork_temperature": True}, ["fork_temperature", "true"]),
        ({"fork_temperature": -1}, ["fork_temperature", "-1"]),
        ({"fork_temperature": "x1e3"}, ["x1e3"]),
        ({"forktemperature": 1}, ["forktemperature"]),
        ({"policy": "magic"}, ["policy", "magic"]),
        ({"select": "random"}, ["fork_rate"]),
    ],
)
def test_steering_that_the_server_would_refuse_never_leaves(steering: dict[str, Any], names: list[str]) -> None:
    arms = parse_arm_set(with_arm(steering=steering))
    with pytest.raises(ArmError) as e:
        resolve(arms, temperature=1.0, threshold_nats=0.6)
    for name in ('arm "X"', *names):
        assert name in str(e.value)


PLAIN_WORDS = [
    (minimal(claim=[]), 'field "claim" is not known; did you mean claims?'),
    (minimal(zzz=1), 'field "zzz" is not known; allowed are name, about,'),
    (minimal(temperature="1,667"), 'temperature: "1,667" is not a number; write a decimal point, as in 1.667'),
    (minimal(temperature="warm"), 'temperature: "warm" is not a number'),
    (minimal(delta="-1e9"), 'delta: "-1e9" must be greater than 0'),
    (minimal(delta=2), "delta: 2 must be less than 1"),
    (minimal(threshold_nats=-0.5), "threshold_nats: -0.5 must be 0 or more"),
    (with_arm(name="F up"), 'arm "F up" name: "F up" is not a name; allowed are up to 40 letters, digits and _@/+.:=-'),
    (with_arm(name="F" * 41), "is not a name; allowed are up to 40 letters"),
    (with_arm(name=""), "is not a name; allowed are up to 40 letters"),
    (with_arm(role="treatmant"), 'arm "X" role: "treatmant" is not allowed; did you mean treatment? allowed are '),
    (with_arm(stering={}), 'arm "X": field "stering" is not known; did you mean steering?'),
    (with_arm(steering="up"), 'arm "X" steering: "up" is not an object of fields'),
    (minimal(arms=[]), "arms: there must be at least 1"),
    (minimal(arms=None), "arms: null is not a list"),
    (minimal(name=None), "name: null is not a text"),
    (minimal(claims=[{"id": "c", "arm": "F", "baseline": "B", "direction": "up"}]), "claims 1 statement is missing"),
    (
        minimal(claims=[{"id": "c", "statement": "s", "arm": "F", "baseline": "B", "direction": "up"}]),
        'claims 1 direction: "up" is not allowed; allowed are higher, lower',
    ),
]


@pytest.mark.parametrize(("value", "says"), PLAIN_WORDS, ids=[says[:40] for _, says in PLAIN_WORDS])
def test_what_is_wrong_is_said_in_plain_words(value: Any, says: str) -> None:
    with pytest.raises(ArmError) as e:
        parse_arm_set(value)
    assert says in str(e.value)
    assert not any(word in str(e.value) for word in ("Input", "input", "String", "string", "None", "{'", "\n"))


def test_a_built_in_set_is_shown_to_be_edited(tmp_path: Path) -> None:
    shown = CliRunner().invoke(arms_app, ["show", "causal"])
    assert shown.exit_code == 0
    (tmp_path / "mine.yaml").write_text(shown.stdout)
    assert load_arm_set(str(tmp_path / "mine.yaml")) == load_arm_set("causal")
    wrong = CliRunner().invoke(arms_app, ["show", "casual"])
    assert wrong.exit_code == 2
    assert wrong.stderr == 'steerdec: "casual" is not a built-in arm set; there are quick, figure3, causal, branching\n'
    listed = CliRunner().invoke(arms_app, ["list"])
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["quick", "figure3", "causal", "branching"]


def test_an_identity_arm_that_would_change_something_is_refused() -> None:
    arms = parse_arm_set(with_arm(role="identity", steering={"fork_temperature": "x1.1", "other_temperature": "base"}))
    with pytest.raises(ArmError, match="identity"):
        resolve(arms, temperature=1.0, threshold_nats=0.6)


def test_a_baseline_at_another_temperature_is_refused() -> None:
    arms = parse_arm_set(minimal(arms=[{"name": "B", "role": "baseline", "temperature": 0.7}]))
    with pytest.raises(ArmError, match="base temperature"):
        resolve(arms, temperature=1.0, threshold_nats=0.6)


def test_a_file_may_be_yaml_or_json_and_its_errors_name_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(minimal()))
    (tmp_path / "a.json").write_text(json.dumps(minimal()))
    assert load_arm_set(str(tmp_path / "a.yaml")) == load_arm_set(str(tmp_path / "a.json"))
    bad = tmp_path / "bad.yaml"
    for content in (b"a: [", b"\xff\xfe", b"- 1", b"\0"):
        bad.write_bytes(content)
        with pytest.raises(ArmError, match=r"bad\.yaml") as e:
            load_arm_set(str(bad))
        assert "\n" not in str(e.value)
    with pytest.raises(ArmError, match="quick, figure3, causal"):
        load_arm_set("quik")
    with pytest.raises(ArmError, match="cannot be read"):
        load_arm_set(str(tmp_path))


def test_an_engine_that_is_not_batch_invariant_runs_the_baseline_twice() -> None:
    quick = load_arm_set("quick")
    assert with_engine_floor(quick, batch_invariant=True) == quick
    twice = with_engine_floor(quick, batch_invariant=False)
    again = twice.arm("B-again")
    assert (again.role, again.steering, len(twice.arms)) == ("replicate", None, len(quick.arms) + 1)
    assert with_engine_floor(twice, batch_invariant=False) == twice
    causal = load_arm_set("causal")
    assert with_engine_floor(causal, batch_invariant=False) == causal, "it has such an arm already"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("threshold_nats: .inf", "threshold_nats: "),
        ("claims: [{id: c, statement: s, arm: B, baseline: B, direction: higher}]", '"B" is compared with itself'),
        ("comparisons: [{arm: B, baseline: B}]", '"B" is compared with itself'),
        ("baseline: C", 'line 5: field "baseline" is there already'),
        ("about: " + "x" * 2**20, "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_says_what_it_cannot_mean_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "arms.yaml"
    file.write_text(f"name: mine\nbaseline: B\narms:\n- {{name: B, role: baseline}}\n{text}\n")
    with pytest.raises(ArmError, match=re.escape(says)):
        load_arm_set(str(file))


def test_what_is_no_file_is_refused() -> None:
    with pytest.raises(ArmError, match=r"^/dev/zero cannot be read \(it is larger than 1048576 bytes\)$"):
        load_arm_set("/dev/zero")
    with pytest.raises(ArmError, match=r'^--arms: "" is neither a built-in set'):
        load_arm_set("")


def test_a_name_that_yaml_takes_for_something_else_is_counted() -> None:
    with pytest.raises(ArmError, match=r'^arm "1" name: true is not a text$'):
        parse_arm_set({"name": "x", "baseline": "B", "arms": [{"name": True, "role": "baseline"}]})
