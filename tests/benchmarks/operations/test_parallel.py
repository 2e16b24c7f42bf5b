"""What each engine of a data-parallel server did, from vLLM's page of metrics."""

from __future__ import annotations

from steerdec.benchmarks.operations.parallel import tokens_by_engine

PAGE = """# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="small"} 1200.0
vllm:generation_tokens_total{engine="1",model_name="small"} 0.0
vllm:prompt_tokens_total{engine="2",model_name="small"} 7.0
"""


def test_each_engine_with_its_tokens_also_the_idle_one():
    assert tokens_by_engine(PAGE) == {"0": 1200, "1": 0}


def test_a_page_without_vllms_metrics_names_no_engine():
    assert tokens_by_engine("up 1\n") == {}
