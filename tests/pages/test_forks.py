"""What the per-token lists show."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerdec.pages import forks
from steerdec.pages.forks import TokenTrace as Trace

entropies = st.lists(st.one_of(st.none(), st.floats(0, 12)), min_size=1, max_size=60)


def trace(text: list[str], arm: str = "A/A", entropy: list[float | None] | None = None, **changes: Any) -> Trace:
    nats = tuple(entropy or [0.0] * len(text))
    fields: dict[str, Any] = {
        "problem_id": "p",
        "arm": arm,
        "sample": 0,
        "entropy_nats": nats,
        "fork": tuple(h is not None and h > 0.6 for h in nats),
        "token_text": tuple(text),
        "answer": None,
        "grade": "correct",
    }
    return Trace(**(fields | changes))


@settings(deadline=None)
@given(entropies, st.floats(0, 5))
def test_a_histogram_holds_every_finite_entropy_once(values: list[float | None], threshold_nats: float) -> None:
    found = forks.histogram([trace(["a"] * len(values), entropy=values)], threshold_nats)
    finite = [h for h in values if h is not None]
    if not finite:
        assert found is None
        return
    assert found is not None
    assert sum(found.counts) == found.tokens == len(finite)
    assert found.share_above_threshold == pytest.approx(sum(h > threshold_nats for h in finite) / len(finite))
    assert found.counts[-1] > 0


def test_an_entropy_on_a_bin_edge_lies_in_the_bin_above_it() -> None:
    found = forks.histogram([trace(["a"] * 3, entropy=[0.1, 0.3, 0.7])], 0.6)
    assert found is not None
    assert [i for i, count in enumerate(found.counts) if count] == [1, 3, 7]


def test_fork_tokens_are_counted_by_entropy_and_not_by_a_random_mask() -> None:
    one = trace(["So", "x", "So", "So"], entropy=[1.0, 2.0, 0.1, 2.0], fork=(False, False, True, False))
    assert forks.frequent_fork_tokens([one], 0.6) == [
        forks.ForkToken("So", forks=2, occurrences=3, mean_entropy_nats=1.5),
        forks.ForkToken("x", forks=1, occurrences=1, mean_entropy_nats=2.0),
    ]


@settings(deadline=None)
@given(st.lists(st.sampled_from("ab"), max_size=40), st.lists(st.sampled_from("ab"), max_size=40))
def test_the_first_difference_is_where_the_common_prefix_ends(a: list[str], b: list[str]) -> None:
    pair = forks.pair_of_traces([trace(["<", *a]), trace(["<", *b], arm="F-up")], "A/A")
    assert pair is not None
    at = pair.first_difference
    if at is None:
        assert a == b
    else:
        assert ["<", *a][:at] == ["<", *b][:at]
        assert ["<", *a][at : at + 1] != ["<", *b][at : at + 1]


@pytest.mark.parametrize("length", [1, 59, 60, 61, 500, 5000])
@pytest.mark.parametrize("at", [0, 60, 130, 499, 4999])
def test_a_cut_trace_accounts_for_every_token_and_shows_the_difference(length: int, at: int) -> None:
    other = [str(i) if i != at else "!" for i in range(length)]
    pair = forks.pair_of_traces([trace([str(i) for i in range(length)]), trace(other, arm="F-up")], "A/A")
    assert pair is not None
    assert pair.right is not None
    for shown in (pair.left, pair.right):
        assert sum(run if isinstance(run, int) else len(run) for run in shown.runs) == length
        marked = [token for run in shown.runs if not isinstance(run, int) for token in run if token.first_difference]
        assert len(marked) == (at < length)
    assert len(str(pair.left.runs)) < 80_000


def test_the_pair_is_the_first_in_order_and_of_one_sample() -> None:
    a, b = trace(["x"], sample=1), trace(["y"], arm="N-up", sample=1)
    pair = forks.pair_of_traces([trace(["z"], arm="F-up", sample=2), a, b, trace(["w"], arm="F-down", sample=1)], "A/A")
    assert pair is not None
    assert pair.right is not None
    assert (pair.sample, pair.left.arm, pair.right.arm) == (1, "A/A", "N-up")


def test_a_trace_without_a_partner_stands_alone_and_one_without_text_not_at_all() -> None:
    alone = forks.pair_of_traces([trace(["x"])], "A/A")
    assert alone is not None
    assert alone.right is None
    assert forks.pair_of_traces([trace(["x"], token_text=None)], "A/A") is None
