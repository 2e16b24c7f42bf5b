"""vLLM's synchronous engine with lanes: requests get lanes as they are added, and outputs get their telemetry.

`vllm.LLM` works through five methods of its engine, which are here; everything else is the engine's own. So all that
`LLM` offers (generate, chat, enqueue, progress bars) goes through one place.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.llm_engine import LLMEngine

from steerdec.common.errors import InvalidInputError
from steerdec.offline.frontend import Admitted, FrontEnd
from steerdec.offline.outputs import annotated, was_aborted
from steerdec.telemetry.lanes import LanesExhaustedError
from steerdec.telemetry.loan import Loan

_PAUSE_S: Final = 0.01


@dataclass
class _Live:
    """A request in vLLM's engine."""

    loan: Loan | None  # None if it is not steered
    kind: RequestOutputKind
    internal_id: str = ""  # vLLM's own, by which `LLM` aborts


@dataclass(frozen=True)
class _Waiting:
    """A request that waits for lanes, with the arguments of `add_request`."""

    prompt: Any
    admitted: Admitted
    options: dict[str, Any]


class SteeredEngine:
    """An `LLMEngine` whose steered requests have lanes; they wait, in order, while too few are free."""

    def __init__(self, engine: LLMEngine, front_end: FrontEnd) -> None:
        """Wrap an engine that was started with the front end's lanes."""
        self.engine, self.front_end = engine, front_end
        self._live: dict[str, _Live] = {}
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of vLLM's engine."""
        return getattr(self.engine, name)

    def add_request(self, request_id: str, prompt: Any, params: Any, **options: Any) -> str:
        """Add a request, or keep it until lanes are free; return the id that `abort_request` takes.

        Raises:
            SteeringError: the steering is refused.
            InvalidInputError: the id is in use, or the steered prompt has its parameters inside.
            vllm.exceptions.VLLMValidationError: vLLM refuses the request; if it has to wait, `step` raises it.
        """
        admitted = self.front_end.admitted(params)
        if request_id in self._live or request_id in self._waiting:
            raise InvalidInputError(f"request_id: {request_id!r} belongs to an unfinished request")
        if admitted is None:
            return self._added(request_id, prompt, params, None, options)
        if isinstance(prompt, EngineCoreRequest):
            raise InvalidInputError("prompt: a steered request cannot be given as EngineCoreRequest; give the prompt")
        if not admitted.lanes:  # nothing to wait for
            return self._added(request_id, prompt, *self.front_end.lent(admitted), options)
        self._waiting[request_id] = _Waiting(prompt, admitted, options)
        self._add_waiting()
        live = self._live.get(request_id)
        return request_id if live is None else live.internal_id

    def step(self) -> list[Any]:
        """Run one step of vLLM's engine; return its outputs, with telemetry."""
        self._add_waiting()
        if self._waiting and not self.engine.has_unfinished_requests():
            time.sleep(self.front_end.pool.rest_s or _PAUSE_S)  # lanes rest after an abort; vLLM would wait for ever
            return []
        return [self._with_telemetry(output) for output in self.engine.step()]

    def has_unfinished_requests(self) -> bool:
        """Return whether requests run or wait."""
        return bool(self._waiting) or self.engine.has_unfinished_requests()

    def get_num_unfinished_requests(self) -> int:
        """Return how many sequences run or wait, as vLLM counts them."""
        waiting: int = sum(one.admitted.params.n for one in self._waiting.values())
        return waiting + int(self.engine.get_num_unfinished_requests())

    def abort_request(self, request_ids: Iterable[str], internal: bool = False) -> None:
        """Abort requests by the ids given to `add_request`, or by those that it returned; unknown ones are ignored."""
        ids = set(request_ids)
        for name in ids:
            self._waiting.pop(name, None)
        names = [name for name, live in self._live.items() if name in ids or live.internal_id in ids]
        ended = [self._live.pop(name) for name in names]
        try:
            self.engine.abort_request(names)
        finally:
            for live in ended:
                if live.loan is not None:
                    live.loan.give_back(aborted=True)

    @contextmanager
    def nothing_left_behind(self) -> Iterator[None]:
        """If the block fails, abort what was added in it: vLLM would run it with the next call."""
        before = {*self._live, *self._waiting}
        try:
            yield
        except BaseException:
            self.abort_request({*self._live, *self._waiting} - before)
            raise

    def _add_waiting(self) -> None:
        """Hand waiting requests to vLLM, the first one first, as far as the lanes go."""
        with suppress(LanesExhaustedError):
            while self._waiting:
                request_id, first = next(iter(self._waiting.items()))
                params, loan = self.front_end.lent(first.admitted)
                del self._waiting[request_id]
                self._added(request_id, first.prompt, params, loan, first.options)

    def _added(self, request_id: str, prompt: Any, params: Any, loan: Loan | None, options: dict[str, Any]) -> str:
        live = self._live[request_id] = _Live(loan, params.output_kind)
        try:
            live.internal_id = self.engine.add_request(request_id, prompt, params, **options)
        except BaseException:
            self.abort_request([request_id])  # of several sequences, some may have been added
            raise
        return live.internal_id

    def _with_telemetry(self, output: Any) -> Any:
        live = self._live.get(output.request_id)
        if live is not None and output.finished:
            del self._live[output.request_id]
        if live is None or not isinstance(output, RequestOutput):
            return output
        steered = annotated(output, live.loan, live.kind, self.front_end.tokenizer)
        if live.loan is not None and output.finished:
            live.loan.give_back(aborted=was_aborted(output))
        return steered
