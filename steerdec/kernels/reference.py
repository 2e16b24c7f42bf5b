"""The specification: what steering does to one step's logits, in plain float64 torch.

Every fast path is tested against this file, and nothing here is fast. Symbols: z logits of one
row over the full vocabulary, T the request's temperature, H the entropy in nats of softmax(z)
(arXiv 2506.01939, equation 1, at temperature 1), T' the temperature the row is steered to.

The sampler that comes after divides every row by T, so scaling a row by T / T' makes it sample
softmax(z / T'). T' = 0 means greedy: only the first largest logit is kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from steerdec.steering import encoding as rows


class Outcome(NamedTuple):
    """What was decided, one entry a logits row; NaN and False where the row is not steered (slot < 0)."""

    entropy_nats: Tensor  # [rows] NaN also where the row holds NaN, +inf, or nothing but -inf
    selected: Tensor  # [rows] bool, "fork" in the responses
    temperature: Tensor  # [rows] T'
    probe_entropy_nats: Tensor  # [rows] H of softmax(z / T_probe); NaN also where no probe was asked for


def entropy_nats(z: Tensor) -> Tensor:
    """H of softmax(z), [rows, vocab] -> [rows] float64; NaN where softmax is undefined.

    H = log Z - (sum e d) / Z with d = z - max z, e = exp d, Z = sum e. Tokens at -inf add nothing
    (e d -> 0), and are left out so that 0 * -inf never appears.
    """
    d = z.double() - z.double().amax(-1, keepdim=True)  # NaN for a row of -inf, or with NaN or +inf in it
    e = d.exp()
    partition = e.sum(-1)
    return partition.log() - torch.where(e > 0, e * d, 0.0 * e).sum(-1) / partition


def probe_entropy_nats(z: Tensor, h: float, probe_t: float, steered: float) -> float:
    """H of softmax(z / T_probe) of one row whose own is `h`, T_probe = T' where APPLIED; 0 at temperature 0."""
    if math.isnan(h) or math.isnan(probe_t):
        return math.nan
    at = steered if probe_t == rows.APPLIED else probe_t
    return entropy_nats(z[None] / at).item() if at > 0.0 else 0.0


def placebo_hash(key: int, position: int) -> int:
    """24 bits from a request's key and a token's index: murmur3's 32-bit finaliser of their sum."""
    x = (key + position * 0x9E3779B9) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return (x ^ (x >> 16)) >> 8


def target_temperature(z: Tensor, target_nats: float, low: float, high: float) -> float:
    """T' in [low, high] at which softmax(z / T') has entropy `target_nats`; the nearer end if none has.

    `z` is one row. Entropy grows with temperature, so bisection on log T' finds it.
    """
    if entropy_nats(z[None] / low).item() >= target_nats:
        return low
    if entropy_nats(z[None] / high).item() <= target_nats:
        return high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if entropy_nats(z[None] / middle).item() < target_nats else (low, middle)
    return math.sqrt(low * high)


def _steered_temperature(z: Tensor, h: float, floats: list[float], kind: int) -> float:
    """T' of one selected row under its policy.

    split: arXiv 2506.01939, equation 5. dynatemp: T = min + (max - min) (H / ln vocab)^exponent, llama.cpp's temp_ext
    (over the full vocabulary here). edt: T = T0 base^(theta / H), arXiv 2403.14541.
    """
    a, b, c = floats[rows.PARAM_A], floats[rows.PARAM_B], floats[rows.PARAM_C]
    t = floats[rows.REQUEST_T]
    if kind == rows.SPLIT:
        return floats[rows.FORK_T]
    if kind == rows.ENTROPY_TARGET:
        return target_temperature(z, entropy_nats(z[None] / t).item() + a, b, c)
    if kind == rows.DYNATEMP:
        return a + (b - a) * (h / math.log(z.numel())) ** c if z.numel() > 1 else a
    return max(t * b ** (a / h), 0.01) if h > 0 else 0.01  # edt: base^(theta / H) -> 0 as H -> 0


def steer_(
    logits: Tensor,
    floats: Tensor,
    ints: Tensor,
    slots: Tensor,
    positions: Tensor,
    in_scope: Tensor | None = None,
) -> Outcome:
    """Steer `logits` in place.

    Args:
        logits: [rows, vocab] float; row r belongs to the request in slot `slots[r]`.
        floats: [slots, rows.FLOATS], the requests' numbers; see `steerdec.rows`.
        ints: [slots, rows.INTS].
        slots: [rows] integer; < 0 for a row that is not steered, which is left untouched.
        positions: [rows] integer, index of the token being sampled among those the request generates.
        in_scope: [rows] bool; where False, H is measured but the row is left untouched. None: all True.
    """
    n = logits.shape[0]
    outcome = Outcome(
        torch.full((n,), math.nan, dtype=torch.float64),
        torch.zeros(n, dtype=torch.bool),
        torch.full((n,), math.nan, dtype=torch.float64),
        torch.full((n,), math.nan, dtype=torch.float64),
    )
    for r in range(n):
        slot = int(slots[r])
        if slot < 0:
            continue
        f, (kind, select, key, cutoff) = floats[slot].double().tolist(), ints[slot].tolist()
        z = logits[r].double()
        h = entropy_nats(z[None]).item()
        outcome.entropy_nats[r] = h
        outcome.temperature[r] = t = f[rows.REQUEST_T]
        outcome.probe_entropy_nats[r] = probe_entropy_nats(z, h, f[rows.PROBE_T], t)
        if math.isnan(h) or (in_scope is not None and not in_scope[r]):
            continue
        selected = (
            select == rows.ALWAYS
            or (select == rows.BY_ENTROPY and h > f[rows.THRESHOLD])
            or (select == rows.BY_HASH and placebo_hash(key, int(positions[r])) < cutoff)
            or (select == rows.BY_POSITION and int(positions[r]) < cutoff)
        )
        steered = _steered_temperature(z, h, f, kind) if selected else f[rows.OTHER_T]
        outcome.selected[r] = selected
        outcome.temperature[r] = steered
        outcome.probe_entropy_nats[r] = probe_entropy_nats(z, h, f[rows.PROBE_T], steered)
        if steered == 0.0:
            keep = int(z.argmax())
            largest = logits[r, keep].clone()
            logits[r] = -math.inf
            logits[r, keep] = largest
        elif t != steered:
            logits[r] = (z * (t / steered)).to(logits.dtype)
    return outcome
