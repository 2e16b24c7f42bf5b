"""compose.yaml and what it mounts: commands that steerdec takes, files that are there, metrics that the server has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.packaging.container_files import assert_understood, defaults, filled, services, stages
from tests.support.built import ROOT
from tests.support.serving import PATIENCE_S


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
    assert len(sources) == 3
    assert all((ROOT / source).exists() for source in sources)


# Monitoring -------------------------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboards/steerdec.json").read_text())
    return found


def queried() -> set[str]:
    """The metrics of the dashboard."""
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return {name for text in expressions for name in re.findall(r"\b(?:vllm:|steerdec_)\w+", text)}


def test_grafana_finds_its_dashboard_and_prometheus_and_prometheus_the_server() -> None:
    provisioning = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard()["panels"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/steerdec.yml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    (job,) = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:8000"]}]


def test_no_two_panels_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.engine
def test_every_metric_of_the_dashboard_is_on_the_servers_page(server_url: str) -> None:
    steering = {"fork_temperature": 1.2, "threshold_nats": 0.5}
    body = {"prompt": "Once", "max_tokens": 8, "temperature": 1.0, "steering": steering}
    httpx.post(f"{server_url}/v1/completions", json=body, timeout=PATIENCE_S).raise_for_status()
    page = httpx.get(f"{server_url}/metrics", timeout=PATIENCE_S).text
    there = set(re.findall(r"^([\w:]+)\{?", page, re.MULTILINE))
    assert len(queried()) >= 10
    assert queried() <= there
