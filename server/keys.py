"""The API key, asked for wherever there is work to be done.

vLLM asks for its `--api-key` below /v1 and a few more prefixes only, though /invocations generates as they do, and
/tokenize works on texts of any length.
"""

from __future__ import annotations

import hashlib
import secrets
from argparse import Namespace

import vllm.envs as envs


class Keys:
    """The server's keys; without any, everybody is admitted."""

    def __init__(self, keys: list[str]) -> None:
        self._hashes = [_hash(key) for key in keys]

    @classmethod
    def of(cls, args: Namespace) -> Keys:
        """As vLLM takes them: the command line before the environment."""
        return cls([key for key in (args.api_key or [envs.VLLM_API_KEY]) if key])

    def admit(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether a request's headers bring one of them, `Authorization: Bearer KEY`."""
        scheme, _, given = dict(headers).get(b"authorization", b"").partition(b" ")
        found = [secrets.compare_digest(_hash(given.decode("latin-1")), key) for key in self._hashes]
        return not found or (scheme.lower() == b"bearer" and any(found))


def _hash(key: str) -> bytes:
    """Of equal length for all, so that comparing tells nothing of a key."""
    return hashlib.sha256(key.encode()).digest()
