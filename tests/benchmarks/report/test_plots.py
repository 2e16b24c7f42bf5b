"""Geometry of the forest plot and of the dose curves."""

from __future__ import annotations

import pytest

from steerdec.benchmarks.report import doses, plots
from steerdec.benchmarks.report.run_folder import RunFolder, read_run
from tests.support.make_run import make_run


@pytest.fixture(scope="module")
def figure3(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return read_run(make_run(tmp_path_factory.mktemp("figure3") / "run", arm_set="figure3", n_problems=6, k=2))


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return read_run(make_run(tmp_path_factory.mktemp("causal") / "run", arm_set="causal", n_problems=6, k=2))


def test_the_forest_holds_each_pair_once_with_zero_and_the_band_on_the_axis(causal: RunFolder) -> None:
    forest = plots.forest_of_run(causal.summary)
    assert len(forest.rows) == len({(row.arm, row.baseline) for row in causal.summary.comparisons})
    assert forest.series == ("these problems", "problems like these")
    assert forest.band is not None
    assert 0 <= forest.band[0] < forest.zero < forest.band[1] <= 100
    for row in forest.rows:
        for mark in row.marks:
            assert mark is not None
            assert mark.at is not None
            assert mark.comparison.diff is not None
            assert (mark.at < forest.zero) == (mark.comparison.diff < 0) or mark.at == forest.zero
            assert mark.lo is None or mark.hi is None or mark.lo <= mark.at <= mark.hi


def test_figure3_gives_both_curves_over_the_papers_temperatures(figure3: RunFolder) -> None:
    curves = doses.dose_curves(figure3.settings, figure3.summary)
    assert curves is not None
    for points in (curves.forks, curves.others):
        assert tuple(point.temperature for point in points) == doses.PAPER_TEMPERATURES
        assert [point.arm for point in points if point.temperature == 1.0] == ["B"]
    assert [point.arm for point in curves.others][:2] == ["N@0", "N@0.05"]
    chart = plots.dose_chart(curves)
    assert len(chart.temperatures) == 8
    highest = max(chart.forks, key=lambda mark: mark.point.value)
    assert highest.y == min(mark.y for mark in chart.forks)


def test_placebo_global_and_matched_arms_are_on_no_dose_curve(causal: RunFolder) -> None:
    curves = doses.dose_curves(causal.settings, causal.summary)
    assert curves is not None
    assert {point.arm for point in curves.forks} == {"B", "F-up", "F-down"}
    assert {point.arm for point in curves.others} == {"B", "N-up", "N-down"}


def test_two_doses_are_no_curve(causal: RunFolder) -> None:
    arms = tuple(arm for arm in causal.settings.arms.arms if arm.name in ("B", "A/A", "F-up"))
    fewer = causal.settings.arms.model_copy(update={"arms": arms})
    assert doses.dose_curves(causal.settings.model_copy(update={"arms": fewer}), causal.summary) is None


def test_the_papers_labels_are_the_fifteen_printed_ones() -> None:
    assert len(doses.PAPER_LABELS_PERCENT) == 15
    assert (max(doses.PAPER_LABELS_PERCENT), min(doses.PAPER_LABELS_PERCENT)) == (72.22, 0.14)
    assert sum(doses.PAPER_LABELS_PERCENT) == pytest.approx(931.01)


def test_undisturbed_entropies_come_from_an_arm_at_the_base_temperature(causal: RunFolder) -> None:
    assert doses.reference_arm(causal.settings, ["F-up", "A/A"]) == "A/A"
    assert doses.reference_arm(causal.settings, ["F-up", "N-up"]) == "F-up"
    assert doses.reference_arm(causal.settings, []) is None
