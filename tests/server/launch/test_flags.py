"""Any order, spelling and repetition of flags gives what vLLM's own parser makes of them, plus ours, or a refusal."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steerdec.server.launch.command import CPU_FLAGS, Launch, plan
from steerdec.server.launch.errors import LaunchError
from steerdec.server.launch.flags import NAMES, parse
from steerdec.telemetry.lanes import LaneFile
from steerdec.vllm_plugin.settings import CONFIG_KEY, PROCESSOR
from tests.support.tiny_lm import tiny_lm
from tests.support.vllm_flags import vllm_parser

LANES = LaneFile("/dev/shm/none", 8)
STEERING = {"fork_temperature": 1.2, "telemetry": "tokens"}

VALUES = {
    "--max-model-len": ["256", "1k", "1K", "auto", "-1", "None", "x", ""],
    "--max-num-batched-tokens": ["8192", "8k", "x"],
    "--gpu-memory-utilization": ["0.5", "1"],
    "--block-size": ["16", "64"],
    "--shutdown-timeout": ["3", "0", "1.5"],
    "--api-server-count": ["1", "3", "0", "x"],
    "-asc": ["2"],
    "--data-parallel-size": ["2", "4"],
    "-dp": ["2"],
    "--data-parallel-size-local": ["2"],
    "-dpl": ["1"],
    "--data-parallel-rank": ["0"],
    "--data-parallel-start-rank": ["0"],
    "--additional-config": ['{"x": 1}', '{"x": {"y": [1]}}', "[1]", "{", "", '{"steerdec": {}}', "null"],
    "--served-model-name": ["mine", "a b"],
    "--logits-processors": ["my.module:A", "my.module:A my.module:B", PROCESSOR, f"my.module:A {PROCESSOR}"],
    # flags that the launcher knows nothing of
    "--seed": ["3", "-1"],
    "--max-logprobs": ["-1"],
    "--dtype": ["float32"],
    "--chat-template-content-format": ["string"],
    "--override-generation-config": ['{"temperature": 0.5}'],
    "--middleware": ["my.Middleware"],
    "--api-key": ["a", "a b"],
    "-tp": ["1"],
}
SWITCHES = (
    *("--enforce-eager", "--no-enforce-eager", "--no-enable-chunked-prefill", "--enable-chunked-prefill"),
    *("--data-parallel-external-lb", "-dph", "--data-parallel-multi-port-external-lb", "--grpc"),
    *("--trust-remote-code", "--no-enable-prefix-caching", "--headless", "-O3"),
)
DOTTED = (
    *("--additional-config.x", "--additional_config.x.y", "--additional-config.z+", "--additional-config.n"),
    *("--max-model-len.x", "--compilation-config.mode"),
)
STRAYS = ("stray", "-0.5", "--", "-1", "--config", "--no-such-flag")


@st.composite
def written(draw: st.DrawFn) -> list[str]:
    """One flag in one of its spellings, or something that is none."""
    kind = draw(st.sampled_from(["value"] * 8 + ["switch"] * 3 + ["dotted"] * 2 + ["stray"]))
    if kind == "stray":
        return [draw(st.sampled_from(STRAYS))]
    if kind == "dotted":
        name, value = draw(st.sampled_from(DOTTED)), draw(st.sampled_from(["1", "a,b", '{"q": 2}', "1k", "text"]))
    elif kind == "switch":
        name, value = draw(st.sampled_from(SWITCHES)), ""
    else:
        name = draw(st.sampled_from(sorted(VALUES)))
        value = draw(st.sampled_from(VALUES[name]))
    if draw(st.integers(0, 14)) == 0 and len(name) > 4:
        name = name[: draw(st.integers(3, len(name) - 1))]
    dashes = [i for i, letter in enumerate(name) if letter == "-" and i > 1]
    for i in draw(st.sets(st.sampled_from(dashes))) if dashes else ():
        name = f"{name[:i]}_{name[i + 1 :]}"
    if kind == "switch":
        return [name]
    if name.replace("_", "-") in ("--served-model-name", "--logits-processors", "--api-key"):
        return [name, *value.split()]
    return [f"{name}={value}"] if draw(st.booleans()) else [name, value]


CONFIGS = (
    {"max-model-len": 512, "enforce-eager": False},
    {"additional-config": {"of_file": 1}, "logits-processors": ["of.file:P"]},
    {"additional_config": {"of_file": 1}, "api_server_count": 2, "enable-chunked-prefill": True},
    {"host": "127.0.0.2", "port": 9000, "block-size": 64, "enforce-eager": True},
    {"data-parallel-size": 2, "served-model-name": ["one", "two"], "seed": 7, "trust-remote-code": True},
    {"max-mod": 5},
)


@pytest.fixture(scope="module")
def parser() -> Any:
    logging.getLogger("vllm").setLevel(logging.ERROR)  # it warns of every repetition
    return vllm_parser()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("tiny"))


def read(parser: Any, command: list[str]) -> argparse.Namespace | None:
    """What vLLM makes of a command, None where it refuses it."""
    try:
        namespace: argparse.Namespace = parser.parse_args(command)
    except (SystemExit, ValueError, AssertionError, IndexError, AttributeError, argparse.ArgumentError):
        return None
    return namespace


def ours(parser: Any, model: str, flags: list[str], *, on_cpu: bool) -> tuple[argparse.Namespace, list[str]] | None:
    try:
        command = plan(Launch(model, steering=STEERING, vllm_flags=flags), parse(flags), on_cpu=on_cpu).command(LANES)
    except LaunchError:
        return None
    namespace = read(parser, command[command.index("serve") :])
    return None if namespace is None else (namespace, command)


@given(flags=st.lists(written(), max_size=6), config=st.none() | st.sampled_from(CONFIGS), data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_the_engine_gets_the_users_settings_and_ours(
    parser: Any, model: Path, tmp_path: Path, on_cpu: bool, flags: list[list[str]], config: Any, data: Any
) -> None:
    if config is not None:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        joined = data.draw(st.booleans())
        place = data.draw(st.integers(0, len(flags)))
        flags = [*flags[:place], [f"--config={file}"] if joined else ["--config", str(file)], *flags[place:]]
        if joined:  # vLLM drops the file in silence; it means what it says
            theirs = read(parser, ["serve", str(model), *flags_of([*flags[:place], *flags[place + 1 :]], file)])
        else:
            theirs = read(parser, ["serve", str(model), *flags_of(flags)])
    else:
        theirs = read(parser, ["serve", str(model), *flags_of(flags)])
    started = ours(parser, str(model), flags_of(flags), on_cpu=on_cpu)
    if started is None:
        return
    assert theirs is not None, "vLLM refuses this, so it must not start"
    got, command = started
    defaults = read(parser, ["serve", str(model)])
    entry = got.additional_config.pop(CONFIG_KEY)
    assert {name: entry["http_default"][name] for name in STEERING} == STEERING
    assert got.additional_config == (theirs.additional_config or {})
    assert got.logits_processors[0] == PROCESSOR
    assert got.logits_processors[1:] == [p for p in theirs.logits_processors or [] if p != PROCESSOR]
    assert got.model_tag == str(model)
    assert (got.host, got.port) == (theirs.host or "127.0.0.1", theirs.port)
    left_out = {"additional_config", "logits_processors", "host", "config"}
    for name, value in vars(theirs).items():
        if name in left_out or getattr(got, name) == value:
            continue
        assert on_cpu, name
        flag = "--" + name.replace("_", "-")
        assert value == getattr(defaults, name), f"{flag} was given as {value}, and is {getattr(got, name)}"
        assert flag in CPU_FLAGS or name in ("enable_chunked_prefill", "max_num_batched_tokens")
    parts = entry["lanes"]["parts"]
    if theirs.api_server_count is not None:
        assert parts == max(1, theirs.api_server_count)
    assert [part for part in command if not isinstance(part, str)] == []


def flags_of(flags: list[list[str]], config: Path | None = None) -> list[str]:
    flat = [part for flag in flags for part in flag]
    return flat if config is None else ["--config", str(config), *flat]


def test_no_shortened_name_of_ours_is_a_flag_of_vllm(parser: Any) -> None:
    """Shortened names are refused, so none of them may be another flag's full name."""
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    known = set(commands.choices["serve"]._option_string_actions)
    assert known >= NAMES, NAMES - known
    shortened = {name[:length] for name in NAMES for length in range(2, len(name))} - NAMES
    assert shortened & known == set()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--additional-conf", "{}"], "write the flag's name in full (--additional-config)"),
        (["-as", "3"], "in full (-asc)"),
        (["--additional-config", "{}", "--additional_config.x", "1"], "not both"),
        (["--additional-config", "[1]"], "'[1]' is not a JSON object"),
        (["--additional-config"], "expected one argument"),
        (["--additional-config.x"], "expected one argument"),
        (["--additional-config", '{"steerdec": {"default": null}}'], "use --steering and --threshold"),
        (["--max-model-len.x", "1"], "--max-model-len does not take a dotted name"),
        (["--model", "a"], "is given twice"),
        (["--grpc"], "steering needs the HTTP server"),
        (["--enable_chunked_prefill"], "on a CPU"),
        (["--config", "a.yaml", "--config=b.yaml"], "give one file"),
        (["--config", "/no/such.yaml"], "No such file or directory"),
        (["--config", "config.txt"], ".yaml"),
        (["--steering", "{}"], "is an option of steerdec serve"),
        (["--", "--seed", "1"], "flags only"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(model: Path, flags: list[str], words: str) -> None:
    with pytest.raises(LaunchError) as refused:
        plan(Launch(str(model), vllm_flags=flags), parse(flags), on_cpu=True)
    assert words in str(refused.value)
    name = flags[0].partition("=")[0].replace("_", "-")
    assert str(refused.value).startswith(name) or name == "--"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["[1]", "a: [", "\x00", "just text"], ids=["a list", "not YAML", "a control character", "text"]
)
def test_a_config_file_that_vllm_could_not_read_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(LaunchError, match=r"^--config '.*c\.yaml': "):
        parse(["--config", str(file)])


def test_host_and_port_of_a_config_file_count_unless_the_command_line_says_otherwise(
    tmp_path: Path, model: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"host": "127.0.0.3", "port": 9000}))
    flags = ["--config", str(file)]
    found = plan(Launch(str(model), vllm_flags=flags), parse(flags), on_cpu=False)
    assert (found.host, found.port) == ("127.0.0.3", 9000)
    found = plan(Launch(str(model), "127.0.0.1", 8001, vllm_flags=flags), parse(flags), on_cpu=False)
    assert (found.host, found.port) == ("127.0.0.1", 8001)


def test_the_model_of_a_config_file_is_served(tmp_path: Path, model: Path, parser: Any) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"model": str(model)}))
    for flags in (["--config", str(file)], ["--model", str(model)], [f"--model={model}"]):
        command = plan(Launch(None, vllm_flags=flags), parse(flags), on_cpu=True).command(LANES)
        namespace = read(parser, command[command.index("serve") :])
        assert namespace is not None
        assert namespace.model_tag == str(model)
