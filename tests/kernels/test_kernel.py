"""Every backend does what the reference says: same entropies, same decisions, same logits.

The CUDA kernels are compared on a GPU where there is one, else in Triton's interpreter, which runs
this file once more in a process of its own because it must be chosen before triton is imported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdec.kernels import cpu as kernel_cpu
from steerdec.kernels import dispatch, reference
from steerdec.kernels.slots import SLOT_INTS, STEERED
from steerdec.policies import registry
from steerdec.policies.entropy_target import fields
from steerdec.policies.entropy_target.fields import EntropyTarget
from steerdec.policies.split.fields import Split
from steerdec.policies.steered import Steered
from steerdec.steering import encoding, params

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = {"cpu": "cpu", "triton": "cpu" if INTERPRETED else "cuda"}
BACKENDS = ["triton"] if INTERPRETED else ["cpu", "triton"] if torch.cuda.is_available() else ["cpu"]

T = 0.6
POLICIES: dict[str, dict[str, Any]] = {
    "up": {"fork_temperature": 1.0},
    "both": {"fork_temperature": 1.3, "other_temperature": 0.4},
    "coldest forks": {"fork_temperature": 0.01},
    "greedy forks": {"fork_temperature": 0.0},
    "greedy others": {"other_temperature": 0.0},
    "nothing": {"fork_temperature": T},
    "placebo": {"select": "random", "fork_rate": 0.4, "fork_temperature": 1.0},
    "first": {"select": "first", "first_tokens": 2**30, "fork_temperature": 1.5, "other_temperature": 0.3},
    "all": {"select": "all", "fork_temperature": 2.0},
    "target up": {"policy": "entropy_target", "delta_nats": 0.4},
    "target down": {"policy": "entropy_target", "delta_nats": -0.3, "select": "all"},
    "target none": {"policy": "entropy_target", "delta_nats": 0.0, "select": "all"},
    "target far": {"policy": "entropy_target", "delta_nats": 20.0, "select": "all"},
    "target outside": {"policy": "entropy_target", "delta_nats": 0.1, "min_temperature": 0.9, "max_temperature": 1.1},
    "dynatemp": {"policy": "dynatemp", "exponent": 1.7},
    "edt": {"policy": "edt"},
    "edt at forks": {"policy": "edt", "select": "entropy", "theta": 1.0},
    "p_less": {"policy": "p_less", "select": "all"},
    "hot p_less": {"policy": "p_less", "fork_temperature": 2.0, "other_temperature": 0.4},
    "greedy p_less": {"policy": "p_less", "fork_temperature": 0.0},
    "uniform": {"policy": "uniform_top_k", "select": "all"},
    "uniform at forks": {"policy": "uniform_top_k", "k": 2, "other_temperature": 0.3},
    "uniform over many": {"policy": "uniform_top_k", "k": 64, "select": "random", "fork_rate": 0.7},
}
PROBES = [None, "applied", 0.3, 2.5]
SHAPES = ["random", "peaked", "flat", "equal", "two levels", "masked", "bf16", "tied", "wide"]
VOCABS = [1, 2, 63, 1000, 4095, 4097, 9000, 49_152, 151_936]
# The interpreter takes a second for what a GPU does in microseconds; many blocks of any shape are one case there.
CASES = [(s, v) for s in SHAPES for v in VOCABS if not INTERPRETED or v < 49_152 or (s, v) == ("masked", 49_152)]


class Call(NamedTuple):
    """The arguments of one call, after logits."""

    floats: Tensor
    ints: Tensor
    slots: Tensor
    positions: Tensor
    in_scope: Tensor | None


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, and True for bool, so that what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def tables() -> tuple[Tensor, Tensor]:
    """One slot a policy, in the order of POLICIES, each with the next of PROBES."""
    requested = [p | {"probe_temperature": PROBES[i % len(PROBES)]} for i, p in enumerate(POLICIES.values())]
    encoded = [encoding.encode(registry.parse(p), T, params.PAPER_THRESHOLD_NATS) for p in requested]
    return torch.tensor([r.floats for r in encoded]), torch.tensor([r.ints(7) for r in encoded], dtype=torch.int32)


def logits_of(shape: str, n: int, vocab: int) -> Tensor:
    generator = np.random.default_rng([SHAPES.index(shape), n, vocab])
    z = generator.normal(size=(n, vocab)) * generator.uniform(1, 4, size=(n, 1)) + generator.normal(size=(n, 1)) * 20
    if shape == "peaked":
        z[np.arange(n), generator.integers(vocab, size=n)] += generator.uniform(5, 60, size=n)
    elif shape == "flat":
        z = 1e-3 * z
    elif shape == "equal":
        z = np.repeat(z[:, :1], vocab, axis=1)
    elif shape == "two levels":  # every error of exp is the same one, so that none cancels
        z = np.repeat(z[:, :1], vocab, axis=1) - np.linspace(8, 14, n)[:, None]
        z[:, vocab // 2] += np.linspace(8, 14, n)
    elif shape == "masked":
        z[generator.random((n, vocab)) < 0.7] = -np.inf
        z[:, : vocab // 2] = -np.inf
        z[:, -1] = 1.0
    elif shape == "tied":
        z = np.round(z / 4) * 4
    elif shape == "wide":
        z *= 10.0 ** generator.uniform(1, 30, size=(n, 1))
    tensor = torch.from_numpy(z.astype(np.float32))
    return tensor.bfloat16().float() if shape in ("bf16", "tied") else tensor


def call_for(n: int, *, seed: int = 0, skip: float = 0.2) -> Call:
    generator = np.random.default_rng(seed)
    slots = (np.arange(n) + generator.integers(100)) % len(POLICIES)
    slots[generator.random(n) < skip] = -1
    positions = generator.integers(0, 2**31, size=n)
    in_scope = torch.from_numpy(generator.random(n) < 0.9) if seed % 2 else None
    return Call(*tables(), torch.from_numpy(slots), torch.from_numpy(positions), in_scope)


def steered(logits: Tensor, call: Call, backend: str) -> tuple[Tensor, reference.Outcome]:
    """What the backend makes of a copy of `logits`, brought back to the CPU.

    The copy's rows lie apart in memory full of NaN, with a NaN of its own payload between them;
    rows without a slot are full of it too. None of it may change.
    """
    n, vocab = logits.shape
    poison = torch.tensor(0x7FC0DEAD, dtype=torch.int32).view(torch.float32)
    memory = torch.full((n, vocab + 5), poison.item(), device=DEVICE[backend]).view(torch.int32)
    memory.fill_(0x7FC0DEAD)
    skipped = call.slots < 0
    window = memory.view(torch.float32)[:, :vocab]
    window[~skipped] = logits[~skipped].to(window.device)
    before = memory.clone()
    outcome = dispatch.steer_(window, *(None if x is None else x.to(window.device) for x in call), backend=backend)
    assert torch.equal(memory[:, vocab:], before[:, vocab:]), "wrote past a row's end"
    assert torch.equal(memory[skipped], before[skipped]), "wrote to a row without a slot"
    assert outcome[4:] == (None, None), "what is remembered, of requests without a memory"
    assert [x.dtype for x in outcome[:4]] == [torch.float32, torch.bool, torch.float32, torch.float32]
    return window.cpu().clone(), reference.Outcome(*(x.cpu() for x in outcome[:4]))


def band_nats(h: Tensor) -> Tensor:
    return 1e-5 + 1e-5 * h.abs()


def ulps(a: Tensor, b: Tensor) -> Tensor:
    """Distance of two positive float32 tensors in units of the last place."""
    return (a.float().view(torch.int32) - b.float().view(torch.int32)).abs()


def step_of(call: Call, r: int, h: float, z: Tensor) -> Steered:
    """What a policy other than entropy_target makes of a selected row whose entropy is `h`, by the reference."""
    slot = int(call.slots[r])
    f = call.floats[slot].double().tolist()
    return dict(registry.steps("reference"))[int(call.ints[slot, encoding.KIND])](z.double(), h, f)


def assert_like_reference(logits: Tensor, call: Call, backend: str) -> reference.Outcome:
    after, outcome = steered(logits, call, backend)
    exact = reference.entropy_nats(logits)
    given = call.slots >= 0
    threshold = call.floats[call.slots.clamp(min=0), encoding.THRESHOLD].double()

    assert torch.equal(outcome.entropy_nats.isnan(), ~given | exact.isnan())
    h = outcome.entropy_nats.double()
    measured = given & ~exact.isnan()
    assert (h - exact)[measured].abs().le(band_nats(exact)[measured]).all()

    # Whether a row is selected is not the policy's affair, so the slow solution of entropy_target is left out here.
    quick = call.ints.clone()
    quick[:, encoding.KIND] = Split.kind
    expected = reference.steer_(logits.clone(), *call._replace(ints=quick))
    certain = (exact - threshold).abs() > band_nats(exact)
    by_entropy = call.ints[call.slots.clamp(min=0), encoding.SELECT] == encoding.BY_ENTROPY
    compared = certain | ~by_entropy | ~given
    assert torch.equal(outcome.selected[compared], expected.selected[compared])

    for r in torch.nonzero(compared & given).flatten().tolist():
        slot = int(call.slots[r])
        kind, steered_t = int(call.ints[slot, encoding.KIND]), outcome.temperature[r]
        row, before = after[r], logits[r]
        f, floor = call.floats[slot], -math.inf
        if outcome.selected[r] and kind != EntropyTarget.kind:
            floor = step_of(call, r, h[r].item(), before).floor
        near = floor_band(before, floor, steered_t.item())
        if not near.any():  # else the entropy of what is kept depends on a rounding
            assert_probed(outcome.probe_entropy_nats[r], before, exact[r], f, Steered(steered_t.item(), floor))
        if exact[r].isnan():
            assert torch.equal(row.view(torch.int32), before.view(torch.int32))
            assert steered_t == f[encoding.REQUEST_T]
            continue
        if not outcome.selected[r] or kind == Split.kind:
            assert steered_t == expected.temperature[r].float()
        elif kind == EntropyTarget.kind:
            assert_entropy_reached(before, f, steered_t.item())
        else:
            wanted = step_of(call, r, h[r].item(), before).temperature
            assert steered_t == wanted or ulps(steered_t, torch.tensor(wanted)) <= 2
        if floor > -math.inf:
            assert_truncated(row, before, floor, near, f[encoding.REQUEST_T].item() / steered_t.item())
        elif steered_t == 0.0:
            keep = int(before.argmax())
            assert row[keep] == before[keep]
            row[keep] = -math.inf
            assert row.isneginf().all()
        elif steered_t == f[encoding.REQUEST_T]:
            assert torch.equal(row.view(torch.int32), before.view(torch.int32))
        else:
            scaled = before.double() * (f[encoding.REQUEST_T].double() / steered_t.double())
            torch.testing.assert_close(row, scaled.float(), rtol=3e-7, atol=1e-38)
    return outcome


def floor_band(z: Tensor, floor: float, steered_t: float) -> Tensor:
    """[vocab] the logits so close to a floor that is computed in float32 that they may be kept or not.

    A floor at infinite temperature is one of the logits, which leaves nothing open; nor is the largest ever removed.
    """
    if not math.isfinite(floor) or math.isinf(steered_t):
        return torch.zeros(len(z), dtype=torch.bool)
    band = 2e-7 * abs(floor) + 3e-6 * steered_t
    return ((z.double() - floor).abs() <= band) & (z < z.max())


def assert_truncated(row: Tensor, before: Tensor, floor: float, near: Tensor, factor: float) -> None:
    kept = (before.double() >= floor) | (before == before.max())
    assert torch.equal(row.isneginf()[~near], ~kept[~near])
    kept &= ~row.isneginf()
    torch.testing.assert_close(row[kept], (before[kept].double() * factor).float(), rtol=3e-7, atol=1e-38)
    if factor == 1.0:
        assert torch.equal(row[kept].view(torch.int32), before[kept].view(torch.int32))


def assert_probed(probed: Tensor, z: Tensor, exact: Tensor, f: Tensor, steered: Steered) -> None:
    expected = torch.tensor(reference.probe_entropy_nats(z.double(), exact.item(), f[encoding.PROBE_T].item(), steered))
    assert probed.isnan() == expected.isnan()
    assert probed.isnan() or abs(probed - expected) <= band_nats(expected)


def assert_entropy_reached(z: Tensor, f: Tensor, steered_t: float) -> None:
    def entropy_at(t: float) -> float:
        return reference.entropy_nats(z[None].double() / t).item()

    low, high = f[fields.LOW].item(), f[fields.HIGH].item()
    assert low <= steered_t <= high
    target = entropy_at(f[encoding.REQUEST_T].item()) + f[fields.DELTA].item()
    nearest = min(max(target, entropy_at(low)), entropy_at(high))
    assert entropy_at(steered_t) == pytest.approx(nearest, abs=1e-3)


@pytest.mark.parametrize(("shape", "vocab"), CASES)
def test_parity(shape: str, vocab: int, backend: str) -> None:
    n = 2 * len(POLICIES) if vocab < 10_000 and not INTERPRETED else len(POLICIES) + 1
    assert_like_reference(logits_of(shape, n, vocab), call_for(n, seed=vocab), backend)


def test_parity_holds_in_many_random_batches(backend: str) -> None:
    for seed in range(8 if INTERPRETED else 60):
        generator = np.random.default_rng(seed)
        n, vocab = int(generator.integers(1, 12)), int(generator.integers(1, 12_000))
        shape = SHAPES[int(generator.integers(len(SHAPES)))]
        with threads(1 + seed % 4):
            assert_like_reference(logits_of(shape, n, vocab), call_for(n, seed=seed), backend)


@pytest.mark.parametrize("vocab", [1, 63, 9000])
@pytest.mark.parametrize("bad", ["nan", "negative nan", "inf", "fully masked"])
def test_a_row_without_an_entropy_is_left_alone(bad: str, vocab: int, backend: str) -> None:
    n = len(POLICIES)
    call = Call(*tables(), torch.arange(n), torch.arange(n), None)
    logits = logits_of("random", n, vocab)
    logits[:, vocab // 3 :] = -math.inf
    if bad == "fully masked":
        logits[:] = -math.inf
    else:
        as_bits = {"nan": 0x7FC00000, "negative nan": 0x7FC00000 - 2**31, "inf": 0x7F800000}[bad]
        logits.view(torch.int32)[torch.arange(n), (torch.arange(n) * 977) % vocab] = as_bits
    outcome = assert_like_reference(logits, call, backend)
    assert outcome.entropy_nats.isnan().all()
    assert not outcome.selected.any()


@pytest.mark.parametrize("vocab", [3, 9000])
def test_a_row_depends_neither_on_its_neighbors_nor_on_the_threads(vocab: int, backend: str) -> None:
    n = len(POLICIES)
    logits, call = logits_of("random", n, vocab), call_for(n, seed=3)
    assert kernel_cpu._on_torch_threads() is not None
    with threads(3):
        together = steered(logits, call, backend)
    with threads(1):
        on_one_thread = steered(logits, call, backend)
    order = torch.from_numpy(np.random.default_rng(5).permutation(n))
    shuffled = steered(logits[order], call._replace(**of_rows(call, order)), backend)
    for r in range(n):
        alone = steered(logits[r : r + 1], call._replace(**of_rows(call, slice(r, r + 1))), backend)
        at = int((order == r).nonzero())
        for (other_logits, other), index in ((alone, 0), (on_one_thread, r), (shuffled, at)):
            assert torch.equal(bits(other_logits[index]), bits(together[0][r]))
            for a, b in zip(other[:4], together[1][:4], strict=True):
                assert torch.equal(bits(a[index]), bits(b[r]))


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """torch's, whatever OMP_NUM_THREADS says."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def of_rows(call: Call, index: Any) -> dict[str, Any]:
    return {
        "slots": call.slots[index],
        "positions": call.positions[index],
        "in_scope": None if call.in_scope is None else call.in_scope[index],
    }


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32) if x.dtype == torch.float32 else x


