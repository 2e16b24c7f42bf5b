"""The worker's end of the telemetry lanes: one record per steered token, written where the logits are."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from steerdec.kernels.reference import Outcome
from steerdec.telemetry.lanes import FLAG_BITS, FORK, STOPPED, LaneFile

logger = logging.getLogger("vllm.steerdec")

_CUDA_HOST_REGISTER_MAPPED = 2


class Recorder:
    """Writes outcomes into a lane file's records.

    Every rank of a tensor-parallel group may write: they decide alike, so they write the same.
    """

    def __init__(self, words: Tensor) -> None:
        """Write to `words`, int32 [lanes, capacity_tokens, telemetry.WORDS], on the logits' device; last lane: sink."""
        self.words = words
        self._sink = words.shape[0] - 1

    @classmethod
    def open(cls, file: LaneFile, device: torch.device) -> Recorder | None:
        """Open the file; return None, with a warning, if it is not on this host (a worker on another node)."""
        try:
            words = torch.from_numpy(file.open())
        except OSError as e:
            logger.warning("No telemetry from this worker: %s", e)
            return None
        if device.type == "cuda":
            words = _mapped_for_cuda(words)
        return cls(words)

    def write(self, lane: Tensor, generation: Tensor, position: Tensor, outcome: Outcome) -> None:
        """Record each row's outcome as token `position` of its lane; the last write of a token wins. (V1 runner, CPUs.)

        Args:
            lane: [rows] integer; rows without a lane (< 0) are not recorded.
            generation: [rows] integer, of the loan.
            position: [rows] integer, the token's index among those generated.
        """
        ok = (lane >= 0) & (lane < self._sink) & (position >= 0) & (position < self.words.shape[1])
        flags = outcome.selected.to(torch.int32) * FORK
        if outcome.stopped is not None:
            flags |= outcome.stopped.to(torch.int32) * STOPPED
        record = torch.stack(
            (
                outcome.entropy_nats.float().view(torch.int32),
                outcome.temperature.float().view(torch.int32),
                (generation.to(torch.int32) << FLAG_BITS) | flags,
                outcome.probe_entropy_nats.float().view(torch.int32),
            ),
            -1,
        )
        self.words[torch.where(ok, lane, self._sink).long(), torch.where(ok, position, 0).long()] = record


def _mapped_for_cuda(words: Tensor) -> Tensor:
    """Return the same memory as a CUDA tensor, so that kernels store to it and the server sees it without a copy."""
    from vllm.utils.torch_utils import get_accelerator_view_from_cpu_tensor

    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    error = runtime.cudaHostRegister(words.data_ptr(), words.numel() * words.element_size(), _CUDA_HOST_REGISTER_MAPPED)
    if int(error) != 0:
        raise RuntimeError(f"cudaHostRegister of the telemetry lanes failed with error {int(error)}")
    view: Tensor = get_accelerator_view_from_cpu_tensor(words)
    return view
