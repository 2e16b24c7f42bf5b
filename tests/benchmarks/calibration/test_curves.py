"""Curves from samples that took turns: as exact as the strata allow, against the same tokens looked at from all."""

from __future__ import annotations

import numpy as np
import pytest

from steerdec.benchmarks.calibration.curves import measure_curves
from steerdec.benchmarks.calibration.measuring import Measured

TEMPERATURES = (0.3, 0.6, 1.5, 3.0)
THRESHOLD_NATS = 0.7


def text(rng: np.random.Generator, problem: int) -> tuple[np.ndarray, dict[float, np.ndarray]]:
    """(entropies at 1, at each temperature) of a text; tokens of equal entropy differ a little in how they respond."""
    own = rng.gamma(0.35, 1.0 + 0.05 * problem, 200)
    shape = rng.normal(0, 0.15, len(own))
    return own, {t: own * t ** (0.8 + shape) for t in TEMPERATURES}


def test_taking_turns_loses_little_of_what_all_looks_at_the_same_text_would_say() -> None:
    rng, ids = np.random.default_rng(0), [f"p{i}" for i in range(20)]
    measures, forks, others, tokens = [], dict.fromkeys(TEMPERATURES, 0.0), dict.fromkeys(TEMPERATURES, 0.0), 0
    for sample in range(20):
        for i, name in enumerate(ids):
            own, at = text(rng, i)
            tokens += len(own)
            for t in TEMPERATURES:
                forks[t] += at[t][own > THRESHOLD_NATS].sum()
                others[t] += at[t][own <= THRESHOLD_NATS].sum()
            turn = TEMPERATURES[(sample + i) % len(TEMPERATURES)]
            measures.append(
                Measured(
                    problem_id=name,
                    sample=sample,
                    round=0,
                    entropy_nats=own.astype(np.float32),
                    probe_temperature=turn,
                    probe_nats=at[turn].astype(np.float32),
                )
            )
    curves = measure_curves(measures, ids, THRESHOLD_NATS).contributions()
    assert set(curves) == {1.0, *TEMPERATURES}
    for t in TEMPERATURES:
        assert curves[t].tokens.sum() == tokens
        assert curves[t].forks_nats.sum() / tokens == pytest.approx(forks[t] / tokens, abs=2e-3)
        assert curves[t].others_nats.sum() / tokens == pytest.approx(others[t] / tokens, abs=2e-3)


def test_a_stratum_without_a_token_takes_its_neighbors_and_a_part_without_any_leaves_the_temperature_out() -> None:
    own = np.array([0.1, 0.2, 0.3, 1.0, 2.0], dtype=np.float32)
    seen = Measured(problem_id="a", sample=0, round=0, entropy_nats=own, probe_temperature=2.0, probe_nats=2 * own)
    few = Measured(
        problem_id="a", sample=1, round=0, entropy_nats=own[:3], probe_temperature=0.5, probe_nats=own[:3] / 2
    )
    curves = measure_curves([seen, few], ["a"], THRESHOLD_NATS).contributions()
    assert set(curves) == {1.0, 2.0}
    assert curves[2.0].forks_nats.sum() == pytest.approx(6.0)
    assert curves[2.0].others_nats.sum() == pytest.approx(2 * 1.2)
