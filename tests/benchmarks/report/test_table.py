"""The summary on the terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from steerdec.benchmarks.report import sentences
from steerdec.benchmarks.report.table import print_table
from steerdec.pages import wording
from steerdec.records.summary import Summary, read_summary
from tests.support.make_run import make_run


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return read_summary(make_run(tmp_path_factory.mktemp("table") / "run", n_problems=12, k=4) / "summary.json")


def with_arm(summary: Summary, name: str, **changes: Any) -> Summary:
    arms = summary.arms | {name: summary.arms["B"].model_copy(update=changes)}
    return summary.model_copy(update={"arms": arms})


def printed(summary: Summary, width: int = 100, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_table(summary, Console(file=file, width=width))
    file.flush()
    return raw.getvalue().decode(encoding)


def cells(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.strip().startswith(name)).split("  ")


def test_an_arm_stands_in_one_line_with_its_numbers(summary: Summary) -> None:
    row = " ".join(cells(printed(summary), "F-down ")).split()
    arm = summary.arms["F-down"]
    low, high = (f"{100 * bound:.1f}" for bound in arm.avg_at_k_ci95 or ())
    rates = [f"{100 * arm.fork_rate:.1f}%", f"{arm.mean_entropy_nats:.3f}", f"{arm.mean_tokens:.0f}"]
    assert row == ["F-down", f"{100 * arm.avg_at_k:.1f}%", f"[{low},", f"{high}]", *rates, "0.0%", "0"]


def test_an_arm_without_telemetry_shows_dashes_and_failed_requests_their_count(summary: Summary) -> None:
    text = printed(summary)
    assert " ".join(cells(text, "B ")).split()[4:6] == ["–", "–"]
    assert cells(text, "N-down ")[-1].strip() == "6"


def test_a_difference_stands_in_one_line_with_both_scopes_and_the_holm_p(summary: Summary) -> None:
    line = next(line for line in printed(summary).splitlines() if "F-down − B" in line and "[" in line)
    these, like_these = (r for r in summary.comparisons if (r.arm, r.baseline) == ("F-down", "B"))
    for row in (these, like_these):
        assert wording.points_interval(row.ci95) in line
    assert wording.points(these.diff) in line
    assert line.split()[-1] == wording.p_value(like_these.p_holm)


def test_the_verdicts_come_last_as_sentences_the_instrument_first(summary: Summary) -> None:
    text = " ".join(printed(summary).split())
    at = [text.index(sentences.instrument_sentence(summary))]
    at += [text.index(" ".join(sentences.claim_sentence(claim).split())) for claim in summary.claims]
    assert text.index("Verdicts") < at[0]
    assert at == sorted(at)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_line_is_wider_than_the_terminal(summary: Summary, width: int) -> None:
    assert max(len(line) for line in printed(summary, width).splitlines()) <= width


def test_nothing_but_text_goes_to_a_file(summary: Summary) -> None:
    assert "\x1b" not in printed(summary)


def test_a_console_without_unicode_gets_the_same_numbers(summary: Summary) -> None:
    assert "F-down - B" in printed(summary, encoding="ascii")


def test_a_claim_stands_in_one_line_with_its_verdict_difference_and_claimed_sign(summary: Summary) -> None:
    claim = next(claim for claim in summary.claims if claim.arm == "F-down")
    line = next(line for line in printed(summary).splitlines() if "F-down − B" in line and claim.verdict in line)
    assert wording.points(claim.diff) in line
    assert wording.points_interval(claim.ci95) in line
    assert line.split()[-2:] == ["<", "0"]


def test_a_name_that_looks_like_markup_is_printed_as_it_is(summary: Summary) -> None:
    assert "[red]" in printed(with_arm(summary, "[red]"))


def test_an_unfinished_run_is_called_interim(summary: Summary) -> None:
    assert "Interim" not in printed(summary)
    text = " ".join(printed(with_arm(summary, "B", missing=7)).split())
    assert "Interim: this run is not finished; 7 samples are missing." in text
    assert "Verdicts so far" in text


def test_many_truncated_answers_are_said_to_be_so_with_what_helps(summary: Summary) -> None:
    assert "--max-tokens" not in printed(summary)
    text = " ".join(printed(with_arm(summary, "B", truncation_rate=0.3)).split())
    assert "The token limit cut off 30.0% of the answers of B, which count as wrong; with a larger --max-tokens" in text


def test_arms_that_box_their_answers_less_often_are_named(summary: Summary) -> None:
    everybody = {name: arm.model_copy(update={"unboxed_rate": 0.1}) for name, arm in summary.arms.items()}
    alike = summary.model_copy(update={"arms": everybody})
    assert "no box" not in printed(alike)
    text = " ".join(printed(with_arm(alike, "F-up", unboxed_rate=0.25)).split())
    assert "Of the complete answers of F-up, 25.0% have no box, of B 10.0%: part of a difference in scores may" in text


def test_unknown_numbers_do_not_stop_the_table(summary: Summary) -> None:
    fields = ("avg_at_k", "avg_at_k_ci95", "fork_rate", "mean_entropy_nats", "mean_tokens", "truncation_rate")
    nothing = with_arm(summary, "B", **dict.fromkeys(fields))
    rows = [row.model_copy(update=dict.fromkeys(("diff", "se", "ci95", "p", "p_holm"))) for row in summary.comparisons]
    assert "–" in printed(nothing.model_copy(update={"comparisons": tuple(rows)}))


def test_the_empty_summary_prints() -> None:
    assert "NOT CHECKED" in printed(Summary(arms={}, comparisons=(), claims=(), instrument="unchecked"))
