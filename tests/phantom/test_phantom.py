"""The phantom: its truth against independent arithmetic, its folder, and that a defect is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steerdec.benchmarks.design.arm_sets import load_arm_set
from steerdec.phantom import analyses, arms, compare, scores
from steerdec.phantom.chain import END, Chain, ChainError, Option
from steerdec.phantom.folder import PhantomError, kind_named, truth_as_json, truth_of, write_phantom
from steerdec.phantom.kinds import KINDS, RULES
from steerdec.phantom.responses import Reader, ResponseError, tokens_of
from steerdec.phantom.steered import Steered
from steerdec.phantom.truth import FORKS, TOKENS, Truth
from tests.support.phantom_runs import draw_run


def at(p: float, t: float) -> float:
    """Probability of the first of two tokens with probabilities (p, 1 - p), at temperature t."""
    return 1.0 / (1.0 + ((1.0 - p) / p) ** (1.0 / t))


def two_forks(p: float, q: float) -> Truth:
    """Two tokens that have to go right, a fork and one below a threshold of 0.5 nats."""
    states = {
        "start": (Option(" a", p, "second"), Option(" b", 1.0 - p, "lost")),
        "second": (Option(" c", q, "right"), Option(" d", 1.0 - q, "lost")),
        "right": (Option(" \\boxed{7}", 1.0, "end"),),
        "lost": (Option(" \\boxed{0}", 1.0, "end"),),
        "end": (Option(END, 1.0, None),),
    }
    return Truth(Steered(Chain(states, {" go": "start"})), {" go": "7"})


@pytest.mark.parametrize(
    ("request_", "fork_t", "other_t"),
    [
        (None, 1.0, 1.0),
        ({"fork_temperature": 1.667}, 1.667, 1.0),
        ({"other_temperature": 0.333}, 1.0, 0.333),
        ({"select": "all", "fork_temperature": 2.0}, 2.0, 2.0),
        ({"select": "first", "first_tokens": 1, "fork_temperature": 3.0}, 3.0, 1.0),
    ],
)
def test_scores_are_the_closed_form_of_two_way_forks(
    request_: dict[str, Any] | None, fork_t: float, other_t: float
) -> None:
    truth = two_forks(0.4, 0.9).arm(request_, 0.5)
    assert truth.right[0] == pytest.approx(at(0.4, fork_t) * at(0.9, other_t), rel=1e-12)
    p = at(0.4, fork_t)
    assert truth.mean[0, TOKENS] == pytest.approx(3.0 + p, rel=1e-12)  # a token more where the first went right
    assert truth.covariance[0, TOKENS, TOKENS] == pytest.approx(p * (1.0 - p), rel=1e-9)


def test_the_placebo_mixes_steered_and_unsteered_tokens() -> None:
    truth = two_forks(0.4, 0.9).arm({"select": "random", "fork_rate": 0.25, "fork_temperature": 5.0}, 0.5)
    mixed = [0.25 * at(p, 5.0) + 0.75 * p for p in (0.4, 0.9)]
    assert truth.right[0] == pytest.approx(mixed[0] * mixed[1], rel=1e-6)
    assert truth.rate(FORKS) == pytest.approx(0.25, rel=1e-6)


def test_the_dose_is_the_mean_change_of_entropy_on_text_at_the_base_temperature() -> None:
    def h(p: float) -> float:
        return -p * np.log(p) - (1.0 - p) * np.log(1.0 - p)

    known = two_forks(0.4, 0.9)
    dose = known.dose_nats({"fork_temperature": 0.5}, 0.5)
    assert dose == pytest.approx((h(at(0.4, 0.5)) - h(0.4)) / 3.4, rel=1e-9)


def test_greedy_takes_the_likeliest_token() -> None:
    assert two_forks(0.4, 0.9).arm({"fork_temperature": 0.0}, 0.5).right[0] == 0.0
    assert two_forks(0.6, 0.9).arm({"fork_temperature": 0.0}, 0.5).right[0] == pytest.approx(0.9)


@pytest.fixture(scope="module", params=list(KINDS))
def kind_and_truth(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    kind = KINDS[request.param]
    return kind, truth_as_json(kind, truth_of(kind))


def test_each_kind_is_what_it_is_said_to_be(kind_and_truth: tuple[Any, dict[str, Any]]) -> None:
    kind, known = kind_and_truth
    assert tuple(claim["verdict"] for claim in known["claims"].values()) == kind.claims
    for claim in known["claims"].values():  # nothing near the border of a verdict
        difference = abs(claim["difference"])
        assert difference < arms.DELTA / 10 or difference > 1.4 * arms.DELTA
    assert known["fork_rate"] == pytest.approx(0.2, abs=1e-12)
    low, high = known["quantiles_nats"]["p80"]
    assert low < known["threshold_nats"] < high < low + 0.05
    assert known["share_below_0_01"] > 0.5
    doses = {name: arm["dose_nats"] for name, arm in known["arms"].items()}
    for arm, (_, other, _, _) in arms.MATCHED_ARMS.items():
        assert doses[arm] == pytest.approx(doses[other], abs=1e-8)


def test_one_token_in_five_is_a_fork_whatever_is_steered(kind_and_truth: tuple[Any, dict[str, Any]]) -> None:
    for name, arm in kind_and_truth[1]["arms"].items():
        steering = arm["steering"] or {}
        if "select" not in steering and "scope" not in steering and steering.get("policy") not in ("dynatemp", "edt"):
            assert arm["fork_rate"] == pytest.approx(0.0 if name in ("B", "B-other") else 0.2, abs=1e-9)


def test_the_arms_of_causal_are_among_a_phantoms() -> None:
    known = truth_of(KINDS["null"])
    own = {name: asked for name, (_, asked) in arms.FIXED_ARMS.items()} | {name: {} for name in arms.MATCHED_ARMS}
    for arm in load_arm_set("causal").arms:
        if arm.name == "B-again":
            continue
        assert arm.name in own
        asked = dict(arm.steering or {})
        numbers = {"base": 1.0, "x1.667": arms.UP, "x0.333": arms.DOWN, "calibrated": arms.FORK_RATE}
        resolved = {field: numbers.get(str(value), value) for field, value in asked.items()}
        if "solve" not in asked.values():
            assert resolved == (own[arm.name] or {})
        else:
            role, matched, part, rest = arms.MATCHED_ARMS[arm.name]
            assert (arm.role, arm.matched, resolved) == (role, matched, rest | {part: "solve"})
    assert known.threshold_nats == pytest.approx(0.596)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "thinking"
    write_phantom(KINDS["thinking"], folder)
    return folder


def test_the_models_logits_are_the_chains_logarithms(phantom: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chain = truth_of(KINDS["thinking"]).steered.chain
    tokenizer, model = AutoTokenizer.from_pretrained(phantom), AutoModelForCausalLM.from_pretrained(phantom)
    ids = {text: tokenizer(text, add_special_tokens=False).input_ids for text in chain.tokens}
    assert all(len(found) == 1 for found in ids.values())
    columns = [ids[text][0] for text in chain.tokens]
    states, exact = list(chain.states), chain.log_probabilities()
    for text, state in chain.state_after().items():
        with torch.no_grad():
            logits = model(torch.tensor([[3, 5, *ids[text]]])).logits[0, -1].double()
        if state is None:
            assert int(logits.argmax()) == tokenizer.eos_token_id
            continue
        np.testing.assert_allclose(logits[columns].numpy(), exact[states.index(state)], rtol=3e-7, atol=1e-6)
        others = np.setdiff1d(np.arange(len(logits)), columns)
        assert logits[others].max() < -900


def test_a_prompt_ends_with_its_rule_and_a_text_tells_its_tokens(phantom: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(phantom)
    message = "Question 13: follow rule3\n\nGive your final answer in \\boxed{}."
    ids = tokenizer.apply_chat_template([{"role": "user", "content": message}], tokenize=True)["input_ids"]
    assert tokenizer.decode(ids) == "<think>Question 13: follow rule3"
    assert tokenizer.decode(ids[-1:]) == " rule3"
    text = " r3-0a r3-1b r3-2a r3-3a.</think> say-0a say-1a say-2a. \\boxed{7}"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert [tokenizer.decode([i]) for i in ids] == tokens_of(text, False)
    assert tokenizer.decode(ids) == text


def test_problems_of_both_files_are_different_ones(phantom: Path) -> None:
    files = [[json.loads(line) for line in (phantom / f"{name}.jsonl").open()] for name in ("problems", "calibration")]
    texts = [problem["problem"] for rows in files for problem in rows]
    assert len(set(texts)) == len(texts) == 240
    assert [row["answer"] for row in files[0][:RULES]] == [KINDS["thinking"].answer(rule) for rule in range(RULES)]


@pytest.mark.parametrize(
    ("kind", "fork_right", "words"),
    [
        ("true", None, "--kind: 'true' is not a kind of phantom; the kinds are claim-true, reversed"),
        ("null", 1.0, "--fork-right: 1 is not a probability between 0 and 1"),
        ("null", float("nan"), "--fork-right: nan is not a probability"),
        ("claim-true", 0.99, "--fork-right: 0.99 is too near to 0 or 1"),
    ],
)
def test_bad_input_is_told_in_one_line(kind: str, fork_right: float | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(PhantomError) as e:
        write_phantom(kind_named(kind), tmp_path / "new", fork_right)
    assert str(e.value).startswith(words)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "steerdec", "model", "phantom", "--kind", "null", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"steerdec: --out: {tmp_path} exists; a phantom is written into a new folder\n"
    assert not list(tmp_path.iterdir())


def test_a_chain_that_is_none_is_refused() -> None:
    with pytest.raises(ChainError, match="do not add up to 1"):
        Chain({"a": (Option(" x", 0.5, None),)}, {})
    with pytest.raises(ChainError, match="leads to a different state than elsewhere"):
        Chain({"a": (Option(" x", 1.0, "b"),), "b": (Option(" x", 1.0, None),)}, {})
    with pytest.raises(PhantomError):
        truth_of(KINDS["reversed"], 0.0)


# What the check makes of right and of wrong runs ------------------------------------------------

CHECKED = ("B", "A/A", "F-up", "F-down", "N-up", "P-up", "first")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, dict[str, Any], list[dict[str, Any]]]:
    """A run whose responses are draws from the exact distributions."""
    kind = KINDS["claim-true"]
    known, out = truth_of(kind), tmp_path_factory.mktemp("drawn") / "run"
    draw_run(out, kind, known, samples=4, seed=1, only=CHECKED, limit=60)
    return (
        known,
        json.loads((out / "run.json").read_text()),
        [json.loads(line) for line in (out / "samples.jsonl").open()],
    )


def failing(known: Truth, run: Mapping[str, Any], samples: list[dict[str, Any]]) -> list[str]:
    rows = compare.run_rows("claim-true", compare.read_arms(known, run, samples))
    assert len(rows) == 10
    return [row.number for row in rows if not row.passed]


def test_exact_draws_pass(drawn: tuple[Truth, dict[str, Any], list[dict[str, Any]]]) -> None:
    known, run, samples = drawn
    assert failing(known, run, samples) == []
    cells = [scores.independent_z(compare.read_arms(known, run, samples))]
    assert scores.chi_square_row(cells).passed
    assert not scores.chi_square_row([(3.0 * cells[0][0], cells[0][1])]).passed
    assert not scores.chi_square_row([(0.1 * cells[0][0], cells[0][1])]).passed


def relabeled(samples: list[dict[str, Any]], names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        yield sample | {"arm": names.get(sample["arm"], sample["arm"])}


def test_texts_of_another_temperature_are_noticed(drawn: tuple[Truth, dict[str, Any], list[dict[str, Any]]]) -> None:
    """As if the factor were inverted: F-up's texts are F-down's, and all that is told of them is of those texts."""
    known, run, samples = drawn
    swapped = list(relabeled(samples, {"F-up": "F-down", "F-down": "F-up"}))
    wrong = failing(known, run, swapped)
    assert any(number.startswith("avg@k, worst") for number in wrong)
    assert any(number.startswith("draws by state, worst: F-") for number in wrong)
    assert any(number.startswith("mean sampled entropy") for number in wrong)


def test_a_surplus_of_a_rare_token_is_noticed(drawn: tuple[Truth, dict[str, Any], list[dict[str, Any]]]) -> None:
    """Few draws, of states with one common token: chi-square alone has nothing to compare there."""
    known, run, samples = drawn
    few = [sample for sample in samples if sample["arm"] in ("B", "F-down")][:20]
    few += list(relabeled([s for s in samples if s["arm"] == "F-up"][:20], {"F-up": "F-down"}))
    (arm,) = (arm for arm in compare.read_arms(known, run, few) if arm.name == "F-down")
    draws = compare.draws_of_tokens(arm)
    assert draws.rare > 5 * draws.rare_expected
    assert not compare.tokens_row("claim-true", [arm]).passed


def test_telemetry_of_the_next_token_is_noticed(drawn: tuple[Truth, dict[str, Any], list[dict[str, Any]]]) -> None:
    known, run, samples = drawn
    shifted = [
        s | {"entropy_nats": [*s["entropy_nats"][1:], s["entropy_nats"][0]]} if "entropy_nats" in s else s
        for s in samples
    ]
    (wrong,) = failing(known, run, shifted)
    assert wrong.startswith("entropy per token")


def test_another_threshold_than_was_asked_for_is_noticed(
    drawn: tuple[Truth, dict[str, Any], list[dict[str, Any]]],
) -> None:
    known, run, samples = drawn
    for wrong_nats in (known.threshold_nats - 0.05, known.threshold_nats + 0.05):
        off = [
            s
            | {
                "fork": [h > wrong_nats for h in s["entropy_nats"]],
                "forks": sum(h > wrong_nats for h in s["entropy_nats"]),
            }
            if "entropy_nats" in s and s["arm"] == "F-up"
            else s
            for s in samples
        ]
        wrong = failing(known, run, off)
        assert any(number.startswith("forks per token") for number in wrong)
        assert any(number.startswith("forks per response") for number in wrong)


def test_a_text_that_the_chain_cannot_write_is_an_error(
    drawn: tuple[Truth, dict[str, Any], list[dict[str, Any]]],
) -> None:
    known, run, samples = drawn
    with pytest.raises(ResponseError, match="cannot come after"):
        compare.read_arms(known, run, [samples[0] | {"text": " r0-1a"}])
    with pytest.raises(ResponseError, match="token 2"):
        Reader(known.steered).expected(" rule0", " r0-0a r0-2a", False, None, 0)


def test_a_calibration_is_compared_with_the_gap_and_the_exact_temperatures() -> None:
    known = truth_of(KINDS["dose-only"])
    low, high = known.quantile_nats(0.8)
    matched = [{"arm": arm, "temperature": 1.009 * arms.solve(known, arm)} for arm in arms.MATCHED_ARMS]
    right = {
        "quantiles_nats": {"p80": low + 0.2 * (high - low)},
        "p80_ci95": [low, high],
        "fork_rate": 0.2,
        "matching": {"matched": matched},
    }
    assert all(row.passed for row in analyses.calibration_rows("dose-only", known, right))
    wrong = right | {
        "quantiles_nats": {"p80": high + 0.05},
        "p80_ci95": [high + 0.04, high + 0.06],
        "fork_rate": 0.19,
        "matching": {"matched": [m | {"temperature": 1.03 * m["temperature"]} for m in matched[:-1]]},
    }
    assert not any(row.passed for row in analyses.calibration_rows("dose-only", known, wrong))