def test_the_first_tokens_end_where_they_were_asked_to(backend: str) -> None:
    first = list(POLICIES).index("first")
    positions = torch.tensor([0, 2**30 - 1, 2**30, 2**31 - 1])
    call = Call(*tables(), torch.full((4,), first), positions, None)
    outcome = assert_like_reference(logits_of("random", 4, 63), call, backend)
    assert outcome.selected.tolist() == [True, True, False, False]


def test_integer_inputs_of_either_width_and_any_stride_do(backend: str) -> None:
    n = len(POLICIES)
    logits, call = logits_of("random", n, 500), call_for(n, seed=1)
    narrow = call._replace(slots=call.slots.int(), positions=call.positions.int())
    strided = call._replace(slots=call.slots.repeat_interleave(2)[::2], positions=call.positions.repeat(2)[:n])
    expected, _ = steered(logits, call, backend)
    for other in (narrow, strided):
        assert torch.equal(bits(steered(logits, other, backend)[0]), bits(expected))


def test_an_empty_batch_is_no_error(backend: str) -> None:
    outcome = assert_like_reference(torch.empty(0, 100), call_for(0), backend)
    assert [len(x) for x in outcome[:4]] == [0] * 4


def test_warm_up_leaves_nothing_to_compile_on_a_cpu() -> None:
    from steerdec.kernels import cpu as kernel_cpu

    kernel_cpu._worker.cache_clear()
    dispatch.warm_up(1000, "cpu")
    assert kernel_cpu._worker.cache_info().misses == 1
    dispatch.steer_(logits_of("random", 9, 500), *call_for(9))
    assert kernel_cpu._worker.cache_info().misses == 1


