"""A run folder in, summary.json out: names, numbers, and verdicts on runs whose truth is planted."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import scipy.stats

from steerdec.benchmarks.design.arm_sets import load_arm_set
from steerdec.benchmarks.design.resolving import resolve
from steerdec.benchmarks.verdicts import summary as summaries
from steerdec.benchmarks.verdicts.summary import SummaryError, write_summary
from steerdec.records.summary import read_summary

ARM_SET = {
    "name": "test",
    "baseline": "B",
    "arms": [
        {"name": "B", "role": "baseline", "temperature": 1.0, "steering": None},
        {"name": "A/A", "role": "identity", "temperature": 1.0, "steering": {"fork_temperature": 1.0}},
        {"name": "B2", "role": "replicate", "temperature": 1.0, "steering": None},
        {"name": "F-up", "role": "treatment", "temperature": 1.0, "steering": {"fork_temperature": 2.0}},
        {"name": "F-up2", "role": "treatment", "temperature": 1.0, "steering": {"fork_temperature": 3.0}},
        {"name": "N-up-m", "role": "matched", "temperature": 1.0, "steering": {"other_temperature": 2.0}},
    ],
    "claims": [
        {"id": "helps", "statement": "F-up helps.", "arm": "F-up", "against": "B", "direction": "greater"},
        {"id": "place", "statement": "It is the place.", "arm": "F-up", "against": "N-up-m", "direction": "greater"},
    ],
    "delta": 0.02,
}


def summarize(folder):
    return summaries.summarize(folder).model_dump(mode="json")


SAME_AS_B = ("A/A", "B2")


def sample(problem, arm, index, correct, **more):
    return {
        "problem_id": problem,
        "arm": arm,
        "sample": index,
        "seed": zlib.crc32(f"{problem} {index}".encode()),
        "text": "right" if correct else "wrong",
        "answer": "7" if correct else "8",
        "grade": "correct" if correct else "incorrect",
        "grade_path": "boxed-int",
        "finish_reason": "stop",
        "completion_tokens": 100,
        "forks": None if arm in ("B", "B2") else 20,
        "mean_entropy_nats": None if arm in ("B", "B2") else 0.3,
        "endpoint": "http://127.0.0.1:8000",
        "error": None,
    } | more


def write_run(folder, lines, problems, k, arm_set=ARM_SET):
    folder.mkdir(exist_ok=True)
    run = {"arms": arm_set, "problems": {"name": "p", "n": len(problems), "ids": problems}, "samples": k, "seed": 0}
    (folder / "run.json").write_text(json.dumps(run))
    with (folder / "samples.jsonl").open("w") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)
    return folder


def planted(folder, effects, *, n=30, k=32, seed=0, delta=0.02):
    """A run with an effect by arm (of `ARM_SET`, 0 where none is given); A/A and B2 repeat B exactly."""
    rng = np.random.default_rng(seed)
    problems = [f"p{i}" for i in range(n)]
    p = 0.25 + 0.45 * rng.beta(0.5, 0.5, n)
    drawn = {arm["name"]: rng.random((n, k)) < p[:, None] + effects.get(arm["name"], 0.0) for arm in ARM_SET["arms"]}
    drawn |= {name: drawn["B"] for name in SAME_AS_B if name not in effects}
    lines = [
        sample(problem, arm, s, bool(right[i, s]))
        for arm, right in drawn.items()
        for i, problem in enumerate(problems)
        for s in range(k)
    ]
    rng.shuffle(lines)
    return write_run(folder, lines, problems, k, ARM_SET | {"delta": delta})


def claims(summary):
    return {claim["id"]: claim["verdict"] for claim in summary["claims"]}


def comparison(summary, arm, baseline="B", scope="problems like these"):
    (row,) = [r for r in summary["comparisons"] if (r["arm"], r["baseline"], r["scope"]) == (arm, baseline, scope)]
    return row


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return summarize(planted(tmp_path_factory.mktemp("small"), {"F-up": 0.1, "F-up2": 0.2}, n=20, k=8))


def test_the_names_of_the_contract_are_all_there(small):
    assert set(small["arms"]) == {arm["name"] for arm in ARM_SET["arms"]}
    expected = (
        "n_problems k avg_at_k pass_at_k maj_at_k truncation_rate mean_tokens fork_rate mean_entropy_nats ungraded"
    )
    assert all(set(expected.split()) <= set(row) for row in small["arms"].values())
    assert all(
        {"arm", "baseline", "diff", "se", "ci95", "p", "p_holm", "scope"} <= set(row) for row in small["comparisons"]
    )
    assert all({"id", "statement", "verdict", "reason"} <= set(row) for row in small["claims"])
    assert small["instrument"] == "valid"


def test_every_pair_is_compared_in_both_scopes_and_claimed_pairs_have_a_holm_p(small):
    pairs = [(row["arm"], row["baseline"]) for row in small["comparisons"]]
    others = [arm["name"] for arm in ARM_SET["arms"][1:]]
    expected = [(name, "B") for name in others] + [("F-up", "N-up-m")]
    assert sorted(pairs) == sorted(2 * expected)
    with_holm = {(row["arm"], row["baseline"]) for row in small["comparisons"] if row["p_holm"] is not None}
    assert with_holm == {("F-up", "B"), ("F-up", "N-up-m")}


def test_numbers_by_hand(tmp_path):
    # p0: B right 3 of 4, F-up 4 of 4; p1: B 1 of 4, F-up 1 of 2 (one request failed, one timed out in grading).
    lines = [sample("p0", "B", s, s > 0, completion_tokens=10 * (s + 1)) for s in range(4)]
    lines += [sample("p1", "B", s, s == 0, finish_reason="stop" if s < 3 else "length") for s in range(4)]
    lines += [sample("p0", "F-up", s, True, forks=10, mean_entropy_nats=0.2) for s in range(4)]
    lines += [sample("p1", "F-up", s, s == 0, forks=50, completion_tokens=200, mean_entropy_nats=0.5) for s in range(2)]
    lines[-1]["finish_reason"] = "length"
    lines[-1]["grade_path"] = "truncated"
    lines[0]["grade_path"] = "no-answer"
    lines.append(sample("p1", "F-up", 2, False, grade="ungraded", forks=None, mean_entropy_nats=None))
    failed = {"grade": "ungraded", "answer": None, "forks": None, "mean_entropy_nats": None, "completion_tokens": None}
    lines.append(sample("p1", "F-up", 3, False, error="ReadTimeout", finish_reason=None, **failed))
    summary = summarize(write_run(tmp_path / "run", lines, ["p0", "p1"], 4))

    baseline, arm = summary["arms"]["B"], summary["arms"]["F-up"]
    assert (baseline["avg_at_k"], arm["avg_at_k"]) == (0.5, 0.75)
    assert baseline["k"] == arm["k"] == 4
    assert baseline["pass_at"] == {"1": 0.5, "2": pytest.approx((1 + 0.5) / 2), "4": 1.0}
    assert (arm["pass_at_k"], arm["pass_at_k_problems"]) == (1.0, 1)  # p1 has two graded samples only
    # p1, F-up: a tie, the first answer wins; the answer that was not graded does not vote.
    assert (baseline["maj_at_k"], arm["maj_at_k"]) == (0.5, 1.0)
    assert (baseline["truncation_rate"], arm["truncation_rate"]) == (1 / 8, 1 / 7)
    assert (baseline["unboxed_rate"], arm["unboxed_rate"]) == (1 / 7, 0.0)
    assert baseline["mean_tokens"] == (10 + 20 + 30 + 40 + 400) / 8
    assert arm["mean_tokens"] == (400 + 400 + 100) / 7
    assert arm["fork_rate"] == (4 * 10 + 2 * 50) / (4 * 100 + 2 * 200)
    assert arm["mean_entropy_nats"] == pytest.approx((0.2 * 400 + 0.5 * 400) / 800)
    assert (baseline["fork_rate"], baseline["mean_entropy_nats"]) == (None, None)
    assert (arm["ungraded"], arm["failed_requests"], arm["missing"], arm["samples"]) == (2, 1, 0, 8)
    assert baseline["avg_at_k_ci95"] == [0.0, 1.0]

    # Both arms have samples 0 to 3 of p0 and 0, 1 of p1 graded. The other two of p1 may be right or wrong in F-up.
    row = comparison(summary, "F-up")
    assert (row["diff"], row["pairs"], row["ungraded_pairs"]) == (0.125, 6, 2)
    assert row["bounds"] == [0.125, 0.375]
    assert summary["warnings"][0].startswith("2 of 8 samples of F-up are ungraded.")
    assert "2 problems cannot speak for problems like these" in summary["claims"][0]["reason"]
    nothing = summary["arms"]["A/A"]
    assert (nothing["avg_at_k"], nothing["pass_at_k"], nothing["maj_at_k"], nothing["k"]) == (None, None, None, 0)
    assert nothing["missing"] == 8
    assert comparison(summary, "A/A")["ci95"] is None
    assert summary["instrument"] == "unchecked"


def test_comparisons_are_paired_t_tests_with_holm(tmp_path):
    folder = planted(tmp_path / "run", {"F-up": 0.05}, n=25, k=16)
    summary = summarize(folder)
    share = {}
    for one in map(json.loads, (folder / "samples.jsonl").read_text().splitlines()):
        share.setdefault(one["arm"], {}).setdefault(one["problem_id"], []).append(one["grade"] == "correct")
    mean = {arm: [np.mean(share[arm][f"p{i}"]) for i in range(25)] for arm in share}
    p = [scipy.stats.ttest_rel(mean["F-up"], mean[against]).pvalue for against in ("B", "N-up-m")]
    rows = [comparison(summary, "F-up", against) for against in ("B", "N-up-m")]
    assert [row["p"] for row in rows] == pytest.approx(p)
    low, high = sorted(p)
    assert sorted(row["p_holm"] for row in rows) == pytest.approx([min(1, 2 * low), min(1, max(2 * low, high))])


def test_a_planted_effect_of_place_holds(tmp_path):
    summary = summarize(planted(tmp_path / "run", {"F-up": 0.15, "F-up2": 0.15}, n=40))
    assert claims(summary) == {
        "helps": "holds",
        "place": "holds",
        "place-not-dose:place": "holds",
        "dose-not-place:place": "reversed",
    }


def test_a_planted_effect_of_dose_is_called_dose(tmp_path):
    effects = {"F-up": 0.15, "N-up-m": 0.15}
    summary = summarize(planted(tmp_path / "run", effects, n=80, k=24, seed=1, delta=0.08))
    assert claims(summary) == {
        "helps": "holds",
        "place": "no effect",
        "place-not-dose:place": "no effect",
        "dose-not-place:place": "holds",
    }
    assert summary["claims"][2]["reason"].startswith("entropy dose, not place")


def test_arms_alike_at_a_dose_that_does_nothing_leave_the_cause_of_a_larger_dose_open(tmp_path):
    def arm(name, role="treatment", **steering):
        return {"name": name, "role": role, "temperature": 1.0, "steering": steering or None}

    def claim(name, arm, against):
        return {"id": name, "statement": f"{arm} is worse.", "arm": arm, "against": against, "direction": "less"}

    arms = [
        arm("B", "baseline"),
        arm("F-down", fork_temperature=0.3),
        arm("N-down", other_temperature=0.3),
        arm("F-down-m", "matched", fork_temperature=0.95),
    ]
    arm_set = {"name": "lower", "baseline": "B", "arms": arms, "delta": 0.05}
    arm_set["claims"] = [claim("hurts", "F-down", "B"), claim("place", "F-down-m", "N-down")]
    rng, problems, k = np.random.default_rng(0), [f"p{i}" for i in range(200)], 64
    p = 0.25 + 0.5 * rng.random((200, 1))
    lines = [
        sample(problem, name, s, bool(right))
        for name, effect in (("B", 0), ("F-down", -0.1), ("N-down", 0), ("F-down-m", 0))
        for problem, row in zip(problems, rng.random((200, k)) < p + effect, strict=True)
        for s, right in enumerate(row)
    ]
    summary = summarize(write_run(tmp_path / "run", lines, problems, k, arm_set))
    assert claims(summary) == {
        "hurts": "holds",
        "place": "no effect",
        "place-not-dose:place": "undecided",
        "dose-not-place:place": "undecided",
    }
    assert {claim["verdict_these_problems"] for claim in summary["claims"][2:]} == {"undecided"}
    assert "N-down has another dose than F-down, as a rule a smaller one" in summary["claims"][3]["reason"]


def test_a_planted_null_has_no_effect_with_many_samples_and_is_undecided_with_few(tmp_path):
    many = summarize(planted(tmp_path / "many", {}, n=80, k=24, seed=1, delta=0.08))
    few = summarize(planted(tmp_path / "few", {}, n=20, k=4, seed=1))
    assert claims(many)["helps"] == "no effect"
    assert claims(few)["helps"] == "undecided"
    assert "80% power" in few["claims"][0]["reason"]


def test_an_instrument_that_changes_the_baseline_decides_nothing(tmp_path):
    summary = summarize(planted(tmp_path / "run", {"A/A": -0.1, "F-up": 0.2}))
    assert summary["instrument"] == "invalid"
    assert "deterministic" in summary["instrument_reason"]
    assert set(claims(summary).values()) == {"undecided"}
    assert all(claim["reason"].startswith("the instrument is invalid; ") for claim in summary["claims"])


def test_an_engine_as_noisy_alone_as_with_steering_is_valid_if_its_scores_are_shown_equal(tmp_path):
    # One seed in twenty is unlucky (tests/benchmarks/verdicts/test_instrument.py counts them); 0 is one, 1 is not.
    folder = planted(tmp_path / "run", {"A/A": 0.0, "B2": 0.0, "F-up": 0.2}, seed=1)
    summary = summarize(folder)
    assert summary["instrument"] == "not shown"
    assert "no more often than the engine alone, but a bias of up to" in summary["instrument_reason"]
    assert 0.02 < summary["instrument_bias"] < 0.08
    run = json.loads((folder / "run.json").read_text())
    run["arms"]["delta"] = 0.08
    (folder / "run.json").write_text(json.dumps(run))
    assert summarize(folder)["instrument"] == "valid"


def test_without_an_identity_arm_the_instrument_is_unchecked_and_claims_are_judged(tmp_path):
    folder = planted(tmp_path / "run", {"F-up": 0.2})
    run = json.loads((folder / "run.json").read_text())
    next(arm for arm in run["arms"]["arms"] if arm["name"] == "A/A")["role"] = "treatment"
    (folder / "run.json").write_text(json.dumps(run))
    summary = summarize(folder)
    assert summary["instrument"] == "unchecked"
    assert claims(summary)["helps"] == "holds"


def test_trend_strata_and_mediators_are_there(small):
    (trend,) = small["trends"]
    assert trend["family"] == "forks raised"
    assert (trend["arms"], trend["doses"]) == (["B", "F-up", "F-up2"], [0.0, 1.0, 2.0])
    assert trend["ci95"][0] < 0.1 < trend["ci95"][1]
    rows = [row for row in small["strata"] if row["arm"] == "F-up2"]
    assert [row["stratum"] for row in rows] == ["hard", "medium", "easy"]
    assert sum(row["n_problems"] for row in rows) == 20
    mediators = next(row for row in small["mediators"] if row["arm"] == "F-up2")
    assert mediators["by_finishing"]["diff"] == 0.0
    assert mediators["by_answers"]["diff"] == pytest.approx(comparison(small, "F-up2")["diff"])
    assert mediators["log_length_ratio"]["diff"] == 0.0


def test_strata_never_compare_the_samples_they_were_sorted_by(tmp_path):
    # B is right on even samples of p0, p1 and on odd ones of p2, p3; F-up is B with even samples turned round.
    problems = ["p0", "p1", "p2", "p3"]
    right = {(p, s): (s % 2 == 0) == (p in ("p0", "p1")) for p in problems for s in range(4)}
    lines = [sample(p, "B", s, yes) for (p, s), yes in right.items()]
    lines += [sample(p, "F-up", s, yes == (s % 2 == 1)) for (p, s), yes in right.items()]
    summary = summarize(write_run(tmp_path / "run", lines, problems, 4))
    rows = {row["stratum"]: row for row in summary["strata"] if (row["arm"], row["baseline"]) == ("F-up", "B")}
    assert [rows[name]["n_problems"] for name in ("hard", "medium", "easy")] == [2, 0, 2]
    assert rows["easy"]["diff"] == rows["hard"]["diff"] == 0.0  # odd samples agree


def test_truncation_explains_a_difference_made_by_truncation(tmp_path):
    problems = ["p0", "p1", "p2"]
    lines = [sample(p, "B", s, True) for p in problems for s in range(4)]
    lines += [
        sample(p, "F-up", s, s > i, finish_reason="stop" if s > i else "length")
        for i, p in enumerate(problems)
        for s in range(4)
    ]
    summary = summarize(write_run(tmp_path / "run", lines, problems, 4))
    row = next(row for row in summary["mediators"] if (row["arm"], row["baseline"]) == ("F-up", "B"))
    assert row["by_finishing"]["diff"] == pytest.approx(comparison(summary, "F-up")["diff"])
    assert row["by_answers"]["diff"] == 0.0


def test_length_is_the_log_ratio_of_mean_tokens_and_a_correct_sample_counts_as_finished(tmp_path):
    problems = ["p0", "p1", "p2", "p3"]
    lines = [sample(p, "B", s, True, finish_reason="length") for p in problems for s in range(2)]
    lines += [
        sample(p, "F-up", s, i < 2, completion_tokens=100 * (1 + i) + 20 * s)
        for i, p in enumerate(problems)
        for s in range(2)
    ]
    summary = summarize(write_run(tmp_path / "run", lines, problems, 2))
    row = next(row for row in summary["mediators"] if (row["arm"], row["baseline"]) == ("F-up", "B"))
    assert row["log_length_ratio"]["diff"] == pytest.approx(np.mean(np.log([1.1, 2.1, 3.1, 4.1])))
    assert row["by_finishing"]["diff"] == 0.0
    fit = scipy.stats.linregress(np.log([1.1, 2.1, 3.1, 4.1]), [0, 0, -1, -1])
    assert row["at_equal_length"]["diff"] == pytest.approx(fit.intercept)


def test_problems_like_these_decide_and_these_problems_stand_beside(tmp_path):
    lines = [sample(p, "B", s, s < 20) for p in ("p0", "p1") for s in range(64)]
    lines += [sample(p, "F-up", s, s < right) for p, right in (("p0", 56), ("p1", 24)) for s in range(64)]
    summary = summarize(write_run(tmp_path / "run", lines, ["p0", "p1"], 64))
    claim = summary["claims"][0]
    assert (claim["verdict"], claim["verdict_these_problems"]) == ("undecided", "holds")
    low, high = comparison(summary, "F-up")["ci95"]
    assert f"95% CI [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "−") in claim["reason"]


@pytest.mark.parametrize("name", ["quick", "figure3", "causal"])
def test_the_built_in_arm_sets_are_understood(tmp_path, name):
    wanted = load_arm_set(name)
    solved = {arm.name: 0.9 for arm in wanted.arms}
    arm_set = resolve(wanted, temperature=1.0, threshold_nats=0.6, fork_rate=0.2, solved=solved).model_dump(mode="json")
    rng = np.random.default_rng(0)
    lines = [
        sample(p, arm["name"], s, bool(rng.random() < 0.5)) for arm in arm_set["arms"] for p in "xyz" for s in range(4)
    ]
    summary = summarize(write_run(tmp_path / "run", lines, ["x", "y", "z"], 4, arm_set))
    declared = [claim.id for claim in wanted.claims]
    assert list(claims(summary))[: len(declared)] == declared
    combined = list(claims(summary))[len(declared) :]
    assert bool(combined) == (name == "causal")
    pairs = {(row["arm"], row["baseline"]) for row in summary["comparisons"]}
    assert pairs >= {(c.arm, c.baseline) for c in (*wanted.comparisons, *wanted.claims)}


def test_the_same_run_gives_the_same_file_and_valid_json(tmp_path):
    folder = planted(tmp_path / "run", {"F-up": 0.1}, n=20, k=4)
    first = write_summary(folder).read_bytes()
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(reversed(lines)))
    assert write_summary(folder) == folder / "summary.json"
    assert (folder / "summary.json").read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "samples.jsonl", "summary.json"]

    def refuse(word):
        raise AssertionError(word)

    assert json.loads(first, parse_constant=refuse) == summarize(folder)
    assert read_summary(folder / "summary.json") == summaries.summarize(folder)


def test_a_run_without_samples_yet_has_a_summary(tmp_path):
    summary = summarize(write_run(tmp_path / "run", [], ["p0", "p1"], 4))
    assert set(claims(summary).values()) == {"undecided"}
    assert summary["arms"]["B"]["missing"] == 8


@pytest.mark.parametrize("missing", ["run.json", "samples.jsonl"])
def test_a_missing_file_is_named(tmp_path, missing):
    folder = write_run(tmp_path / "run", [], ["p0"], 1)
    (folder / missing).unlink()
    with pytest.raises(SummaryError, match=f"{missing} is missing"):
        summarize(folder)


@pytest.mark.parametrize(
    ("run", "line"),
    [
        ("{", "run.json is not a run: .*line 1"),
        ("[]", "run.json is not a run: "),
        ("{}", "run.json has no 'arms'"),
        (json.dumps({"arms": ARM_SET, "problems": {"ids": ["p0"]}}), "run.json has no 'samples'"),
        (json.dumps({"arms": ARM_SET | {"delta": 3}}), "delta is 3"),
    ],
)
def test_a_bad_run_file_is_one_plain_line(tmp_path, run, line):
    folder = write_run(tmp_path / "run", [], ["p0"], 1)
    (folder / "run.json").write_text(run)
    with pytest.raises(SummaryError, match=line) as error:
        summarize(folder)
    assert "\n" not in str(error.value)


def test_a_line_that_cannot_be_read_is_named(tmp_path):
    folder = write_run(tmp_path / "run", [sample("p0", "B", 0, True)], ["p0"], 1)
    whole = (folder / "samples.jsonl").read_text()
    (folder / "samples.jsonl").write_text("{\n" + whole)
    with pytest.raises(SummaryError, match=r"samples\.jsonl line 1 is not a JSON object"):
        summarize(folder)
    (folder / "samples.jsonl").write_text(whole + whole[:30])
    assert summarize(folder)["arms"]["B"]["samples"] == 1  # the run was stopped while it wrote that line


def test_a_foreign_sample_is_named(tmp_path):
    folder = write_run(tmp_path / "run", [sample("p9", "B", 0, True)], ["p0"], 1)
    with pytest.raises(SummaryError, match=r'samples\.jsonl line 1: problem_id "p9"'):
        summarize(folder)
