"""Steer one step's logits: the entry point of every backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import torch
from torch import Tensor

from steerdec.kernels import reference
from steerdec.kernels.reference import Outcome
from steerdec.steering import encoding
from steerdec.steering.memory import WORDS, ring_entries

VOCAB_PADDING: Final = 64  # vLLM rounds a vocabulary up to a multiple of it

Backend = Literal["auto", "cpu", "triton", "reference"]

BACKEND_OF_DEVICE: Final[dict[str, Literal["cpu", "triton"]]] = {"cuda": "triton", "cpu": "cpu"}


def steer_(
    logits: Tensor,
    floats: Tensor,
    ints: Tensor,
    slots: Tensor,
    positions: Tensor,
    in_scope: Tensor | None = None,
    memory: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Outcome:
    """Steer `logits` in place; what happens to a row is specified in :func:`steerdec.kernels.reference.steer_`.

    A row's outcome depends on that row alone, and on what is remembered of its request; it is the same bit for bit in
    every call on the same machine.

    Args:
        logits: [rows, vocab] float32, each row contiguous; the rows may lie apart.
        floats: [slots, encoding.FLOATS] float32.
        ints: [slots, encoding.INTS] int32.
        slots: [rows] integer; < 0 for a row that is neither read nor written.
        positions: [rows] integer.
        in_scope: [rows] bool, None for all True.
        memory: [memories, ring, memory.WORDS] int32, contiguous; None if no row's request has a memory, which costs
            nothing.
        backend: "auto" is "cpu" for logits on a CPU and "triton" for logits on CUDA; "reference" takes any
            device and float type, slowly.

    Returns:
        One entry per row, on the logits' device: `entropy_nats` float32, `selected` bool, `temperature` and
        `probe_entropy_nats` float32. With memory also `stopped` bool and `threshold_nats` float32.

    Raises:
        ValueError: the arguments do not fit the backend or each other.
        IndexError: on a CPU, a slot past the tables. On CUDA, where checking would stall the stream, the behavior is
            undefined.
    """
    if backend == "auto":
        if logits.device.type not in BACKEND_OF_DEVICE:
            raise ValueError(f"logits: are on {logits.device}, must be on one of {', '.join(BACKEND_OF_DEVICE)}")
        backend = BACKEND_OF_DEVICE[logits.device.type]
    _check(logits, floats, ints, slots, positions, in_scope)
    _check_memory(logits, memory)
    if backend == "reference":
        outcome = reference.steer_(logits, floats, ints, slots, positions, in_scope, memory)
        return Outcome(
            outcome.entropy_nats.to(logits.device, torch.float32),
            outcome.selected.to(logits.device),
            outcome.temperature.to(logits.device, torch.float32),
            outcome.probe_entropy_nats.to(logits.device, torch.float32),
            None if outcome.stopped is None else outcome.stopped.to(logits.device),
            None if outcome.threshold_nats is None else outcome.threshold_nats.to(logits.device, torch.float32),
        )
    if logits.dtype != torch.float32:
        raise ValueError(f"logits: are {logits.dtype}, must be torch.float32 for backend {backend}")
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise ValueError(f"logits: have stride {logits.stride(1)} within a row, must have 1 for backend {backend}")
    # Imported here because each needs a compiler library that the other kind of machine may lack.
    if backend == "cpu":
        from steerdec.kernels import cpu

        return cpu.steer_(logits, floats, ints, slots, positions, in_scope, memory)
    from steerdec.kernels import triton

    return triton.steer_(logits, floats, ints, slots, positions, in_scope, memory)


def warm_up(vocab: int, device: torch.device | str, ring: int = ring_entries(0)) -> None:
    """Compile what steering rows of `vocab` logits on `device` needs, so that no request waits for it (seconds).

    `ring` is the number of states that are kept of a request with a memory.
    """
    floats = torch.ones(1, encoding.FLOATS, dtype=torch.float32, device=device)
    ints = torch.zeros(1, encoding.INTS, dtype=torch.int32, device=device)
    slots = torch.zeros(2, dtype=torch.int32, device=device)
    in_scope = torch.ones(2, dtype=torch.bool, device=device)
    memory = torch.zeros(1, ring, WORDS, dtype=torch.int32, device=device)
    for window in windows(vocab, device):
        for scope in (None, in_scope):
            for kept in (None, memory):
                steer_(window, floats, ints, slots, slots.long(), scope, kept)


def windows(vocab: int, device: torch.device | str) -> Iterator[Tensor]:
    """Return zeros [2, vocab] for every way in which logits may lie in memory: Triton compiles for each anew.

    A model in float32 hands over a window of its padded vocabulary; and a row may begin anywhere in a batch.
    """
    for stride in dict.fromkeys((vocab, -(-vocab // VOCAB_PADDING) * VOCAB_PADDING)):
        logits = torch.zeros(3, stride, dtype=torch.float32, device=device)[:, :vocab]
        yield logits[:2]
        yield logits[1:]


def _check(
    logits: Tensor, floats: Tensor, ints: Tensor, slots: Tensor, positions: Tensor, in_scope: Tensor | None
) -> None:
    if logits.dim() != 2:
        raise ValueError(f"logits: have shape {list(logits.shape)}, must be [rows, vocab]")
    n = logits.shape[0]
    for name, tensor, dtypes, shape in (
        ("floats", floats, (torch.float32,), (floats.shape[0], encoding.FLOATS)),
        ("ints", ints, (torch.int32,), (floats.shape[0], encoding.INTS)),
        ("slots", slots, (torch.int32, torch.int64), (n,)),
        ("positions", positions, (torch.int32, torch.int64), (n,)),
        ("in_scope", in_scope, (torch.bool,), (n,)),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype not in dtypes or tensor.device != logits.device:
            raise ValueError(
                f"{name}: is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, must be "
                f"{' or '.join(map(str, dtypes))} {list(shape)} on {logits.device}"
            )


def _check_memory(logits: Tensor, memory: Tensor | None) -> None:
    if memory is None:
        return
    fits = memory.dim() == 3 and memory.shape[2] == WORDS and memory.is_contiguous()
    if not fits or memory.dtype != torch.int32 or memory.device != logits.device:
        raise ValueError(
            f"memory: is {memory.dtype} {list(memory.shape)} on {memory.device}, must be torch.int32 "
            f"[memories, ring, {WORDS}] on {logits.device}, contiguous"
        )
