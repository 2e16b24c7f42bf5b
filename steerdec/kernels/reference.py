"""The specification: what steering does to one step's logits, in plain float64 torch.

Every fast path is tested against this file, and nothing here is fast. What each policy does at a fork is specified in
its own `reference.py` (`steerdec.policies`). Symbols: z logits of one row over the full vocabulary, T the request's
temperature, H the entropy in nats of softmax(z) (arXiv 2506.01939, equation 1, at temperature 1), T' the temperature
the row is steered to.

The sampler that comes after divides every row by T, so scaling a row by T / T' makes it sample
softmax(z / T'). T' = 0 means greedy: only the first largest logit is kept. Where a policy sets a floor, the tokens
whose logit is below it are removed; T' = inf then makes the others equally likely.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from steerdec.policies import registry
from steerdec.policies.steered import Steered
from steerdec.softmax.reference import entropy_nats
from steerdec.steering import encoding
from steerdec.steering.memory import FLAGS, HIGH, LEVEL, MEAN, POSITION, STOPPED, TOKENS, Rule, State


class Outcome(NamedTuple):
    """The decisions of a step, one entry per logits row; NaN and False if the row is not steered (slot < 0)."""

    entropy_nats: Tensor  # [rows] NaN also where the row holds NaN, +inf, or nothing but -inf
    selected: Tensor  # [rows] bool, "fork" in the responses
    temperature: Tensor  # [rows] T'; inf where the tokens that are kept are equally likely
    probe_entropy_nats: Tensor  # [rows] H of softmax(z / T_probe); NaN also without a probe
    stopped: Tensor | None = None  # [rows] bool, the guard has turned steering off; None without memory
    threshold_nats: Tensor | None = None  # [rows] that H was compared with, NaN if not steered; None without memory


def probe_entropy_nats(z: Tensor, h: float, probe_t: float, steered: Steered) -> float:
    """Return H of softmax(z / T_probe) of one row whose own is `h`; 0 at temperature 0.

    For APPLIED it is that of the distribution sampled: T_probe is T', over the tokens that are kept.
    """
    if math.isnan(h) or probe_t == encoding.NOWHERE:
        return math.nan
    at, floor = steered if probe_t == encoding.APPLIED else Steered(probe_t)
    return entropy_nats(z[None][:, z >= floor] / at).item() if at > 0.0 else 0.0


def placebo_hash(key: int, position: int) -> int:
    """Return 24 bits from a request's key and a token's index: murmur3's 32-bit finalizer of their sum."""
    x = (key + position * 0x9E3779B9) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return (x ^ (x >> 16)) >> 8


def remembered(ring: Tensor, rule: Rule, position: int, h: float) -> tuple[float, bool, bool]:
    """Return a token's threshold, whether its H is high, and whether the guard has stopped steering; remember it.

    `ring` [entries, memory.WORDS] holds the states after the request's last tokens. Without the one before this token
    (it is the first, or the ring is another's), the rule begins anew.
    """
    words, numbers = ring, ring.view(torch.float32)
    entry, state = (position - 1) % len(ring), rule.first()
    if position > 0 and int(words[entry, POSITION]) == position:
        flags = int(words[entry, FLAGS])
        mean, level = float(numbers[entry, MEAN]), float(numbers[entry, LEVEL])
        state = State(int(words[entry, TOKENS]), mean, level, bool(flags & HIGH), bool(flags & STOPPED))
    after = rule.after(state, h)
    if position >= 0:
        entry = position % len(ring)
        words[entry, POSITION], words[entry, TOKENS] = position + 1, after.tokens
        words[entry, FLAGS] = HIGH * after.high | STOPPED * after.stopped
        numbers[entry, MEAN], numbers[entry, LEVEL] = after.mean_nats, after.threshold_nats
    return state.threshold_nats, after.high, after.stopped


def steer_(
    logits: Tensor,
    floats: Tensor,
    ints: Tensor,
    slots: Tensor,
    positions: Tensor,
    in_scope: Tensor | None = None,
    memory: Tensor | None = None,
) -> Outcome:
    """Steer `logits` in place.

    Args:
        logits: [rows, vocab] float; row r belongs to the request in slot `slots[r]`.
        floats: [slots, encoding.FLOATS], the requests' numbers; see `steerdec.steering.encoding`.
        ints: [slots, encoding.INTS].
        slots: [rows] integer; < 0 for a row that is not steered, which is left untouched.
        positions: [rows] integer, index of the token being sampled among those the request generates.
        in_scope: [rows] bool; where False, H is measured but the row is left untouched. None: all True.
        memory: [memories, ring, memory.WORDS] int32, what is remembered of requests whose integers name a memory, read
            and written; rows of such a request stand together, in the order of their positions, and a position below 0
            is not remembered. None: no request needs one.
    """
    policies = dict(registry.steps("reference"))
    n = logits.shape[0]
    outcome = Outcome(
        torch.full((n,), math.nan, dtype=torch.float64),
        torch.zeros(n, dtype=torch.bool),
        torch.full((n,), math.nan, dtype=torch.float64),
        torch.full((n,), math.nan, dtype=torch.float64),
        None if memory is None else torch.zeros(n, dtype=torch.bool),
        None if memory is None else torch.full((n,), math.nan, dtype=torch.float64),
    )
    for r in range(n):
        slot = int(slots[r])
        if slot < 0:
            continue
        f, (kind, select, key, cutoff, mine) = floats[slot].double().tolist(), ints[slot].tolist()
        z = logits[r].double()
        h = entropy_nats(z[None]).item()
        outcome.entropy_nats[r] = h
        outcome.temperature[r] = t = f[encoding.REQUEST_T]
        outcome.probe_entropy_nats[r] = probe_entropy_nats(z, h, f[encoding.PROBE_T], Steered(t))
        threshold, high, stopped = f[encoding.THRESHOLD], h > f[encoding.THRESHOLD], False
        if memory is not None and outcome.stopped is not None and outcome.threshold_nats is not None:
            if mine != encoding.NO_MEMORY:
                threshold, high, stopped = remembered(memory[mine], Rule.of(f), int(positions[r]), h)
            outcome.stopped[r], outcome.threshold_nats[r] = stopped, threshold
        if math.isnan(h) or stopped or (in_scope is not None and not in_scope[r]):
            continue
        selected = (
            select == encoding.ALWAYS
            or (select == encoding.BY_ENTROPY and high)
            or (select == encoding.BY_HASH and placebo_hash(key, int(positions[r])) < cutoff)
            or (select == encoding.BY_POSITION and int(positions[r]) < cutoff)
        )
        steered = policies[kind](z, h, f) if selected else Steered(f[encoding.OTHER_T])
        outcome.selected[r] = selected
        outcome.temperature[r] = steered.temperature
        outcome.probe_entropy_nats[r] = probe_entropy_nats(z, h, f[encoding.PROBE_T], steered)
        removed = z < steered.floor  # before `z`, which may be the row itself, is scaled
        if steered.temperature == 0.0:
            keep = int(z.argmax())
            largest = logits[r, keep].clone()
            logits[r] = -math.inf
            logits[r, keep] = largest
        elif t != steered.temperature:
            logits[r] = (z * (t / steered.temperature)).to(logits.dtype)
        logits[r, removed] = -math.inf
    return outcome
