"""What `steerdec serve` makes of vLLM's flags, read back by vLLM's own parser, and what it says when it cannot start.

Started is nothing here: `supervise`, which would start a server, keeps the command instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steerdec.cli.main import app
from steerdec.records.calibration import Calibration, CalibrationProblems
from steerdec.server.launch import start
from steerdec.server.launch.flags import whole_number
from steerdec.vllm_plugin.settings import CONFIG_KEY, PROCESSOR
from tests.support.serving import free_port
from tests.support.tiny_lm import tiny_lm
from tests.support.vllm_flags import vllm_parser

Parse = Callable[..., Any]


@pytest.fixture(scope="module")
def parse() -> Parse:
    parser = vllm_parser()
    return lambda command: parser.parse_args(command[command.index("serve") :])


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []
    monkeypatch.setattr(start, "supervise", lambda command, *_: commands.append(command) or 0)
    return commands


def serve(model: Path, *flags: str) -> Any:
    return CliRunner().invoke(app, ["serve", str(model), "--port", str(free_port()), *flags])


def one_line(result: Any, status: int = 1) -> str:
    assert (result.exit_code, result.stdout) == (status, ""), result.output
    (line,) = result.stderr.splitlines()
    return str(line)


@pytest.mark.parametrize(
    "flags",
    [
        *("", "-dp 2", "-dp=2", "--data_parallel_size 2", "-asc 3", "-asc=3", "-dp 4 -asc 3"),
        *("--api-server-count 2 -asc 3", "-asc=3 --api-server-count=2"),
    ],
)
def test_the_lanes_are_split_among_the_front_ends_that_vllm_starts(
    weights: Path, parse: Parse, started: list[list[str]], flags: str
) -> None:
    assert serve(weights, *flags.split()).exit_code == 0
    read = parse(started[0])
    front_ends = read.data_parallel_size if read.api_server_count is None else read.api_server_count
    assert read.additional_config[CONFIG_KEY]["lanes"]["parts"] == front_ends


@pytest.mark.parametrize(
    ("flags", "eager"),
    [
        ("", True),
        ("-pp 1", True),
        ("-pp 2", False),
        ("--pipeline_parallel_size=2", False),
        ("--no-enforce-eager", False),
    ],
)
def test_pipeline_stages_on_a_cpu_are_compiled(
    weights: Path, parse: Parse, started: list[list[str]], flags: str, eager: bool
) -> None:
    """An eager one would not be warmed up, and the first request would kill the engine."""
    assert serve(weights, *flags.split()).exit_code == 0
    assert parse(started[0]).enforce_eager is eager


@pytest.mark.parametrize("length", ["100", "8k", "8K", "5.5k", "0.008m", "8192", "auto", "-1"])
def test_a_prompt_of_any_length_that_is_served_fits_into_one_step_and_one_lane(
    weights: Path, parse: Parse, started: list[list[str]], length: str
) -> None:
    """On a CPU, where prompts are not prefilled in parts: vLLM refuses a step that is too small for them."""
    from vllm.engine.arg_utils import EngineArgs

    assert serve(weights, f"--max-model-len={length}").exit_code == 0
    read = parse(started[0])
    read.model = read.model_tag  # as vLLM's command does
    config = EngineArgs.from_cli_args(read).create_engine_config()
    lanes = read.additional_config[CONFIG_KEY]["lanes"]
    assert lanes["capacity_tokens"] == config.model_config.max_model_len
    assert read.max_num_batched_tokens == max(4096, config.model_config.max_model_len)


@pytest.mark.parametrize(
    "text",
    [
        *("7", "8k", "25.6k", "1.001k", "1K", "2m", "2M", "3g", "3G", "1t", "1T", " 8k "),
        *("1.5K", "1.5", "k", "8kb", "", "auto"),
    ],
)
def test_numbers_are_read_as_vllm_reads_them(text: str) -> None:
    from vllm.utils.argparse_utils import human_readable_int

    try:
        expected = human_readable_int(text)
    except (ValueError, argparse.ArgumentTypeError):
        expected = None
    assert whole_number(text) == expected


BAD_CONFIGS = {
    '{"a": 1,}': "cannot be read as JSON (Expecting property name",
    "": "cannot be read as JSON (Expecting value",
    "[1]": "is not a JSON object",
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_a_bad_config_json_is_named(tmp_path: Path, started: list[list[str]], text: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(text)
    line = one_line(serve(tmp_path, "--max-model-len", "auto"))
    assert line.startswith(f"steerdec: {config}: {BAD_CONFIGS[text]}")
    assert started == []


def test_a_config_json_that_cannot_be_read_is_not_taken_for_a_lack_of_room(
    tmp_path: Path, started: list[list[str]]
) -> None:
    config = tmp_path / "config.json"
    config.symlink_to("/proc/self/mem")  # whose first byte cannot be read by anybody, root included
    line = one_line(serve(tmp_path, "--max-model-len", "auto"))
    assert line == f"steerdec: {config}: cannot be read as JSON (Input/output error)"
    assert started == []


def test_a_lack_of_room_for_telemetry_is_said(weights: Path, started: list[list[str]]) -> None:
    line = one_line(serve(weights, "--max-model-len", "1000t"))
    assert line.startswith("steerdec: no room for telemetry: /dev/shm has ")
    assert line.endswith("or lower --max-model-len")
    assert started == []


def test_a_calibration_too_long_for_a_command_says_what_to_give_instead(weights: Path, tmp_path: Path) -> None:
    """The real start, which Linux refuses. The server needs the hashes: `bench run` asks it for them."""
    hashes = tuple(f"{i:016x}" for i in range(200_000))
    stored = Calibration(
        model="m",
        tokens=1,
        quantiles_nats={"p80": 0.7},
        p80_ci95=(0.6, 0.8),
        share_below_0_01=0.5,
        problems=CalibrationProblems(name="p", hash="h", problem_hashes=hashes),
        created="2026-11-28",
    )
    calibration = tmp_path / "calibration.json"
    calibration.write_text(stored.model_dump_json())
    line = one_line(serve(weights, "--threshold", str(calibration)))
    assert line.startswith("steerdec: vLLM's server cannot be started: Argument list too long, the longest has 4,0")
    assert line.endswith("if --threshold is a calibration of more than 6,000 problems, give its number of nats instead")


@pytest.mark.parametrize("context_tokens", [512, 4095, 4096, 4097])
def test_a_model_of_any_context_starts_on_a_cpu(
    tmp_path: Path, parse: Parse, started: list[list[str]], context_tokens: int
) -> None:
    """vLLM refuses a --max-model-len above the model's own."""
    from vllm.engine.arg_utils import EngineArgs

    assert serve(tiny_lm(tmp_path, context_tokens=context_tokens)).exit_code == 0
    read = parse(started[0])
    read.model = read.model_tag
    config = EngineArgs.from_cli_args(read).create_engine_config()
    assert config.model_config.max_model_len == min(context_tokens, 4096)
    assert read.additional_config[CONFIG_KEY]["lanes"]["capacity_tokens"] == min(context_tokens, 4096)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", ""], "--host: must not be empty"),
        (["--host", " "], "--host: must not be empty"),
        (["--steering", ""], "--steering: '' is neither a JSON object nor a readable file"),
        (["--steering", '{"forks": 1}'], "--steering: steering.forks: "),
        (["--steering", '{"select": "random", "fork_rate": 0.2}'], "--steering: steering.select: "),
        (["--threshold", "-1"], "--threshold: "),
        (["--threshold", "nan"], "--threshold: "),
        (["--threshold", "/no/such/file"], "--threshold: "),
        (["--threshold", "TEXT"], "--threshold: "),
        (["--threshold", "{}"], "--threshold: "),
        (["--port", "0"], "Invalid value for '--port'"),
        (["--port", "x"], "Invalid value for '--port'"),
        (["--max-model", "9"], "--max-model: write the flag's name in full"),
        (["--enable_chunked_prefill"], "--enable-chunked-prefill: on a CPU"),
        (["-pp", "2", "--enforce-eager"], "--enforce-eager: with --pipeline-parallel-size on a CPU"),
        (
            ["--speculative_config", '{"method": "ngram", "rejection_sample_method": "synthetic"}'],
            "--speculative-config: rejection_sample_method 'synthetic' may keep a draft token",
        ),
        (["-sc.rejection_sample_method", "fly"], "--speculative-config: rejection_sample_method 'fly' may keep"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_option(
    weights: Path, tmp_path: Path, started: list[list[str]], arguments: list[str], words: str
) -> None:
    if "TEXT" in arguments:
        (tmp_path / "text").write_text("0.7 nats")
        arguments = ["--threshold", str(tmp_path / "text")]
    port = [] if "--port" in arguments else ["--port", str(free_port())]
    result = CliRunner().invoke(app, ["serve", str(weights), *port, *arguments])
    assert started == []
    if "--port" in arguments:  # typer's own, which the command prints in one line
        assert words in str(result.exception) or words in result.output
        return
    line = one_line(result, 2)
    assert line.startswith(f"steerdec: {words}")


@pytest.mark.parametrize("method", ["standard", "block"])
def test_exact_rejection_of_drafts_starts(weights: Path, parse: Parse, started: list[list[str]], method: str) -> None:
    for flags in (
        ["-sc", f'{{"method": "ngram", "rejection_sample_method": "{method}"}}'],
        ["--speculative-config.method", "ngram", "--speculative_config.rejection_sample_method", method],
    ):
        assert serve(weights, *flags).exit_code == 0
        assert parse(started.pop()).speculative_config == {"method": "ngram", "rejection_sample_method": method}


def test_flags_of_the_user_are_kept_beside_ours(weights: Path, parse: Parse, started: list[list[str]]) -> None:
    """Each of these once started a server that steered nothing, or said so."""
    steering = ["--steering", '{"fork_temperature": 1.2, "telemetry": "tokens"}', "--threshold", "0.3"]
    for flags in (
        ["--additional_config", '{"x": 1}'],
        ["--additional-config.x", "1"],
        ["--additional-config", '{"y": 1}', "--additional-config", '{"x": 1}'],
    ):
        assert serve(weights, *steering, *flags, "--logits_processors", "my.module:X").exit_code == 0
        read = parse(started.pop())
        entry = read.additional_config.pop(CONFIG_KEY)
        assert read.additional_config == {"x": 1}
        assert entry["threshold_nats"] == 0.3
        assert entry["http_default"]["fork_temperature"] == 1.2
        assert read.logits_processors == [PROCESSOR, "my.module:X"]
