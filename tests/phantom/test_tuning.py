"""`steerdec tune` on models whose every score is known, in the real engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steerdec.benchmarks.tune.space import PLAIN, steered_arms
from steerdec.phantom import tuning
from steerdec.phantom.folder import truth_of
from steerdec.phantom.kinds import KINDS
from steerdec.phantom.tuning import Tuned, wrong_searches


def tuned(seed: int, advice: str, exact_gain: float, shift_nats: float | None = 0.1) -> Tuned:
    return Tuned(seed, advice, "s", exact_gain, measured_gain=0.0, entropy_shift_nats=shift_nats, tokens=1)


def test_advice_is_wrong_where_nothing_helps_or_where_it_does_not_help() -> None:
    found = [tuned(0, "nothing", 0.0), tuned(1, "steer", 0.0), tuned(2, "temperature", 0.0), tuned(3, "steer", 0.1)]
    assert wrong_searches(found, None) == [1, 2, 3]
    assert wrong_searches(found, 0) == wrong_searches(found, 1) == [0, 1, 2]
    assert wrong_searches(found, -1) == [0, 1, 2, 3]
    assert wrong_searches([tuned(0, "steer", 0.1, None)], 1) == [0]


def test_the_exact_gain_of_a_setting_is_that_of_its_arm() -> None:
    known = truth_of(KINDS["claim-true"])
    threshold = known.threshold_nats
    up = {"fork_temperature": 1.667, "threshold_nats": threshold, "telemetry": "summary"}
    assert tuning.exact_gain(known, up) == pytest.approx(0.405 - 0.236, abs=1e-3)  # docs/phantom.md
    assert tuning.exact_gain(known, up | {"threshold_nats": 5.0}) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", tuning.WITHOUT_EFFECT)
def test_without_an_effect_no_setting_of_the_search_gains(kind: str) -> None:
    known = truth_of(KINDS[kind])
    tried = [arm.steering or {} for arm in steered_arms({"p80": known.threshold_nats}, 1.0)]
    tried += [{"select": "all", "fork_temperature": f"x{factor}"} for factor in PLAIN]
    for steering in tried:
        numbers = {k: float(v[1:]) if str(v).startswith("x") else v for k, v in steering.items()}  # at base 1
        assert tuning.exact_gain(known, {"threshold_nats": known.threshold_nats} | numbers) < 1e-9, steering


def test_on_null_varied_other_tokens_are_drawn_with_an_even_chance_to_be_right() -> None:
    known = truth_of(KINDS["null-varied"])
    at = {"threshold_nats": known.threshold_nats}
    plain, up = (known.steered.part(at | one) for one in ({}, {"fork_temperature": 1.667}))
    decisive = known.steered.index["r4.1"]  # the first fork of a rule in the middle
    moved = np.abs(plain.probabilities[decisive] - up.probabilities[decisive]).sum() / 2
    assert moved == pytest.approx(0.100, abs=5e-3)  # of the draws change the token
    on = known.steered.move[:, known.steered.index["r4.2"]]
    assert plain.probabilities[decisive] @ on == pytest.approx(0.5, abs=1e-12)
    assert up.probabilities[decisive] @ on == pytest.approx(0.5, abs=1e-12)


@pytest.mark.engine
@pytest.mark.thorough
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["claim-true", "null-varied"])
def test_on_a_phantom_the_advice_is_what_is_true(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--kind", kind, "--seeds", "1", "--candidates", "6", "--samples", "4", "--out", str(tmp_path)]
    status = tuning.main(options)
    captured = capsys.readouterr()
    assert status == 0, captured
    assert f"1 searches of {kind}; 0 advised wrongly" in captured.out
