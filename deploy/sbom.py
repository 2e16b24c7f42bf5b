"""Write what the `cpu` image has installed by pip, with licenses: `make sbom`, into build/sbom/.

- `steerdec-cpu.cdx.json`: an SBOM in CycloneDX 1.6, made by CycloneDX's program from the metadata of the installed
  packages; of these, those that the image has.
- `licences.csv`: package, version, and license, as docs/licences.md has it.

The Debian packages of the base image are not in it. For a whole image, of either kind, use a scanner of images.
"""

from __future__ import annotations

import csv
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
OUT: Final = ROOT / "build" / "sbom"
_OURS: Final = "steerdec"


def pinned() -> dict[str, str]:
    """Return the version of each package that the image installs, by normalized name."""
    lines = (ROOT / "requirements" / "cpu.txt").read_text("utf-8").splitlines()
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {normalized(name): version.strip() for name, _, version in pairs}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def installed() -> dict[str, Any]:
    """Return the SBOM of the environment that runs this. Raises CalledProcessError."""
    tool = ROOT / "build" / "tools" / "bin" / "cyclonedx-py"
    words = ["environment", sys.executable, "--pyproject", ROOT / "pyproject.toml", "--output-reproducible"]
    done = subprocess.run([tool, *words], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def of_the_image(sbom: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return the SBOM with those of its components, and of what they depend on, that have these names."""
    components = [one for one in sbom["components"] if normalized(one["name"]) in names]
    refs = {one["bom-ref"] for one in components} | {sbom["metadata"]["component"]["bom-ref"]}
    dependencies = [
        one | {"dependsOn": [ref for ref in one.get("dependsOn", []) if ref in refs]}
        for one in sbom.get("dependencies", [])
        if one["ref"] in refs
    ]
    return sbom | {"components": components, "dependencies": dependencies}


def main() -> None:
    packages = pinned()
    sbom = of_the_image(installed(), {*packages, _OURS})
    # A build may add to a version what it is for, as in 2.13.0+cpu.
    found = {normalized(one["name"]): one["version"].partition("+")[0] for one in sbom["components"]}
    found.pop(_OURS, None)
    if found != packages:
        wrong = sorted(name for name in found.keys() | packages if found.get(name) != packages.get(name))
        sys.exit(f"not installed as pinned in requirements/cpu.txt: {', '.join(wrong)}; run make setup")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "steerdec-cpu.cdx.json").write_text(json.dumps(sbom, indent=2) + "\n", "utf-8")
    licence = runpy.run_path(str(ROOT / "docs" / "build_licences.py"))["licence"]
    with (OUT / "licences.csv").open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["package", "version", "license"])
        rows.writerows([name, version, licence(name)] for name, version in packages.items())


if __name__ == "__main__":
    main()
