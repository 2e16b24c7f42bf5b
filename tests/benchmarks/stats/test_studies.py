"""Few of the studies that `python -m tests.support.studies` makes hundreds of; its figures are in docs/log.md.

What a hostile reviewer would try, through samples.jsonl and summary: every rule that a verdict passes is checked here
on runs whose truth is known.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerdec.benchmarks.report import sentences
from steerdec.benchmarks.stats.comparisons import PROBLEMS_LIKE_THESE, SCOPES
from steerdec.benchmarks.verdicts.summary import SummaryError, summarize
from tests.support.studies import STEERED, Truth, coverage, studies, study, verdicts, write_study


def edit_run(folder: Path, **more: object) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def edit_samples(folder: Path, change) -> None:
    path = folder / "samples.jsonl"
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def test_intervals_cover_and_verdicts_are_rarely_false() -> None:
    truth = Truth(30, 4, STEERED, effect=0.05, effect_sd=0.1, shared=0.5)
    done = studies(truth, 20)
    assert all(coverage(done, truth, population) >= 0.75 for population in SCOPES)
    assert all(verdicts(done, truth, population)["false"] <= 0.2 for population in SCOPES)


def test_a_loss_hidden_by_failed_requests_is_undecided_and_the_reason_is_given(tmp_path: Path) -> None:
    # The wrong answers of F-up time out: of a loss of 20 points, a significant gain is left.
    write_study(Truth(60, 8, effect=-0.2, lost=0.95), tmp_path, seed=1)
    summary = summarize(tmp_path)
    row = next(row for row in summary.comparisons if (row.arm, row.scope) == ("F-up", PROBLEMS_LIKE_THESE))
    assert (row.diff or 0.0) > 0.1
    assert (row.p or 0.0) < 0.001
    low, high = row.bounds or (0.0, 0.0)
    assert low < -0.1
    assert high > 0.3
    (claim,) = summary.claims
    assert claim.verdict == claim.verdict_these_problems == "undecided"
    assert "ungraded samples could make it anything from −" in claim.reason
    assert "samples of F-up are ungraded. Verdicts stand only where" in summary.warnings[0]


def test_a_verdict_stands_where_the_ungraded_samples_cannot_turn_it(tmp_path: Path) -> None:
    write_study(Truth(40, 8, effect=0.25, lost=0.05), tmp_path, seed=1)
    summary = summarize(tmp_path)
    assert summary.claims[0].verdict == "holds"
    assert summary.warnings


@pytest.mark.parametrize("forks", [0, 20])
def test_steering_that_changes_nothing_is_not_applied(tmp_path: Path, forks: int) -> None:
    # No token is a fork; or some are, and the distributions drawn from are those of A/A.
    write_study(Truth(30, 4, effect=0.2), tmp_path, seed=1)

    def unsteered(sample):
        if sample["arm"] != "F-up":
            return sample
        return sample | {"forks": forks, "mean_sampled_entropy_nats": 0.3}

    edit_samples(tmp_path, unsteered)
    summary = summarize(tmp_path)
    assert [(claim.verdict, claim.verdict_these_problems) for claim in summary.claims] == [("not applied",) * 2]
    assert "F-up was not steered as requested" in summary.claims[0].reason
    assert summary.arms["F-up"].applied == "not applied"
    assert summary.warnings[0].startswith("F-up was not steered as requested: it steered")


def test_arms_that_all_write_the_baselines_texts_check_nothing(tmp_path: Path) -> None:
    write_study(Truth(30, 4, shared=1.0), tmp_path, seed=1)
    edit_samples(tmp_path, lambda sample: sample | {"text": "the same", "finish_reason": "stop"})
    summary = summarize(tmp_path)
    assert summary.instrument == "unchecked"
    assert "no steered arm changed a single text" in summary.instrument_reason


def test_between_planned_looks_there_is_no_verdict_and_a_decided_one_stays(tmp_path: Path) -> None:
    write_study(Truth(60, 32, effect=0.25, looks=True), tmp_path, seed=3)
    every = (tmp_path / "samples.jsonl").read_text()
    found = {}
    for made in (3, 4, 9, 32):
        (tmp_path / "samples.jsonl").write_text(every)
        edit_samples(tmp_path, lambda sample, made=made: sample if sample["sample"] < made else None)
        summary = summarize(tmp_path)
        found[made] = summary.claims[0]
        assert summary.interim == (made < 32 and summary.claims[0].verdict == "undecided")
    assert "interim: the first planned look is at 4 samples" in found[3].reason
    decided = next(claim for claim in (found[4], found[9]) if claim.verdict == "holds")
    assert found[32].model_copy(update={"p_adjusted": None}) == decided.model_copy(update={"p_adjusted": None})
    assert decided.samples in (4, 8)


def test_a_run_of_one_sample_is_spoken_of_in_the_singular(tmp_path: Path) -> None:
    write_study(Truth(30, 1), tmp_path, seed=1)
    edit_samples(tmp_path, lambda sample: None if sample["problem_id"] == "p29" and sample["arm"] == "B" else sample)
    summary = summarize(tmp_path)
    assert "no look is planned before 1 sample of every problem" in summary.claims[0].reason
    assert "1 sample missing." in summary.interim_reason
    assert "planned looks (1 sample of every problem)" in summary.interim_reason
    assert "is not finished; 1 sample is missing" in str(
        sentences.interim_sentence(summary.model_copy(update={"interim_reason": ""}))
    )


def test_a_verdict_stays_that_of_the_problems_it_was_made_from(tmp_path: Path) -> None:
    """20 problems were added after the end, on which F-up only loses: the interval moves, the verdict does not."""
    write_study(Truth(40, 8, effect=0.25), tmp_path, seed=2)
    looks = [{"samples": 8, "planned": 8, "problems": 20}, {"samples": 8, "planned": 8}]
    edit_run(tmp_path, looks=looks)

    def lose(sample):
        added = int(sample["problem_id"][1:]) >= 20
        return sample | ({"grade": "incorrect"} if added and sample["arm"] == "F-up" else {})

    before = summarize(tmp_path).claims[0]
    edit_samples(tmp_path, lose)
    summary = summarize(tmp_path)
    assert summary.claims[0].verdict == before.verdict == "holds"
    assert summary.claims[0].diff == before.diff
    assert "look 1 of 2, at 8 samples of 20 problems" in summary.claims[0].reason
    row = next(row for row in summary.comparisons if (row.arm, row.scope) == ("F-up", PROBLEMS_LIKE_THESE))
    assert (row.diff or 0.0) < (before.diff or 0.0) - 0.1
    assert [(look.problems, look.decided) for look in summary.looks] == [(20, ("F-up",)), (40, ())]


@pytest.mark.parametrize("problems", [0, 41])
def test_a_look_at_problems_the_run_does_not_have_is_named(tmp_path: Path, problems: int) -> None:
    write_study(Truth(40, 2), tmp_path, seed=2)
    edit_run(tmp_path, looks=[{"samples": 1, "planned": 2, "problems": problems}, {"samples": 2, "planned": 2}])
    with pytest.raises(SummaryError, match="a look is at more or fewer problems than the run has, which are 40"):
        summarize(tmp_path)


def test_an_unfinished_run_without_planned_looks_has_no_verdict(tmp_path: Path) -> None:
    write_study(Truth(30, 8, effect=0.3), tmp_path, seed=1)
    edit_samples(tmp_path, lambda sample: sample if sample["sample"] < 7 else None)
    summary = summarize(tmp_path)
    assert summary.claims[0].verdict == "undecided"
    assert "the run is not finished" in summary.claims[0].reason
    assert summary.interim
    assert "90 samples missing" in summary.interim_reason
    assert summary.arms_needed == ("B", "A/A", "F-up")


def test_a_claim_without_a_chance_is_given_up_and_its_arms_are_not_needed(tmp_path: Path) -> None:
    given_up = 0
    for seed in range(3):
        write_study(Truth(60, 16, effect=0.0, shared=0.0, looks=True), tmp_path, seed)
        edit_samples(tmp_path, lambda sample: sample if sample["sample"] < 12 else None)
        summary = summarize(tmp_path)
        given_up += summary.claims[0].given_up
        assert summary.claims[0].given_up == (summary.arms_needed == ())
        assert summary.claims[0].given_up == ("chance of a verdict at the end" in summary.claims[0].reason)
    assert given_up > 0


def test_nine_problems_decide_nothing(tmp_path: Path) -> None:
    write_study(Truth(9, 16, effect=0.25), tmp_path, seed=1)
    (claim,) = summarize(tmp_path).claims
    assert claim.verdict == "undecided"
    assert claim.reason.startswith("9 problems cannot speak for problems like these; a verdict needs 10")


def test_groups_of_problems_are_the_clusters(tmp_path: Path) -> None:
    write_study(Truth(30, 8, effect=0.25), tmp_path, seed=1)
    problems = json.loads((tmp_path / "run.json").read_text())["problems"]
    edit_run(
        tmp_path, problems=problems | {"groups": {name: f"template {i % 5}" for i, name in enumerate(problems["ids"])}}
    )
    (claim,) = summarize(tmp_path).claims
    assert claim.verdict == "undecided"
    assert claim.reason.startswith("5 groups of problems cannot speak for problems like these")


@pytest.mark.parametrize("metric", ["pass@k", "maj@k", "tokens", "truncation", "tokens per correct"])
def test_claims_can_be_about_every_metric(tmp_path: Path, metric: str) -> None:
    write_study(Truth(30, 8, effect=0.25), tmp_path, seed=1)

    def longer(sample):
        if sample["arm"] != "F-up":
            return sample
        return sample | {
            "completion_tokens": 130 + 7 * (sample["sample"] % 3) + int(sample["problem_id"][1:]) % 5,
            "finish_reason": "length" if sample["sample"] < 4 else "stop",
        }

    edit_samples(tmp_path, longer)
    arms = json.loads((tmp_path / "run.json").read_text())["arms"]
    arms["claims"][0]["metric"] = metric
    edit_run(tmp_path, arms=arms)
    (claim,) = summarize(tmp_path).claims
    assert claim.metric == metric
    # Cut in the same half of every problem: the spread of truncation is 0, and its interval that of rare events.
    decided = {"tokens": {"holds"}, "truncation": {"holds"}, "tokens per correct": {"reversed", "undecided"}}
    assert claim.verdict in decided.get(metric, {"holds", "undecided"})
    assert claim.diff is not None
    if metric == "tokens":
        assert claim.diff == pytest.approx(130 + 7 * (0 + 1 + 2 + 0 + 1 + 2 + 0 + 1) / 8 + 2 - 100)


def test_studies_of_one_seed_are_the_same() -> None:
    truth = Truth(12, 2)
    assert study(truth, 4) == study(truth, 4)
