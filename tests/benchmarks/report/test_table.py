"""The summary on the terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from steerdec.benchmarks.report.table import print_table
from steerdec.pages import wording
from tests.support.make_run import make_run


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = make_run(tmp_path_factory.mktemp("table") / "run", n_problems=12, k=4)
    value: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return value


def printed(summary: dict[str, Any], width: int = 100, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_table(summary, Console(file=file, width=width))
    file.flush()
    return raw.getvalue().decode(encoding)


def cells(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.strip().startswith(name)).split("  ")


def test_an_arm_stands_in_one_line_with_its_numbers(summary: dict[str, Any]) -> None:
    row = " ".join(cells(printed(summary), "F-down ")).split()
    arm = summary["arms"]["F-down"]
    low, high = (f"{100 * bound:.1f}" for bound in arm["avg_at_k_ci95"])
    rates = [f"{100 * arm['fork_rate']:.1f}%", f"{arm['mean_entropy_nats']:.3f}", f"{arm['mean_tokens']:.0f}"]
    assert row == ["F-down", f"{100 * arm['avg_at_k']:.1f}%", f"[{low},", f"{high}]", *rates, "0.0%", "0"]


def test_an_arm_without_telemetry_shows_dashes_and_failed_requests_their_count(summary: dict[str, Any]) -> None:
    text = printed(summary)
    assert " ".join(cells(text, "B ")).split()[4:6] == ["–", "–"]
    assert cells(text, "N-down ")[-1].strip() == "6"


def test_a_difference_stands_in_one_line_with_both_scopes_and_the_holm_p(summary: dict[str, Any]) -> None:
    line = next(line for line in printed(summary).splitlines() if "F-down − B" in line and "[" in line)
    these, like_these = (r for r in summary["comparisons"] if (r["arm"], r["baseline"]) == ("F-down", "B"))
    for row in (these, like_these):
        assert wording.points_interval(row["ci95"]) in line
    assert wording.points(these["diff"]) in line
    assert line.split()[-1] == wording.p_value(like_these["p_holm"])


def test_the_verdicts_come_last_as_sentences_the_instrument_first(summary: dict[str, Any]) -> None:
    text = " ".join(printed(summary).split())
    at = [text.index(wording.instrument_sentence(summary))]
    at += [text.index(" ".join(wording.claim_sentence(claim).split())) for claim in summary["claims"]]
    assert text.index("Verdicts") < at[0]
    assert at == sorted(at)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_line_is_wider_than_the_terminal(summary: dict[str, Any], width: int) -> None:
    assert max(len(line) for line in printed(summary, width).splitlines()) <= width


def test_nothing_but_text_goes_to_a_file(summary: dict[str, Any]) -> None:
    assert "\x1b" not in printed(summary)


def test_a_console_without_unicode_gets_the_same_numbers(summary: dict[str, Any]) -> None:
    assert "F-down - B" in printed(summary, encoding="ascii")


def test_a_name_that_looks_like_markup_is_printed_as_it_is(summary: dict[str, Any]) -> None:
    arms = {"[red]": summary["arms"]["B"]}
    assert "[red]" in printed(summary | {"arms": arms})


def test_an_unfinished_run_is_called_so(summary: dict[str, Any]) -> None:
    assert "not finished" not in printed(summary)
    arms = {"B": summary["arms"]["B"] | {"missing": 7}}
    assert "The run is not finished: 7 samples are still to be made." in printed(summary | {"arms": arms})


def test_many_cut_answers_are_said_to_be_so_with_what_helps(summary: dict[str, Any]) -> None:
    assert "--max-tokens" not in printed(summary)
    arms = {"B": summary["arms"]["B"] | {"truncation_rate": 0.3}}
    text = " ".join(printed(summary | {"arms": summary["arms"] | arms}).split())
    assert "The token limit cut 30.0% of the answers of B, which count as wrong; with a larger --max-tokens" in text


def test_unknown_numbers_do_not_stop_the_table(summary: dict[str, Any]) -> None:
    nothing = dict.fromkeys(summary["arms"]["B"]) | {"k": 4}
    rows = [row | dict.fromkeys(("diff", "se", "ci95", "p", "p_holm")) for row in summary["comparisons"]]
    text = printed(summary | {"arms": {"B": nothing}, "comparisons": rows})
    assert "–" in text


def test_the_empty_summary_prints() -> None:
    assert "NOT CHECKED" in printed({"arms": {}, "comparisons": [], "claims": [], "instrument": "unchecked"})
