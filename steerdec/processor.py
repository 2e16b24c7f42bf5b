"""The vLLM adapter: one class for both of vLLM's model runners.

Both runners call `apply` on unscaled logits, after bias, bad words and grammar and before temperature, min-p,
top-k and top-p. Rows scaled here are divided by the request's own temperature afterwards, and truncation sees the
steered distribution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import vllm

from steerdec.vllm_plugin import versions

# vLLM's own server imports this through the entry point, without our launcher's check: report an unsupported version
# before an import below fails on a name that has moved.
versions.check("vLLM", vllm.__version__)

# isort: split
import torch  # noqa: E402
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor  # noqa: E402
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor  # noqa: E402

from steerdec.kernels import dispatch  # noqa: E402
from steerdec.vllm_plugin import request  # noqa: E402
from steerdec.vllm_plugin.recorder import Recorder  # noqa: E402
from steerdec.vllm_plugin.runner_v1 import BatchRows  # noqa: E402
from steerdec.vllm_plugin.runner_v2 import SlotRows  # noqa: E402
from steerdec.vllm_plugin.settings import Settings  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor.interface import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState

# vLLM loads a processor both for its entry point and for its name on the command line, and would then apply two
# instances. Only the newest one of an engine acts. Keyed by the id of the engine's configuration, which the instance
# keeps alive (the object itself is not hashable).
_acting: WeakValueDictionary[int, EntropySteering] = WeakValueDictionary()


class EntropySteering(V1LogitsProcessor, V2LogitsProcessor):  # type: ignore[misc]  # vLLM is untyped to mypy here
    """Steers every request with `extra_args={"steering": {...}}`, and others where the engine has a default."""

    def __init__(
        self, vllm_config: VllmConfig, place: torch.device | LogitsProcRequestState, is_pin_memory: bool = False
    ) -> None:
        """Build it for one of vLLM's runners: V1 passes a device and a flag, V2 the state of its request slots.

        Raises:
            ValueError: the `steerdec` entry of vLLM's additional config is invalid.
        """
        self._vllm_config = vllm_config
        _acting[id(vllm_config)] = self
        settings = Settings.of(vllm_config)
        device = place if isinstance(place, torch.device) else place.device
        recorder = Recorder.open(settings.lanes.file, device) if settings.lanes else None
        # Exactly one of the two, depending on the runner.
        self._v1: BatchRows | None = None
        self._v2: SlotRows | None = None
        if isinstance(place, torch.device):
            self._v1 = BatchRows(settings, recorder, device)
            dispatch.warm_up(vllm_config.model_config.get_vocab_size(), device, self._v1.ring)
        else:
            self._v2 = SlotRows(settings, recorder, vllm_config, place)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Admit and encode a request in the front end; raise ValueError (HTTP 400) if its steering is refused."""
        request.validate(sampling_params)

    @property
    def acting(self) -> bool:
        """Return whether this instance steers, rather than a newer one that was loaded beside it."""
        return _acting.get(id(self._vllm_config)) is self

    # V1 runner ------------------------------------------------------------------------------------

    def is_argmax_invariant(self) -> bool:
        """Return False: V1 then calls `apply` early, on unscaled logits, before min-p."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if self._v1 is not None and batch_update is not None and self.acting:
            self._v1.update(batch_update)

    # V2 runner ------------------------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        return self._v2 is not None and self.acting and self._v2.add(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        if self._v2 is not None:
            self._v2.flush()

    # Both -----------------------------------------------------------------------------------------

    def apply(self, logits: Tensor, ctx: LogitsContext | None = None) -> Tensor:
        """Steer [rows, vocab] logits in place; nothing is launched when no row is steered."""
        rows = logits
        if logits.dtype != torch.float32 or (logits.shape[1] > 1 and logits.stride(1) != 1):
            rows = logits.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        if ctx is None:
            if self._v1 is not None and self.acting:
                self._v1.apply(rows)
        elif self._v2 is not None:
            self._v2.apply(rows, ctx)
        return logits if rows is logits else logits.copy_(rows)
