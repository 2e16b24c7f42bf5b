"""The kernel of this device against the reference, over steps of requests whose steering depends on earlier tokens."""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from steerdec.kernels import dispatch, reference
from steerdec.policies import registry
from steerdec.steering import encoding, memory, params

T: Final = 0.7
GUARD: Final = {"guard_mean_entropy_nats": 3.0, "guard_window_tokens": 5}
REQUESTED: Final[tuple[dict[str, Any], ...]] = (
    {"select": "quantile", "fork_temperature": 1.4},
    {"select": "quantile", "quantile": 0.5, "hysteresis": 0.4, "fork_temperature": 1.4},
    {"hysteresis": 0.7, "threshold_nats": 2.0, "fork_temperature": 1.4},
    {"select": "all", "fork_temperature": 1.4} | GUARD,
    {"select": "quantile", "threshold_nats": 2.0, "other_temperature": 0.4} | GUARD,
    {"fork_temperature": 1.4},  # without a memory
)
VOCAB: Final = 5000  # more than one block of the kernel
STEPS: Final = 12
DRAFTS: Final = 2
BAND: Final = 1e-4  # closer than this to a level, relative and in nats, it may be decided either way


class Found(Protocol):
    """What counts the rows."""

    rows: int

    def wrong_row(self, what: str) -> None: ...


def compare(found: Found, device: torch.device) -> None:
    """Compare some 150 rows; the reference goes on from what the kernel remembers after each step."""
    encoded = [encoding.encode(registry.parse(r), T, params.PAPER_THRESHOLD_NATS) for r in REQUESTED]
    floats = torch.tensor([one.floats for one in encoded])
    ints = torch.tensor([one.ints(7) for one in encoded], dtype=torch.int32)
    ints[:, encoding.MEMORY] = torch.tensor([i if e.remembers else encoding.NO_MEMORY for i, e in enumerate(encoded)])
    n = len(encoded)
    states = torch.zeros(n, memory.ring_entries(DRAFTS), memory.WORDS, dtype=torch.int32, device=device)
    generator, tokens = np.random.default_rng(3), np.zeros(n, int)
    for _ in range(STEPS):
        counts = generator.integers(1, 2 + DRAFTS, n)
        rows = [(int(slot), k) for slot in generator.permutation(n) for k in range(counts[slot])]
        slots = torch.tensor([slot for slot, _ in rows])
        positions = torch.tensor([int(tokens[slot]) + k for slot, k in rows])
        z = generator.normal(size=(len(rows), VOCAB)) * generator.uniform(1, 7, size=(len(rows), 1))
        before, kept = torch.from_numpy(z.astype(np.float32)), states.cpu()
        logits, f, i, s, p = (x.to(device) for x in (before.clone(), floats, ints, slots, positions))
        outcome = dispatch.steer_(logits, f, i, s, p, None, states)
        wanted = reference.steer_(before.clone(), floats, ints, slots, positions, None, kept)
        for r, (slot, _) in enumerate(rows):
            _compare_row(found, r, floats[slot].tolist(), outcome, wanted)
        tokens += generator.integers(1, counts + 1)  # the other drafts were rejected


def _compare_row(found: Found, r: int, f: list[float], outcome: reference.Outcome, wanted: reference.Outcome) -> None:
    found.rows += 1
    h, threshold = float(wanted.entropy_nats[r]), _number(wanted.threshold_nats, r)
    compared = _number(outcome.threshold_nats, r)
    if abs(compared - threshold) > BAND * threshold:
        return found.wrong_row(f"threshold {compared:g} instead of {threshold:g}")
    if any(abs(h - level) <= BAND * (1 + h) for level in (threshold, threshold * f[encoding.LOWER_SHARE])):
        return None
    for name in ("selected", "stopped"):
        ours, right = (_number(getattr(one, name), r) for one in (outcome, wanted))
        if ours != right:
            return found.wrong_row(f"{name} {ours:g} at H {h:.4f}, threshold {threshold:.4f}")
    return None


def _number(column: Tensor | None, r: int) -> float:
    assert column is not None, "there is a memory"
    return float(column[r])