def test_the_reference_backend_takes_other_float_types_and_answers_in_float32() -> None:
    logits, call = logits_of("random", 20, 300).bfloat16(), call_for(20)
    expected = reference.steer_(by_hand := logits.clone(), *call)
    outcome = dispatch.steer_(logits, *call, backend="reference")
    assert torch.equal(logits, by_hand)
    assert torch.equal(bits(outcome.entropy_nats), bits(expected.entropy_nats.float()))
    assert outcome.temperature.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logits", torch.zeros(4, 10, dtype=torch.bfloat16), "logits: are torch.bfloat16, must be torch.float32"),
        ("logits", torch.zeros(10, 4).T, "logits: have stride 4 within a row, must have 1"),
        ("logits", torch.zeros(10), r"logits: have shape \[10\], must be \[rows, vocab\]"),
        ("logits", torch.zeros(4, 10, device="meta"), "logits: are on meta, must be on one of cuda, cpu"),
        ("floats", torch.zeros(3, 2), r"floats: is torch.float32 \[3, 2\] on cpu, must be torch.float32 \[3, 14\]"),
        ("floats", torch.zeros(3, 14).double(), "floats: is torch.float64"),
        ("ints", torch.zeros(2, 5, dtype=torch.int32), r"ints: .* must be torch.int32 \[3, 5\]"),
        ("slots", torch.zeros(5, dtype=torch.int64), r"slots: .* must be torch.int32 or torch.int64 \[4\]"),
        ("positions", torch.zeros(4), "positions: is torch.float32"),
        ("in_scope", torch.zeros(4, dtype=torch.int32), "in_scope: is torch.int32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name: str, value: Tensor, message: str) -> None:
    arguments = {
        "logits": torch.zeros(4, 10),
        "floats": torch.zeros(3, encoding.FLOATS),
        "ints": torch.zeros(3, encoding.INTS, dtype=torch.int32),
        "slots": torch.zeros(4, dtype=torch.int64),
        "positions": torch.zeros(4, dtype=torch.int64),
        "in_scope": None,
    }
    with pytest.raises(ValueError, match=message):
        dispatch.steer_(**{**arguments, name: value})


def test_a_slot_past_the_tables_is_refused_on_a_cpu() -> None:
    call = call_for(4)._replace(slots=torch.tensor([0, 1, len(POLICIES), 2]))
    with pytest.raises(IndexError, match=f"slots: {len(POLICIES)} is past the {len(POLICIES)} slots"):
        dispatch.steer_(torch.zeros(4, 10), *call)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_torchs_default_type_is_the_callers_own_affair(default: torch.dtype) -> None:
    """The compiled code writes float32, whatever `torch.empty` would make."""
    logits, call = logits_of("random", 6, 1000), call_for(6, skip=0.0)
    expected = dispatch.steer_(logits.clone(), *call)
    torch.set_default_dtype(default)
    try:
        outcome = dispatch.steer_(logits.clone(), *call)
        dispatch.warm_up(1000, "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    for made, wanted in zip(outcome[:4], expected[:4], strict=True):
        assert made.dtype == wanted.dtype
        torch.testing.assert_close(made, wanted, rtol=0, atol=0, equal_nan=True)


def test_the_benchmark_times_every_contender() -> None:
    from steerdec.benchmarks.engine import kernel as benchmark

    timings = benchmark.measure(3, 1000, benchmark.FEWEST_ROUNDS, torch.device("cpu"))
    assert [t.contender for t in timings] == ["steer", "entropy", "softmax", "copy"]
    for t in timings:
        assert t.rounds == benchmark.FEWEST_ROUNDS
        assert 0 < t.best_s <= t.median_s
        assert t.over_softmax_ci95[0] <= t.over_softmax <= t.over_softmax_ci95[1]
    assert timings[2].over_softmax == timings[3].over_copy == 1.0


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    "compute_capability", [90, *(pytest.param(other, marks=pytest.mark.thorough) for other in (80, 100))]
)
def test_the_triton_kernels_compile_without_a_gpu(compute_capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes what the compiler refuses, so a machine without a GPU asks the compiler as well."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from steerdec.kernels import triton as kernel_triton
    from steerdec.kernels import triton_step

    scalars = ("row_stride", "token_stride", "lanes", "capacity_tokens")
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    integers = {"slots": "*i32", "ints": "*i32", "keep_block": "*i32", "positions": "*i64"}
    integers |= {"in_scope": "*u8", "selected": "*u8", "table": "*i32", "pos": "*i64", "history": "*i64"}
    integers |= {"memory": "*i32", "stopped": "*u8"}
    integers |= dict.fromkeys(("prompt_len", "prefill_len", "token_ids", "lanes", "local_pos", "input_ids"), "*i32")
    sizes: dict[str, Any] = {"VOCAB": 151_936, "BLOCK": kernel_triton.BLOCK}
    with_slots = {"WIDTH": SLOT_INTS, "COLUMN": STEERED}
    forgets: dict[str, Any] = {"memory_ptr": None, "RING": 1}
    forgets_rows = forgets | {"stopped_ptr": None, "threshold_ptr": None}
    for function, variants in (
        (kernel_triton.measure, [{"table_ptr": None, "WIDTH": 1, "COLUMN": 0}, with_slots]),
        (kernel_triton._decide, [forgets_rows | {"in_scope_ptr": None}, forgets_rows, {"RING": 4}]),
        (triton_step._decide_step, [forgets, {"RING": 8}]),
        (kernel_triton.scale, [{}]),
    ):
        for variant in variants:
            constants = sizes | variant
            signature = {
                name: "constexpr" if name in constants else integers.get(name.removesuffix("_ptr"), "*fp32")
                for name in function.arg_names
            }
            signature |= {name: "i32" for name in scalars if name in signature}
            source = ASTSource(function, signature, {(function.arg_names.index(k),): v for k, v in constants.items()})
            target = GPUTarget("cuda", compute_capability, 32)
            compiled = triton.compile(source, target=target, options=kernel_triton.OPTIONS)
            assert "atom." not in compiled.asm["ptx"]


@pytest.mark.parametrize(("vocab", "strides"), [(518, {518, 576}), (151_936, {151_936})])
def test_a_warm_up_has_every_way_in_which_logits_lie_in_memory(vocab: int, strides: set[int]) -> None:
    """A model in float32 hands over a window of its padded vocabulary, for which Triton compiled while serving."""
    windows = list(dispatch.windows(vocab, "cpu"))
    assert {window.stride(0) for window in windows} == strides
    assert {tuple(window.shape) for window in windows} == {(2, vocab)}
    assert {window.storage_offset() for window in windows} == {0, *strides}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_steering_on_cuda_never_waits_for_the_gpu() -> None:
    arguments = [None if x is None else x.cuda() for x in call_for(20, seed=1)]
    logits = logits_of("random", 20, 9000).cuda()
    dispatch.warm_up(9000, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        dispatch.steer_(logits, *arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="already compared in this process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_kernels_pass_these_tests_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
