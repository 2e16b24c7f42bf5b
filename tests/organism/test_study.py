"""The study's numbers on data whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from steerdec.analysis.lenses import names
from steerdec.common.json import plain
from steerdec.organism import attempt_truth, lens_truth, seeds, study_tables, task, truth, vocabulary
from steerdec.organism.grpo import ARMS
from steerdec.organism.task import MOVES
from steerdec.organism.train import Size, new_model


def traces(score: Any, n: int = 12) -> list[lens_truth.Trace]:
    """Demonstrations with their truth, every lens being `score(trace's kinds, live, generator)`."""
    batch = task.problems(n, "test", held_out=True)
    rng = task.seeded("test")
    ids, lengths = vocabulary.responses(batch, task.demonstrated(batch, rng), rng)
    found = []
    for i in range(n):
        texts = [vocabulary.TOKENS[t] for t in ids[i, : lengths[i] - vocabulary.CLOSING_TOKENS]]
        labels = truth.labels(truth.puzzle(batch.text(i)), texts)
        kinds, live = np.array([label.kind for label in labels]), np.array([label.live for label in labels])
        values = {name: score(kinds, live, rng) for name in lens_truth.TOKEN_SCORES}
        found.append(lens_truth.Trace(str(i), kinds, live, ["digit"] * len(texts), values))
    return found


def test_a_lens_that_is_the_truth_finds_it() -> None:
    made = traces(lambda kinds, live, rng: (kinds == truth.DECISION) + 0.01 * rng.random(len(kinds)))
    found = lens_truth.measures(made, "entropy")
    assert found["auroc"].mean == found["auroc_without_style"].mean == 1.0
    # 2 of an attempt's 14 tokens are decisions, so the top 20% hold them all and little else.
    assert found["recall"].mean == 1.0
    assert 0.6 < found["precision"].mean < 1.0
    for moved in (lens_truth.turned, lens_truth.shuffled):
        test = lens_truth.null_test(made, "entropy", moved, "test")
        assert test.p <= 2 / (lens_truth.DRAWS + 1)
        assert test.null_mean == pytest.approx(0.5, abs=0.05)


def test_noise_finds_nothing() -> None:
    ps, aurocs = [], []
    for _ in range(8):
        made = traces(lambda kinds, live, rng: rng.random(len(kinds)))
        aurocs.append(lens_truth.measures(made, "entropy")["auroc"].mean)
        ps.append(lens_truth.null_test(made, "entropy", lens_truth.turned, "test").p)
    assert np.mean(aurocs) == pytest.approx(0.5, abs=0.06)
    assert np.median(ps) > 0.05


def test_live_decisions_are_told_from_all_decisions() -> None:
    made = traces(lambda kinds, live, rng: live + 0.01 * rng.random(len(kinds)))
    found = lens_truth.measures(made, "entropy")
    assert found["auroc_live"].mean == 1.0
    assert found["auroc"].mean < 1.0


def test_attempts_on_the_way_are_found_by_a_lens_that_is_the_truth() -> None:
    batch = task.problems(12, "test", held_out=True)
    rng = task.seeded("test")
    ids, lengths = vocabulary.responses(batch, task.demonstrated(batch, rng), rng)
    records, problems, right = [], {}, 0
    for i in range(len(batch)):
        texts = [vocabulary.TOKENS[t] for t in ids[i, : lengths[i] - vocabulary.CLOSING_TOKENS]]
        spans = [(a, a + vocabulary.ATTEMPT_TOKENS) for a in range(0, len(texts), vocabulary.ATTEMPT_TOKENS)]
        taken = [texts[a + 4] == MOVES[batch.moves[i, batch.solution[i, 0]]] for a, _ in spans]
        right += sum(taken)
        problems[str(i)] = batch.text(i)
        records.append(
            {
                "problem_id": str(i),
                "tokens": texts,
                "classes": ["digit"] * len(texts),
                "spans": spans,
                "scores": {lens.name: [0.0] * len(texts) for lens in names.TOKEN_LENSES},
                "sentences": {"forced_answer": [float(t) for t in taken], "suppression": [1.0] * len(spans)},
                "received": [[None] * len(spans)],
            }
        )
    found = attempt_truth.report(records, problems)
    assert found["on_the_way"] == right
    assert found["auroc"]["forced_answer"]["mean"] == 1.0
    assert found["auroc"]["suppression"]["mean"] == 0.5


def test_intervals_over_seeds_are_student_s() -> None:
    import scipy.stats

    values = [0.1, 0.3, 0.2, 0.5, 0.4]
    low, high = scipy.stats.t.interval(0.95, 4, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert seeds.t_interval(values) == pytest.approx({"mean": 0.3, "low": low, "high": high, "n": 5})


def test_unchanged_parameters_are_counted_as_unchanged() -> None:
    base, tuned = new_model(Size(layers=1, feed_forward=32), 0), new_model(Size(layers=1, feed_forward=32), 0)
    assert seeds.changed(base, tuned)["above_0"] == 0
    total = sum(p.numel() for p in base.parameters())
    tuned.lm_head.weight.data += 1e-3
    assert seeds.changed(base, tuned)["above_0.0001"] == pytest.approx(tuned.lm_head.weight.numel() / total)


def test_training_runs_are_measured_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steerdec.organism import build
    from steerdec.organism.grpo import GRPO

    monkeypatch.setitem(build.USES, "evaluate", 4)
    base = new_model(Size(layers=1, feed_forward=32), 0).requires_grad_(False)
    sizes = seeds.Study(seeds=(0, 1), samples=2, grpo=GRPO(steps=1, prompts=2, generations=2))
    measured = seeds.measured(base, sizes)
    runs = []
    for seed in sizes.seeds:
        for arm in ARMS:
            seeds.run_one(measured, arm, seed, sizes, tmp_path / "run.json")
            runs.append(json.loads((tmp_path / "run.json").read_bytes()))
    found = seeds.compared(runs)
    assert set(found["pairs"]) == {f"{a} - {b}" for i, a in enumerate(ARMS) for b in ARMS[i + 1 :]}
    # An untrained model is never right, so nothing was learned, and nothing may be said to have changed.
    assert all(arm["overlap"]["mean"] == 1.0 and arm["gain"]["mean"] == 0.0 for arm in found["arms"].values())
    assert "| top 20% - bottom 80% | +0.0 [+0.0, +0.0] |" in study_tables.tables({"grpo": found})
    json.dumps(plain(found), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["organism", "--out", "{mine}"], "--out: {mine} exists and is not this organism; choose another folder"),
        (["organism-study", "--out", "{new}", "--parts", "lens"], "--parts: 'lens' is not one of lenses, causal, grpo"),
        (["organism-study", "--out", "{new}", "--model", "{mine}"], "--model: {mine} is not an organism's folder"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerdec.cli.main import model_app
    from steerdec.cli.organism import model_organism, model_organism_study

    for name, command in (("organism", model_organism), ("organism-study", model_organism_study)):
        if name not in [c.name for c in model_app.registered_commands]:
            model_app.command(name)(command)
    (tmp_path / "mine").mkdir()
    names = {"mine": str(tmp_path / "mine"), "new": str(tmp_path / "new")}
    monkeypatch.setenv("COLUMNS", "400")
    done = CliRunner().invoke(model_app, [a.format(**names) for a in arguments])
    assert done.exit_code == 2
    assert done.stderr.startswith("steerdec: " + line.format(**names))
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()
