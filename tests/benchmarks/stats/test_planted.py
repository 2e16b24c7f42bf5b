"""Few of the studies that `python -m tests.support.planted` makes hundreds of; its figures are in docs/log.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from steerdec.benchmarks.run.targets import Target
from steerdec.benchmarks.stats.comparisons import PROBLEMS_LIKE_THESE, SCOPES
from tests.support.planted import EFFECT, VERDICTS, WITH_FLOOR, Study, Truth, found, plan, studies, verdicts
from tests.support.scripted_endpoint import ScriptedEndpoint

STUDIES = 40  # a share of .95 has standard error .034 over so many


@pytest.fixture(scope="module")
def done() -> list[Study]:
    return studies(Truth(30, 4, WITH_FLOOR, {"F-up": EFFECT}, effect_sd=0.1, noise=0.03), STUDIES)


def test_a_run_over_http_gives_the_samples_of_one_without_sockets(tmp_path: Path) -> None:
    truth = Truth(6, 3, ("B", "A/A", "B-other"))
    http, direct = plan(truth, tmp_path / "http", seed=5), plan(truth, tmp_path / "direct", seed=5)
    with ScriptedEndpoint(http.script) as server:
        http.run(Target(endpoints=(server.url,), model=None, dtype=None, concurrency=8, timeout_s=30.0, api_key=None))
    direct.run()
    samples = [
        sorted(
            (json.loads(line) | {"endpoint": ""} for line in (folder / "run" / "samples.jsonl").open()),
            key=lambda sample: (sample["problem_id"], sample["arm"], sample["sample"]),
        )
        for folder in (http.folder, direct.folder)
    ]
    assert samples[0] == samples[1]
    assert len(samples[0]) == 6 * 3 * 3


def test_a_planted_effect_is_estimated_without_bias(done: list[Study]) -> None:
    it = found(done)
    assert abs(it.bias) < 4 * it.bias_se
    assert it.bias_se < EFFECT / 2  # no estimate, or one of another arm, would be seen


def test_intervals_cover_what_was_planted_and_narrower_ones_would_not(done: list[Study]) -> None:
    it = found(done)
    assert all(it.coverage[scope] >= 0.81 for scope in SCOPES)
    rows = [study.row("F-up", "B", PROBLEMS_LIKE_THESE) for study in done]
    assert np.mean([abs(row["diff"] - EFFECT) < row["se"] for row in rows]) < 0.81


def test_arms_that_do_not_differ_raise_an_alarm_no_more_often_than_they_may(done: list[Study]) -> None:
    it = found(done)
    assert all(it.false_alarms[scope] <= 0.05 + 0.14 for scope in SCOPES)
    assert it.invalid <= 0.05 + 0.14
    noisy = ["A/A differs from the baseline" in study.summary["instrument_reason"] for study in done]
    assert np.mean(noisy) > 0.9  # the engine's noise was there to be judged


@pytest.mark.parametrize(
    ("planted", "helps", "by_place", "by_dose"),
    [
        ("place", "holds", "holds", "reversed"),
        pytest.param("dose", "holds", "no effect", "holds", marks=pytest.mark.thorough),
        pytest.param("nothing", "no effect", "no effect", "no effect", marks=pytest.mark.thorough),
        ("nothing, too few to tell", "undecided", "undecided", "undecided"),
    ],
)
def test_the_verdict_is_the_planted_one(planted: str, helps: str, by_place: str, by_dose: str) -> None:
    most = {claim: given.most_common(1)[0] for claim, given in verdicts(studies(VERDICTS[planted], 4)).items()}
    expected = {"helps": helps, "place-not-dose:place": by_place, "dose-not-place:place": by_dose}
    assert {claim: verdict for claim, (verdict, _) in most.items()} == expected
    assert all(count >= 3 for _, count in most.values())
