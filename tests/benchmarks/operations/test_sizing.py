"""What a study takes: by hand, and in the directions that must hold whatever is assumed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from steerdec.benchmarks.design.arm_sets import load_arm_set
from steerdec.benchmarks.operations.sizing import Gpu, Model, Study, cost, rows, step_s

PLAIN = Study(problems=10, samples=10, arms=2, runaway_arms=0, prompt_tokens=0, mean_tokens=1000, sd_tokens=0)


def test_qwen3_8b_by_its_configuration():
    # 36 layers of attention (4096 x (4096 + 1024 + 1024 + 4096)) and MLP (3 x 4096 x 12288), two 151,936 x 4096 ends.
    parameters = 36 * (4096 * 10_240 + 3 * 4096 * 12_288) + 2 * 151_936 * 4096
    assert Model().parameters == pytest.approx(parameters, rel=1e-3)
    assert Model().kv_bytes_per_token == 147_456


def test_the_study_counts_the_arms_of_figure3():
    arms = load_arm_set("figure3").arms
    hot = [a for a in arms if a.name.startswith("N@") and float(a.name[2:]) >= 2]
    assert (Study().arms, Study().runaway_arms) == (len(arms), len(hot))


def test_tokens_are_answers_times_their_length_runaways_at_the_limit():
    study = Study(problems=60, samples=16, arms=4, runaway_arms=1, mean_tokens=100, max_tokens=500)
    assert study.tokens_per_answer == 200
    assert cost(study, 1).tokens == 60 * 16 * 4 * 200


def test_requests_are_met_half_way_and_long_ones_more_often():
    assert PLAIN.context_tokens == 500
    # Half the answers 1 token long and half 1999: seen while they run, nearly all are long ones.
    assert replace(PLAIN, sd_tokens=999).context_tokens == pytest.approx((1 + 1999**2) / 2 / 2000)


def test_by_hand():
    # 100 bytes a token, 500 tokens a request; 1 MB free holds 20 requests; a step reads 10 MB + 1 MB at 1 GB/s.
    model = Model(parameters=5e6, layers=1, kv_heads=1, head_size=25, bytes_per_value=2)
    gpu = Gpu(memory_bytes=11e6, memory_share=1, reserved_bytes=0, bandwidth_bytes_per_s=2e9, bandwidth_share=0.5)
    study = replace(PLAIN, max_tokens=2000)
    found = cost(study, 1, model=model, gpu=replace(gpu, usd_per_hour=3.6), start_s=60)
    assert model.kv_bytes_per_token == 100
    assert found.running == 20
    assert found.tokens_per_s == pytest.approx(20 / 11e-3)
    tail_s = 2000 * (10e6 + 1000 * 100) / 1e9
    assert found.hours * 3600 == pytest.approx(60 + 200_000 / found.tokens_per_s + tail_s)
    assert found.usd == pytest.approx(found.hours * 3.6)


def test_more_gpus_are_faster_and_never_cheaper():
    found = [cost(Study(), n) for n in (1, 8, 64, 512)]
    assert sorted(found, key=lambda c: c.hours, reverse=True) == found
    assert sorted(found, key=lambda c: c.usd) == found
    assert found[1].tokens_per_s == pytest.approx(8 * found[0].tokens_per_s)


def test_requests_at_once_are_no_more_than_there_are():
    assert cost(PLAIN, 100).running == 2


def test_a_step_waits_for_what_it_reads():
    assert step_s(Model(), Gpu(), 0, 0) == pytest.approx(16.38e9 / (3.35e12 * 0.7))
    assert step_s(Model(), Gpu(), 2, 1000) - step_s(Model(), Gpu(), 1, 1000) == pytest.approx(
        1000 * 147_456 / (3.35e12 * 0.7)
    )


@pytest.mark.parametrize(
    ("study", "gpus", "named"),
    [(Study(), 0, "gpus is 0"), (Study(samples=0), 1, "samples is 0"), (Study(problems=-1), 1, "problems is -1")],
)
def test_nothing_to_do_is_refused(study, gpus, named):
    with pytest.raises(ValueError, match=named):
        cost(study, gpus)


def test_a_gpu_that_does_not_hold_one_request_is_refused():
    with pytest.raises(ValueError, match="24 GB cannot hold the weights and a request of 28672 tokens"):
        cost(Study(), 1, gpu=Gpu(memory_bytes=24e9))


def test_the_table_has_a_row_for_each_size():
    assert [(row[0], row[3]) for row in rows((1, 8), (16, 48))] == [("16", "1"), ("16", "8"), ("48", "1"), ("48", "8")]
