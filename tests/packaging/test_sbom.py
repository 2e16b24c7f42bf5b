"""`make sbom`: every pinned package is listed, with its version and a license."""

from __future__ import annotations

import csv
import json
import runpy
import subprocess
import sys
from typing import Any

import pytest

from tests.support.built import ROOT

SBOM: dict[str, Any] = runpy.run_path(str(ROOT / "deploy" / "sbom.py"))


def test_every_line_of_the_list_is_a_package_of_the_sbom() -> None:
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    assert len(SBOM["pinned"]()) == sum(bool(line) and not line.startswith("#") for line in lines)
    assert SBOM["normalized"]("Types_PyYAML.x") == "types-pyyaml-x"


def test_the_image_keeps_its_own_components_and_their_dependencies() -> None:
    whole = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [{"name": "A_b", "bom-ref": "a"}, {"name": "tool", "bom-ref": "t"}],
        "dependencies": [{"ref": "root", "dependsOn": ["a", "t"]}, {"ref": "a"}, {"ref": "t", "dependsOn": ["a"]}],
    }
    kept = SBOM["of_the_image"](whole, {"a-b"})
    assert [one["name"] for one in kept["components"]] == ["A_b"]
    assert kept["dependencies"] == [{"ref": "root", "dependsOn": ["a"]}, {"ref": "a", "dependsOn": []}]


@pytest.mark.thorough
def test_the_sbom_lists_every_pinned_package_with_version_and_license() -> None:
    subprocess.run(["make", "build/tools/.ready"], cwd=ROOT, check=True, capture_output=True)
    done = subprocess.run([sys.executable, ROOT / "deploy" / "sbom.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sbom = json.loads((SBOM["OUT"] / "steerdec-cpu.cdx.json").read_text())
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    assert sbom["metadata"]["component"]["name"] == "steerdec"
    pinned = SBOM["pinned"]()
    listed = {SBOM["normalized"](one["name"]): one for one in sbom["components"]}
    versions = {name: one["version"].partition("+")[0] for name, one in listed.items() if name != "steerdec"}
    assert versions == pinned
    assert all(one["purl"].startswith("pkg:pypi/") for name, one in listed.items() if name != "steerdec")
    with (SBOM["OUT"] / "licences.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["package"]: row["version"] for row in rows} == pinned
    assert all(row["license"] not in ("", "none named") for row in rows)
