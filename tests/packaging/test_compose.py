"""compose.yaml and what it mounts: commands that steerdec takes, and files that are there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.packaging.container_files import assert_understood, defaults, filled, services, stages
from tests.support.built import ROOT


def test_compose_runs_commands_that_steerdec_takes() -> None:
    served = assert_understood([filled(word) for word in services()["server"]["command"]])
    assert (served["model"], served["host"]) == ("Qwen/Qwen3-8B", "0.0.0.0")
    measured = assert_understood([filled(word) for word in services()["bench"]["command"]])
    assert measured["endpoint"] == ["http://server:8000"]
    assert measured["out"] == Path("/runs/first")
    checked = assert_understood([filled(word) for word in services()["check"]["command"]])
    assert checked["model"] == "Qwen/Qwen3-8B"


def test_compose_starts_the_server_alone_and_the_rest_when_asked() -> None:
    assert {name for name, service in services().items() if "profiles" not in service} == {"server"}
    bench = services()["bench"]
    assert bench["depends_on"]["server"]["condition"] == "service_healthy"
    assert all(services()[name]["healthcheck"]["disable"] for name in ("bench", "check")), (
        "the image's asks for a server"
    )
    assert services()["check"]["deploy"] == services()["server"]["deploy"]


def test_compose_and_dockerfile_name_the_same_target_and_base() -> None:
    build = services()["server"]["build"]
    assert build["target"] == list(stages())[-1]
    assert filled(build["args"]["VLLM_IMAGE"]) == defaults()["VLLM_IMAGE"]


def test_compose_publishes_on_this_host_only_and_keeps_no_secret() -> None:
    for name, service in services().items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for variable, value in service.get("environment", {}).items():
            if re.search("KEY|TOKEN", variable):
                assert re.fullmatch(r"\$\{\w+:-\}", value)


def test_compose_mounts_files_that_are_there() -> None:
    sources = [v.split(":")[0] for s in services().values() for v in s.get("volumes", []) if v.startswith("./deploy")]
    assert len(sources) == 4
    assert all((ROOT / source).exists() for source in sources)
