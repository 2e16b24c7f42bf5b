"""Geometry of the charts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from steerdec.pages import charts
from steerdec.pages.forks import Histogram


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_an_axis_holds_every_value_in_order(values: list[float]) -> None:
    axis = charts.axis(values)
    positions = [axis.percent(value) for value in sorted(values)]
    assert axis.lo <= min(values) + 1e-9
    assert max(values) <= axis.hi + 1e-9
    assert positions == sorted(positions)
    assert 0 <= positions[0] <= positions[-1] <= 100


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=80).filter(any))
def test_histogram_bars_stay_in_the_plot_and_rise_with_their_count(counts: list[int]) -> None:
    chart = charts.histogram_chart(Histogram(tuple(counts), sum(counts), 0.5, 0.2), 0.672)
    by_count = sorted(chart.bars, key=lambda bar: bar.count)
    assert [bar.height for bar in by_count] == sorted(bar.height for bar in chart.bars)
    assert all(0 <= bar.height <= chart.height + 0.01 for bar in chart.bars)
    assert all(bar.height > 0 for bar in chart.bars if bar.count)
    assert [bar.lo_nats >= 0.6 for bar in chart.bars if bar.above] == [True] * sum(bar.above for bar in chart.bars)
