"""Where a tree branches: one place of a recorded root."""

from __future__ import annotations

from collections.abc import Sequence

from steerdec.common.seeds import hashed_bits
from steerdec.records.arms import BranchPlace


def branch_position(
    place: BranchPlace,
    entropy_nats: Sequence[float | None],
    fork: Sequence[bool],
    *,
    run_seed: int,
    problem_id: str,
    root: int,
) -> int:
    """Return the index of the token at which all continuations of a root begin: it is sampled anew.

    A random place is drawn by a hash that is the same for forks and for other tokens. A root without a token of the
    kind is continued from its prompt (0): then its continuations are plain samples.

    Args:
        entropy_nats: one entry per token of the root; a token whose entropy is not known is never a place.
        fork: one entry per token, whether it is a fork.
        root: the sample number of the root.
    """
    wanted = place != "other"
    at = [i for i, (h, f) in enumerate(zip(entropy_nats, fork, strict=True)) if h is not None and f == wanted]
    if not at:
        return 0
    if place == "highest":
        return max(at, key=lambda i: (entropy_nats[i] or 0.0, -i))  # the first of equals
    return at[hashed_bits("branch", run_seed, problem_id, root) * len(at) >> 53]
