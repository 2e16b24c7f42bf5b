"""The dashboard, the alerts, and Prometheus: each finds the next and asks for metrics and labels of the server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.packaging.container_files import services
from tests.support.built import ROOT
from tests.support.serving import PATIENCE_S

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus-rules.yml"
OF_PROMETHEUS = {"instance", "job"}  # labels that it adds itself


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/steerdec.json").read_text())
    return found


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> list[str]:
    of_panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [*of_panels, *(alert["expr"] for alert in alerts())]


def asked(expression: str) -> tuple[set[str], set[str]]:
    """The metrics of an expression, and the labels that it groups them by or selects."""
    grouped = ",".join(re.findall(r"\bby \(([^)]*)\)", expression))
    selected = re.findall(r"[{,]\s*(\w+)\s*[=!]", expression)
    return set(re.findall(r"\b(?:vllm:|steerdec_)\w+", expression)), {*re.findall(r"\w+", grouped), *selected}


def test_grafana_finds_its_dashboard_and_prometheus_and_prometheus_the_server() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard()["panels"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/steerdec.yml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (job,) = configuration["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:8000"]}]
    mounted = dict(volume.split(":")[:2] for volume in services()["prometheus"]["volumes"])
    assert [mounted["./deploy/prometheus-rules.yml"]] == [
        f"/etc/prometheus/{name}" for name in configuration["rule_files"]
    ]
    assert f'job="{job["job_name"]}"' in alerts()[0]["expr"]


def test_no_two_panels_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


@pytest.mark.engine
def test_every_metric_and_label_is_on_the_servers_page(server_url: str) -> None:
    steering = {"fork_temperature": 1.2, "threshold_nats": 0.5}
    body = {"prompt": "Once", "max_tokens": 8, "temperature": 1.0, "steering": steering}
    httpx.post(f"{server_url}/v1/completions", json=body, timeout=PATIENCE_S).raise_for_status()
    page = httpx.get(f"{server_url}/metrics", timeout=PATIENCE_S).text
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    there: dict[str, set[str]] = {}
    for sample in samples:
        there.setdefault(sample.name, set()).update(sample.labels)
    assert len({name for text in expressions() for name in asked(text)[0]}) >= 10
    for text in expressions():
        metrics, labels = asked(text)
        for name in metrics:
            assert labels - OF_PROMETHEUS <= there[name], text
    models = {sample.labels["model_name"] for sample in samples if re.match(r"(steerdec_|vllm:num_)", sample.name)}
    assert models == {"SmolLM2-135M-Instruct"}, "ours and vLLM's name the model alike"


# By Prometheus's own program ---------------------------------------------------------------------


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return found


@pytest.mark.thorough
def test_prometheus_understands_every_expression(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"expression_{i}", "expr": text.replace("$__rate_interval", "1m")}
        for i, text in enumerate(expressions())
    ]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    (tmp_path / "rules.yml").write_text(RULES.read_text())
    (tmp_path / "prometheus.yml").write_text((DEPLOY / "prometheus.yml").read_text())
    for words in (["rules", "panels.yml"], ["config", "prometheus.yml"]):
        done = subprocess.run([promtool, "check", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.thorough
def test_alerts_fire_when_they_should_and_not_before(promtool: str, tmp_path: Path) -> None:
    def series(name: str, values: str) -> dict[str, str]:
        return {"series": f'{name}{{instance="i", job="steerdec", model_name="m"}}', "values": values}

    def when(alert: str, at: str, labels: dict[str, str] | None, summary: str = "") -> dict[str, Any]:
        fires = [] if labels is None else [{"exp_labels": labels, "exp_annotations": {"summary": summary}}]
        return {"eval_time": at, "alertname": alert, "exp_alerts": fires}

    # A day at 1 token a second and 0.5 nats, then two hours at 0.75 nats with every tenth record missing.
    steady, later = 24 * 60, 120
    told = {
        "interval": "1m",
        "input_series": [
            series("up", f"1x{steady + later} 0x10"),
            series("steerdec_tokens_total", f"0+60x{steady + later}"),
            series("steerdec_entropy_nats_count", f"0+60x{steady} {60 * steady + 54}+54x{later}"),
            series("steerdec_entropy_nats_sum", f"0+30x{steady} {30 * steady + 40.5}+40.5x{later}"),
        ],
        "alert_rule_test": [
            when("SteerdecDown", "24h", None),
            when(
                "SteerdecDown",
                "26h8m",
                {"severity": "critical", "instance": "i", "job": "steerdec", "model_name": "m"},
                "i does not answer",
            ),
            when("SteerdecRecordsMissing", "23h59m", None),
            when(
                "SteerdecRecordsMissing",
                "25h",
                {"severity": "warning", "instance": "i", "model_name": "m"},
                "10% of the steered tokens of m have no telemetry",
            ),
            when("SteerdecEntropyDrift", "24h20m", None),
            when(
                "SteerdecEntropyDrift",
                "25h50m",
                {"severity": "warning", "model_name": "m"},
                "the mean entropy of m has moved by 0.25 nats in a day",
            ),
        ],
    }
    (tmp_path / "rules.yml").write_text(RULES.read_text())
    (tmp_path / "test.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [told]})
    )
    done = subprocess.run([promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
