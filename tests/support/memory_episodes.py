"""Requests with a memory, step by step with drafts, against the rule applied to each request's own history."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerdec.kernels import reference
from steerdec.kernels.reference import Outcome
from steerdec.policies import registry
from steerdec.softmax.reference import entropy_nats
from steerdec.steering import encoding, memory
from steerdec.steering.memory import FLAGS, LEVEL, MEAN, POSITION, TOKENS, Rule, State

T = 0.7
VOCAB = 60
DRAFTS = 3
STEERINGS: list[dict[str, Any]] = [
    {"select": "quantile", "fork_temperature": 1.4},
    {"select": "quantile", "quantile": 0.5, "hysteresis": 0.4, "threshold_nats": 1.0, "fork_temperature": 0.0},
    {"hysteresis": 0.7, "threshold_nats": 1.2, "fork_temperature": 1.9, "other_temperature": 0.3},
    {"select": "all", "fork_temperature": 1.4, "guard_mean_entropy_nats": 1.6, "guard_window_tokens": 4},
    {"select": "random", "fork_rate": 0.5, "fork_temperature": 1.3, "guard_mean_entropy_nats": 2.6},
    {"select": "quantile", "quantile": 0.6, "guard_mean_entropy_nats": 2.0, "guard_window_tokens": 7},
    {"policy": "p_less", "select": "quantile", "probe_temperature": "applied", "fork_temperature": 1.4},
    {"fork_temperature": 1.4},  # without a memory, among the others
]

Steer = Callable[..., Outcome]


class Request:
    """One request: what it asks for, and the rule applied to the entropies of the tokens that it kept."""

    def __init__(self, encoded: encoding.EncodedRequest) -> None:
        self.encoded, self.rule = encoded, Rule.of(encoded.floats)
        self.tokens, self._state = 0, self.rule.first()

    def keep(self, entropies_nats: list[float]) -> None:
        self.tokens, self._state = self.tokens + len(entropies_nats), self.state(entropies_nats)

    def state(self, drafts: list[float]) -> State:
        """The state after all tokens so far, and some drafts."""
        return folded(self.rule, drafts, self._state)


def folded(rule: Rule, entropies_nats: Iterable[float], state: State | None = None) -> State:
    state = rule.first() if state is None else state
    for h in entropies_nats:
        state = rule.after(state, h)
    return state


def ring_after(rule: Rule, entropies_nats: Sequence[float]) -> Tensor:
    """[1, entries, memory.WORDS] of a request whose tokens had these entropies: only the last state is known."""
    ring, state = torch.zeros(1, memory.ring_entries(0), memory.WORDS, dtype=torch.int32), folded(rule, entropies_nats)
    if entropies_nats:
        entry = ring[0, (len(entropies_nats) - 1) % ring.shape[1]]
        entry[POSITION], entry[TOKENS] = len(entropies_nats), state.tokens
        entry[FLAGS] = memory.HIGH * state.high + memory.STOPPED * state.stopped
        entry.view(torch.float32)[MEAN] = state.mean_nats
        entry.view(torch.float32)[LEVEL] = state.threshold_nats
    return ring


def assert_told(told: dict[str, Any], steering: dict[str, Any]) -> None:
    """Hold the telemetry of a `split` at T = 0.8 to the rule applied to the entropies in it."""
    rule = Rule.of(encoding.encode(registry.parse(steering), 0.8, 0.672).floats)
    state, forks, stopped, thresholds = rule.first(), [], [], []
    for h in told["entropy_nats"]:
        thresholds.append(state.threshold_nats)
        state = rule.after(state, h)
        forks.append(state.high and not state.stopped)
        stopped.append(state.stopped)
    assert told["fork"] == forks
    other = steering.get("other_temperature", 0.8)
    wanted = [
        0.8 if off else steering["fork_temperature"] if fork else other
        for off, fork in zip(stopped, forks, strict=True)
    ]
    np.testing.assert_allclose(told["temperature"], wanted, rtol=1e-6)
    assert told["guard_token"] == (stopped.index(True) if any(stopped) else None)
    if rule.moves:
        np.testing.assert_allclose(told["thresholds_nats"], thresholds, rtol=1e-5)
        np.testing.assert_allclose(told["last_threshold_nats"], thresholds[-1], rtol=1e-5)


def random_rows(rng: np.random.Generator, n: int, vocab: int = VOCAB) -> Tensor:
    """From nearly certain to nearly flat, some without a distribution."""
    z = rng.normal(size=(n, vocab)) * rng.uniform(0.3, 7, size=(n, 1))
    z[rng.random(n) < 0.05] = -np.inf
    return torch.from_numpy(z.astype(np.float32))


def follow(steer_: Steer, seed: int, steps: int, vocab: int = VOCAB) -> int:
    """Hold `steps` steps of a backend to the rule and to the reference's logits; return how many rows were compared."""
    rng, order = np.random.default_rng(seed), random.Random(seed)
    encoded = [encoding.encode(registry.parse(s), T, 0.672) for s in STEERINGS]
    requests = [Request(one) for one in encoded]
    floats = torch.tensor([one.floats for one in encoded])
    ints = torch.tensor([one.ints(5) for one in encoded], dtype=torch.int32)
    indices = rng.permutation(len(encoded))
    for i, one in enumerate(encoded):
        ints[i, encoding.MEMORY] = int(indices[i]) if one.remembers else encoding.NO_MEMORY
    states = torch.full((len(encoded), memory.ring_entries(DRAFTS), memory.WORDS), -7, dtype=torch.int32)
    compared = 0
    for _ in range(steps):
        present = order.sample(range(len(requests)), order.randint(1, len(requests)))
        rows = [(i, k) for i in present for k in range(order.randint(1, 1 + DRAFTS))]
        rows.insert(order.choice([0, len(rows)]), (-1, 0))
        slots = torch.tensor([i for i, _ in rows], dtype=torch.int32)
        positions = torch.tensor([0 if i < 0 else requests[i].tokens + k for i, k in rows])
        in_scope = torch.from_numpy(rng.random(len(rows)) < 0.9)
        before = random_rows(rng, len(rows), vocab)
        after = before.clone()
        outcome = steer_(after, floats, ints, slots, positions, in_scope, states)
        h = outcome.entropy_nats.double().tolist()
        for r, (i, k) in enumerate(rows):
            if i >= 0:
                held = before[r], after[r], row_of(outcome, r)
                hold(requests[i], held, int(positions[r]), bool(in_scope[r]), h[r - k : r])
                compared += 1
        for i in present:
            drawn = [h[r] for r, (j, _) in enumerate(rows) if j == i]
            requests[i].keep(drawn[: order.randint(1, len(drawn))])  # the rest was rejected
    for i, request in enumerate(requests):
        if request.encoded.remembers and request.tokens:
            hold_state(states[int(indices[i])], request)
    return compared


