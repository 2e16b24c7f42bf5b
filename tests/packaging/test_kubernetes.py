"""deploy/kubernetes/: valid, in agreement with the image, and its probes are answered only when it is ready."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.packaging.container_files import assert_understood, values
from tests.packaging.manifest import (
    FOLDER,
    arguments,
    container,
    environment,
    inside,
    objects,
    pod,
    pod_running,
    probed,
    volume,
)
from tests.support.built import ROOT

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
KILLED_AFTER_S = 5  # the shutdown timeout, by the launcher
READY_LIMIT_S = 400
REQUEST = """
import json, sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", sys.stdin.buffer.read())
request.add_header("content-type", "application/json")
print(urllib.request.urlopen(request, timeout=200).read().decode())
"""


def test_the_container_runs_a_command_that_steerdec_takes() -> None:
    assert "command" not in container(), "the image's entry point"
    words = arguments(environment())
    served = assert_understood(words)
    assert (served["model"], served["host"]) == ("Qwen/Qwen3-8B", "0.0.0.0")
    stop_s = int(words[words.index("--shutdown-timeout") + 1])
    assert pod()["terminationGracePeriodSeconds"] > stop_s + KILLED_AFTER_S


def test_the_pod_agrees_with_the_image() -> None:
    context = pod()["securityContext"]
    assert [f"{context['runAsUser']}:{context['runAsGroup']}"] == [values("gpu", "USER")[-1]]
    (port,) = container()["ports"]
    assert [str(port["containerPort"])] == values("gpu", "EXPOSE")
    mounts = {one["mountPath"]: one["name"] for one in container()["volumeMounts"]}
    assert mounts == {values("gpu", "WORKDIR")[0]: "home", "/dev/shm": "shm"}
    claim = objects()["PersistentVolumeClaim"]["metadata"]["name"]
    assert volume("home")["persistentVolumeClaim"]["claimName"] == claim
    assert volume("shm")["emptyDir"]["medium"] == "Memory"


def test_the_container_has_no_privilege_and_one_gpu() -> None:
    assert container()["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["automountServiceAccountToken"] is False
    resources = container()["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"


def test_secrets_come_from_a_secret_that_may_be_missing() -> None:
    secret = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container()["env"] if "value" not in one}
    assert set(secret) == {"HF_TOKEN", "VLLM_API_KEY"}
    assert all(one["optional"] is True for one in secret.values())


def test_service_and_prometheus_find_the_pod() -> None:
    template = objects()["Deployment"]["spec"]["template"]["metadata"]
    (port,) = objects()["Service"]["spec"]["ports"]
    assert objects()["Service"]["spec"]["selector"] == template["labels"]
    assert objects()["Deployment"]["spec"]["selector"]["matchLabels"] == template["labels"]
    assert port["targetPort"] == container()["ports"][0]["name"]
    scraped = {key.removeprefix("prometheus.io/"): value for key, value in template["annotations"].items()}
    assert scraped == {"scrape": "true", "port": str(container()["ports"][0]["containerPort"]), "path": "/metrics"}


def test_the_kustomization_names_what_is_there() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert all((FOLDER / name).is_file() for name in kustomization["resources"])
    assert [one["name"] for one in kustomization["images"]] == [container()["image"]]


@pytest.mark.thorough
def test_the_objects_are_valid_by_kubernetes_schemas(tmp_path: Path) -> None:
    subprocess.run(["make", "build/tools/.ready"], cwd=ROOT, check=True, capture_output=True)
    validate = [str(ROOT / "build/tools/bin/kubernetes-validate"), "--strict"]
    for version in ("1.30.0", "1.37.0"):
        done = subprocess.run([*validate, "-k", version, FOLDER / "steerdec.yaml"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((FOLDER / "steerdec.yaml").read_text().replace("failureThreshold: 6", "failuresAllowed: 6"))
    assert subprocess.run([*validate, wrong], capture_output=True).returncode != 0, "the check above could not fail"


@pytest.mark.engine
@pytest.mark.thorough
def test_the_probes_answer_200_only_when_the_server_is_ready(weights: Path, tmp_path: Path) -> None:
    """The manifest's arguments, variables, probes and /dev/shm; the model, its context and the home are this test's."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("a network of its own needs root, util-linux and iproute2")
    image = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"}
    variables = image | environment() | {"MODEL": str(weights), "MAX_MODEL_LEN": "2048"}
    command = ["steerdec", *arguments(variables)]
    with pod_running(command, variables, log := tmp_path / "log") as process:
        begin_s, seen = time.monotonic(), dict.fromkeys(PROBES, "refused")
        while set(seen.values()) == {"refused"}:
            assert process.poll() is None, log.read_text("utf-8", "replace")[-3000:]
            assert time.monotonic() - begin_s < READY_LIMIT_S, log.read_text("utf-8", "replace")[-3000:]
            time.sleep(1)
            seen = {name: probed(process, container()[name]) for name in PROBES}
        # Never another status: the first answer means ready. (The first of the three may have come a moment too early.)
        assert set(seen.values()) <= {"200", "refused"}
        steering = {"fork_temperature": 1.2, "threshold_nats": 0.5}
        body = json.dumps({"prompt": "Once", "max_tokens": 8, "temperature": 1.0, "steering": steering})
        answer = json.loads(inside(process, [sys.executable, "-c", REQUEST], body))
        assert answer["choices"][0]["steering"]["tokens"] == 8
        assert {probed(process, container()[name]) for name in PROBES} == {"200"}
        process.terminate()
        assert process.wait(pod()["terminationGracePeriodSeconds"]) == 0
