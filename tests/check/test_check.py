"""`steerdec check`: what passes, what falls short, and how it is said. whole_check.py runs it whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from steerdec.check import parity, run
from steerdec.check.part import Reporter, Settings
from steerdec.check.report import as_json, summary
from steerdec.check.results import Result, at_least, at_most, judged, not_applicable
from steerdec.cli.check import check
from steerdec.kernels import dispatch
from steerdec.policies.split.fields import FORK_FACTOR, FORK_T
from steerdec.steering import encoding
from tests.support.tiny_lm import tiny_lm

QUICK = Settings(model=None, vllm_flags=[], quick=True)


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    return Reporter(tmp_path / "results", QUICK)


# The engine's part ---------------------------------------------------------------------------------


def test_tokens_at_the_end_of_a_nucleus_are_not_compared() -> None:
    """Of three equal logits one is in the nucleus; a model in bfloat16 made the check fail for having another one."""
    from steerdec.check.distribution import at_the_edge, truncated

    z = torch.tensor([0.5, 0.1, 0.2, 0.1, 0.1], dtype=torch.float64).log()
    assert at_the_edge(z, 0.75).tolist() == [False, True, False, True, True]
    assert [bool(p) for p in truncated(z, 0.75)] == [True, True, True, False, False]
    assert at_the_edge(z, 0.69995).tolist() == [False, True, False, True, True]  # 0.7 is within rounding of it
    assert not at_the_edge(torch.zeros(3, dtype=torch.float64), 0.9).any()  # all are in
    assert not at_the_edge(z, 1.0).any()


def test_kernels_of_steering_that_are_compiled_late_are_noted_and_others_are_not() -> None:
    """No GPU compiles here, so Triton's hook is called as Triton calls it; vLLM's own hook has to be called too."""
    knobs = pytest.importorskip("triton").knobs
    from steerdec.check.counting import compilations

    calls: list[str] = []
    late: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **about: calls.append(about["fn"].name))
        with compilations(late):
            for module, name in (("steerdec.kernels.triton", "measure"), ("vllm.v1.worker.gpu.sample.gumbel", "other")):
                knobs.runtime.jit_post_compile_hook(fn=SimpleNamespace(module=module, name=name))
    assert (late, calls) == (["measure"], ["measure", "other"])


# The kernel's part --------------------------------------------------------------------------------


def compared(reporter: Reporter) -> tuple[Result, Result]:
    same, untouched = parity.results(reporter, torch.device("cpu"), 1500)
    return same, untouched


def test_the_kernel_is_as_the_reference(reporter: Reporter) -> None:
    same, untouched = compared(reporter)
    assert (same.status, untouched.status) == ("pass", "pass"), same.measured
    assert same.figures["rows"] > 200


def factors_swapped(floats: torch.Tensor, ints: torch.Tensor) -> None:
    floats[:, [FORK_FACTOR, encoding.OTHER_FACTOR]] = floats[:, [encoding.OTHER_FACTOR, FORK_FACTOR]]


def threshold_off(floats: torch.Tensor, ints: torch.Tensor) -> None:
    floats[:, encoding.THRESHOLD] += 0.3


def temperature_off(floats: torch.Tensor, ints: torch.Tensor) -> None:
    for column in (FORK_T, encoding.OTHER_T):
        floats[:, column] *= 1.001


def other_hash(floats: torch.Tensor, ints: torch.Tensor) -> None:
    ints[:, encoding.KEY] += 1


@pytest.mark.parametrize("defect", [factors_swapped, threshold_off, temperature_off, other_hash])
def test_a_defect_of_the_kernel_fails(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch, defect: Callable[[torch.Tensor, torch.Tensor], None]
) -> None:
    right = dispatch.steer_

    def steer_(logits: torch.Tensor, floats: torch.Tensor, ints: torch.Tensor, *rest: Any) -> Any:
        floats, ints = floats.clone(), ints.clone()
        defect(floats, ints)
        return right(logits, floats, ints, *rest)

    monkeypatch.setattr(dispatch, "steer_", steer_)
    same, untouched = compared(reporter)
    assert (same.status, untouched.status) == ("FAIL", "pass"), same.measured


def test_a_kernel_that_writes_beside_its_rows_fails(reporter: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    right = dispatch.steer_

    def steer_(logits: torch.Tensor, *rest: Any) -> Any:
        logits.as_strided((1,), (1,), logits.shape[1]).fill_(0.0)  # what lies after the first row
        return right(logits, *rest)

    monkeypatch.setattr(dispatch, "steer_", steer_)
    _, untouched = compared(reporter)
    assert untouched.status == "FAIL"


# Judging ------------------------------------------------------------------------------------------


def test_an_interval_that_contains_the_limit_is_undecided() -> None:
    assert [at_least(0.99, i) for i in ((0.991, 1.0), (0.98, 1.0), (0.9, 0.98))] == ["pass", "undecided", "FAIL"]
    assert [at_most(1.2, i) for i in ((0.9, 1.1), (0.9, 1.3), (1.3, 1.4))] == ["pass", "undecided", "FAIL"]


def test_a_check_that_breaks_is_named_and_the_others_go_on(reporter: Reporter, tmp_path: Path) -> None:
    def broken() -> Any:
        yield judged("first", "1", "1", True)
        raise ZeroDivisionError("a\nb")

    reporter.run(("first", "second"), broken)
    reporter.run(("third",), lambda: [judged("third", "1", "1", True)])
    lines = [json.loads(line)["result"] for line in (tmp_path / "results").read_text().splitlines()]
    found = [(line["check"], line["status"]) for line in lines]
    assert found == [("first", "pass"), ("second", "FAIL"), ("third", "pass")]
    assert lines[1]["measured"] == "ZeroDivisionError: a b"


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """The lines that each part writes, in place of what it would measure."""
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in run.CHECKS}

    def run_part(name: str, checks: Any, settings: Any, environment: Any, log: Any, announce: Any, *rest: Any) -> None:
        left, report = list(checks), rest[-1]
        for line in lines[name]:
            run._take(line, left, announce, report)
        report.results += [not_applicable(check, "") for check in left]

    monkeypatch.setattr(run, "_run_part", run_part)
    return lines


def command(*arguments: str) -> Any:
    app = typer.Typer()
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(check)
    return CliRunner().invoke(app, list(arguments))


def test_the_exit_status_says_whether_anything_fell_short(
    tmp_path: Path, parts: dict[str, list[dict[str, Any]]]
) -> None:
    model, out = str(tiny_lm(tmp_path / "tiny")), tmp_path / "check.json"
    name = run.CHECKS["kernel"][0]
    for status, passed in ((0, True), (1, False)):
        parts["kernel"] = [{"result": judged(name, "measured", "limit", passed).model_dump()}]
        done = command(model, "--out", str(out), "--dtype", "float32")
        assert done.exit_code == status, done.output
        written = json.loads(out.read_text())
        assert written["passed"] is passed
        assert written["vllm_flags"] == ["--dtype", "float32"]
        assert written["checks"][0]["check"] == name
        assert (f"steerdec check: {name}: measured; must be: limit" in done.stderr) is not passed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "/no/such/folder/check.json"], "--out: /no/such/folder is not a folder"),
        (["--speculative-config", '{"rejection_sample_method": "fly"}'], "--speculative-config: rejection_sample"),
        (["--max-model", "9"], "--max-model: write the flag's name in full"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    tmp_path: Path, parts: dict[str, list[dict[str, Any]]], arguments: list[str], words: str
) -> None:
    done = command(str(tiny_lm(tmp_path / "tiny")), *arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert done.stderr.splitlines()[-1].startswith(f"steerdec: {words}")


def test_flags_that_vllm_refuses_are_wrong_usage(tmp_path: Path, parts: dict[str, list[dict[str, Any]]]) -> None:
    parts["engine"] = [{"usage": "--no-such-flag: not a flag of vLLM's engine"}]
    done = command(str(tiny_lm(tmp_path / "tiny")), "--no-such-flag")
    assert done.exit_code == 2, done.output
    assert done.stderr.splitlines()[-1] == "steerdec: --no-such-flag: not a flag of vLLM's engine"


def test_a_part_that_dies_fails_its_checks_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    report = run.Report()
    monkeypatch.setattr(run, "as_arguments", lambda *_: ["no such part"])
    stop_at_s = time.monotonic() + 60
    run._run_part("kernel", ("a", "b"), QUICK, run.os.environ, tmp_path / "log", said.append, stop_at_s, report)
    assert [(result.check, result.status) for result in report.results] == [("a", "FAIL"), ("b", "FAIL")]
    assert report.results[0].measured == "not enough values to unpack (expected 3, got 1)"
    assert said == [f"kernel: {report.results[0].measured}"]


def test_the_summary_counts_and_the_file_names_the_machine() -> None:
    report = run.Report([judged("a", "", "", True), not_applicable("b", "why")], {"device": "a GPU"})
    assert summary(report) == "2 checks: 1 passed, 1 not applicable"
    assert as_json(report, QUICK, 1.0)["machine"] == {"device": "a GPU"}