def row_of(outcome: Outcome, r: int) -> list[Any]:
    return [column[r].item() for column in outcome if column is not None]


def hold(
    request: Request, row: tuple[Tensor, Tensor, list[Any]], position: int, in_scope: bool, drafts: list[float]
) -> None:
    """Compare one row: its threshold and flags with the rule, its logits with the reference under that threshold."""
    before, after, (h, selected, _, _, stopped, threshold) = row
    state = request.state(drafts)
    then = request.rule.after(state, h)
    np.testing.assert_allclose(threshold, state.threshold_nats, rtol=1e-5)
    assert stopped == then.stopped
    np.testing.assert_allclose(h, entropy_nats(before[None].double()).item(), atol=1e-5)
    by_entropy = request.encoded.select == encoding.BY_ENTROPY
    if by_entropy:
        assert selected == (then.high and not stopped and in_scope and not np.isnan(h))
    if stopped or not in_scope:
        assert torch.equal(before.view(torch.int32), after.view(torch.int32))
        return
    # The reference on the one row, whose selection is given: as if all were forks, or none.
    floats, ints = list(request.encoded.floats), list(request.encoded.ints(5))
    if by_entropy:
        floats[encoding.THRESHOLD] = -1.0 if selected else 1e9
    wanted = before[None].clone()
    reference.steer_(
        *(wanted, torch.tensor([floats]), torch.tensor([ints]), torch.tensor([0]), torch.tensor([position]))
    )
    torch.testing.assert_close(after, wanted[0], rtol=1e-5, atol=1e-5, equal_nan=True)


def hold_state(ring: Tensor, request: Request) -> None:
    """Compare what is remembered after a request's last kept token with the rule over all of them."""
    state, entry = request.state([]), ring[(request.tokens - 1) % len(ring)]
    assert entry[POSITION] == request.tokens
    assert entry[TOKENS] == state.tokens
    numbers = entry.view(torch.float32)
    np.testing.assert_allclose(
        [float(numbers[MEAN]), float(numbers[LEVEL])], [state.mean_nats, state.threshold_nats], rtol=1e-5
    )
    assert entry[FLAGS] == memory.HIGH * state.high + memory.STOPPED * state.stopped
