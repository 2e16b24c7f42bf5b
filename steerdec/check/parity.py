"""The kernel of this device against the reference in float64: all policies and selectors, awkward sizes.

An entropy within the rounding of float32 of the threshold may be decided either way; such rows are not compared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from steerdec.check import memory_parity
from steerdec.check.part import Reporter
from steerdec.check.results import Result, judged
from steerdec.kernels import dispatch, reference
from steerdec.policies import registry
from steerdec.policies.entropy_target.fields import EntropyTarget
from steerdec.policies.steered import Steered
from steerdec.softmax.reference import entropy_nats
from steerdec.steering import encoding, params

T: Final = 0.6
FIELDS: Final[dict[str, dict[str, Any]]] = {
    "split": {"fork_temperature": 1.3, "other_temperature": 0.4},
    "entropy_target": {"delta_nats": 0.3},
    "p_less": {"fork_temperature": 2.0},
}
SELECTORS: Final[dict[str, dict[str, Any]]] = {
    "entropy": {},
    "random": {"fork_rate": 0.4},
    "first": {"first_tokens": 2**30},
    "all": {},
}
EXTRA: Final = ({"fork_temperature": 0.0}, {"other_temperature": 0.0}, {"fork_temperature": T})
SIZES: Final = (1, 2, 63, 1000, 4095, 4097)
SHAPES: Final = ("random", "peaked", "flat", "equal", "masked", "bfloat16")
PASSED_OVER: Final = 5  # logits between two rows, which nobody may touch
BAND_NATS: Final = 1e-5  # of H, and as much again per nat
CLOSE_NATS: Final = 1e-3  # of what an entropy target reaches
ULPS: Final = 3e-7  # of a scaled logit, relative
FLOOR: Final = (2e-7, 3e-6)  # how far a computed floor may be off: of itself, and of T'


def requested() -> list[dict[str, Any]]:
    """Return every policy under every selector, and some that keep one token only or change nothing."""
    pairs = itertools.product(registry.POLICIES, SELECTORS)
    made = [{"policy": p, "select": s} | FIELDS.get(p, {}) | SELECTORS[s] for p, s in pairs]
    return [*made, *map(dict, EXTRA)]


class Found:
    """The worst of all rows compared."""

    def __init__(self) -> None:
        self.rows = self.wrong = self.touched = 0
        self.entropy_nats = self.logits = self.target_nats = 0.0
        self.first_wrong = ""

    def wrong_row(self, what: str) -> None:
        self.wrong += 1
        self.first_wrong = self.first_wrong or what


def results(reporter: Reporter, device: torch.device, vocab: int) -> Iterator[Result]:
    """Compare, and judge what was found."""
    found = Found()
    small = reporter.settings.quick or reporter.settings.interpreted
    large = [] if vocab in SIZES or (reporter.settings.interpreted and vocab > 4097) else [vocab]
    cases = [(shape, size) for size in (*SIZES, *large) for shape in (SHAPES[:3] if small else SHAPES)]
    for i, (shape, size) in enumerate(cases):
        reporter.progress(f"kernel against the reference: {shape}, {size:,} logits ({i + 1} of {len(cases)})")
        _compare(found, shape, size, device)
    memory_parity.compare(found, device)
    names = ("kernel: as the reference", "kernel: other rows untouched")
    figures = {
        "rows": found.rows,
        "rows_wrong": found.wrong,
        "worst_entropy_nats": found.entropy_nats,
        "worst_logit_relative": found.logits,
        "worst_entropy_target_nats": found.target_nats,
    }
    measured = (
        f"{found.rows:,} rows: {found.wrong} decided otherwise{found.first_wrong and f' ({found.first_wrong})'}, "
        f"H off by {found.entropy_nats:.1e} nats, logits by {found.logits:.1e}"
    )
    passed = found.wrong == 0 and found.entropy_nats <= 2 * BAND_NATS * (1 + math.log(max(vocab, 2)))
    passed = passed and found.logits <= ULPS and found.target_nats <= CLOSE_NATS
    yield judged(names[0], measured, f"0 decided otherwise, logits within {ULPS:g}", passed, **figures)
    yield judged(names[1], f"{found.touched} bits changed", "0", found.touched == 0, bits_changed=found.touched)


def _compare(found: Found, shape: str, vocab: int, device: torch.device) -> None:
    encoded = [encoding.encode(registry.parse(r), T, params.PAPER_THRESHOLD_NATS) for r in requested()]
    n = len(encoded)
    floats = torch.tensor([e.floats for e in encoded])
    ints = torch.tensor([e.ints(7) for e in encoded], dtype=torch.int32)
    generator = np.random.default_rng([vocab, SHAPES.index(shape)])
    slots = torch.from_numpy(np.where(generator.random(n) < 0.2, -1, generator.permutation(n)))
    positions = torch.from_numpy(generator.integers(0, 2**31, n))
    before = _logits(shape, n, vocab, generator)
    memory = torch.full((n, vocab + PASSED_OVER), math.nan, device=device)
    memory[:, :vocab] = before.to(device)
    window, kept = memory[:, :vocab], memory.clone()
    outcome = dispatch.steer_(window, *(x.to(device) for x in (floats, ints, slots, positions)))
    kept[:, :vocab][slots >= 0] = window[slots >= 0]
    found.touched += int((memory.view(torch.int32) != kept.view(torch.int32)).sum())
    # An entropy target is solved by bisection over the whole row: that of the reference is compared by what it reaches.
    quick = ints.clone()
    quick[ints[:, encoding.KIND] == EntropyTarget.kind, encoding.KIND] = registry.POLICIES["split"].kind
    expected = reference.steer_(before.clone(), floats, quick, slots, positions)
    after = window.cpu()
    for r in torch.nonzero(slots >= 0).flatten().tolist():
        _compare_row(found, before[r], after[r], r, floats[slots[r]], ints[slots[r]], outcome, expected)


def _compare_row(
    found: Found, z: Tensor, after: Tensor, r: int, f: Tensor, i: Tensor, outcome: Any, expected: Any
) -> None:
    h, exact = float(outcome.entropy_nats[r]), float(expected.entropy_nats[r])
    found.rows += 1
    if math.isnan(h) != math.isnan(exact):
        return found.wrong_row(f"H {h:g} instead of {exact:g}")
    found.entropy_nats = max(found.entropy_nats, abs(h - exact))
    band = BAND_NATS * (1 + abs(exact))
    if int(i[encoding.SELECT]) == encoding.BY_ENTROPY and abs(exact - float(f[encoding.THRESHOLD])) <= band:
        return None
    selected, steered_t = bool(outcome.selected[r]), float(outcome.temperature[r])
    if selected != bool(expected.selected[r]):
        return found.wrong_row(f"fork {selected} at H {exact:.4f}")
    if selected and int(i[encoding.KIND]) == EntropyTarget.kind:
        found.target_nats = max(found.target_nats, _missed_nats(z, exact, f, steered_t))
        wanted = Steered(steered_t)
    else:
        wanted = _step(int(i[encoding.KIND]), z, h, f) if selected else Steered(float(expected.temperature[r]))
        if not math.isclose(steered_t, wanted.temperature, rel_tol=1e-6, abs_tol=1e-9):
            return found.wrong_row(f"T' {steered_t:g} instead of {wanted.temperature:g}")
    if steered_t == 0.0:
        keep = int(z.argmax())
        if float(after[keep]) != float(z[keep]) or int((after > -math.inf).sum()) != 1:
            return found.wrong_row("T' 0 kept another token than the first largest")
        return None
    kept = z.double() >= wanted.floor
    kept &= ~z.isneginf()
    if not torch.equal(after.isneginf() & ~_either_way(z, wanted), ~kept & ~_either_way(z, wanted)):
        return found.wrong_row("another token is masked")
    kept &= ~after.isneginf()
    scaled = z.double()[kept] * (float(f[encoding.REQUEST_T]) / steered_t)
    error = (after.double()[kept] - scaled).abs()
    if (error[scaled == 0] != 0).any():
        return found.wrong_row("a logit is not 0")
    if (scaled != 0).any():
        found.logits = max(found.logits, float((error / scaled.abs())[scaled != 0].max()))
    return None


def _either_way(z: Tensor, wanted: Steered) -> Tensor:
    """Return the logits [vocab] that may be kept or not: those within rounding of a computed floor, not the largest."""
    if not math.isfinite(wanted.floor) or math.isinf(wanted.temperature):
        return torch.zeros(len(z), dtype=torch.bool)
    band = FLOOR[0] * abs(wanted.floor) + FLOOR[1] * wanted.temperature
    return ((z.double() - wanted.floor).abs() <= band) & (z < z.max())


def _step(kind: int, z: Tensor, h: float, f: Tensor) -> Steered:
    steps = dict(registry.steps("reference"))
    steered: Steered = steps[kind](z.double(), h, f.double().tolist())
    return steered


def _missed_nats(z: Tensor, h: float, f: Tensor, steered_t: float) -> float:
    """How far the entropy at the kernel's T' is from that at the reference's."""
    wanted = _step(EntropyTarget.kind, z, h, f)
    reached, target = (entropy_nats(z[None].double() / t).item() for t in (steered_t, wanted.temperature))
    return abs(reached - target)


def _logits(shape: str, n: int, vocab: int, generator: np.random.Generator) -> Tensor:
    z = generator.normal(size=(n, vocab)) * generator.uniform(1, 4, size=(n, 1)) + generator.normal(size=(n, 1)) * 20
    if shape == "peaked":
        z[np.arange(n), generator.integers(vocab, size=n)] += generator.uniform(5, 60, size=n)
    elif shape == "flat":
        z *= 1e-3
    elif shape == "equal":
        z = np.repeat(z[:, :1], vocab, axis=1)
    elif shape == "masked":
        z[generator.random((n, vocab)) < 0.7] = -np.inf
        z[:, -1] = 1.0
    tensor = torch.from_numpy(z.astype(np.float32))
    return tensor.bfloat16().float() if shape == "bfloat16" else tensor
