"""Constants of arXiv 2506.01939, the paper whose claim is tested."""

from __future__ import annotations

from typing import Final

FORK_SHARE: Final = 0.2  # the share of tokens, those of highest entropy, that the paper calls forking tokens
