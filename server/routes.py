"""What steerdec adds to vLLM's server: the steering middleware, GET /v1/steering and its schema, and the page at /.

vLLM loads it by the entry point group `vllm.endpoint_plugins`.
"""

from __future__ import annotations

from argparse import Namespace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import vllm
import vllm.envs as envs
from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient

import steerdec
from steerdec.policies.schema import request_schema
from steerdec.steering import admission, scope
from steerdec.telemetry.lanes import LanePool
from steerdec.vllm_plugin.private.uvicorn_headers import limit_headers
from steerdec.vllm_plugin.request import engine_of
from steerdec.vllm_plugin.settings import Settings

from . import metrics
from .body import Host
from .middleware import INWARD
from .middleware.keys import Keys
from .tracing import tracer_of

PAGE = Path(str(files("steerdec.server"))) / "page"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class SteeringRoutes:
    """vLLM's EndpointPlugin: routes are attached first, the state is filled in when the engine is up."""

    name = "steerdec"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._host: Host | None = None
        self._about: dict[str, Any] = {}

    def attach_router(self, app: FastAPI) -> None:
        # vLLM adds its API-key check after this, and later middleware is further out: the check
        # runs first, and nothing is read or allocated for a caller without a key.
        for layer in reversed(INWARD):
            app.add_middleware(layer, host=self._ready)
        limit_headers()  # in each process of the server, and before uvicorn is configured
        app.get("/v1/steering")(self._steering)
        app.get("/v1/steering/schema")(self._schema)
        app.get("/", include_in_schema=False)(self._page)
        app.mount("/page", _PageFiles(directory=PAGE), name="steerdec-page")

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        assert engine_client is not None  # missing only for tasks other than generate
        config = engine_client.vllm_config
        settings, engine = Settings.of(config), engine_of(config)
        tokenizer = engine_client.get_tokenizer()
        pool = None
        if settings.lanes is not None:
            pool = LanePool(settings.lanes.file, settings.lanes.parts)
        default = settings.http_default
        of_model = config.model_config.get_diff_sampling_param()
        penalties = {name: float(of_model.get(name, none)) for name, none in admission.NO_PENALTIES.items()}
        model_name = config.model_config.served_model_name
        metrics.begin(model_name)
        self._host = Host(
            default=default,
            threshold_nats=settings.threshold_nats,
            default_temperature=float(of_model.get("temperature", 1.0)),
            default_penalties=penalties,
            delimiters=scope.delimiters(tokenizer) if tokenizer is not None else (None, None),
            engine=engine,
            decode=None if tokenizer is None else tokenizer.decode,
            pool=pool,
            keys=Keys.of(args),
            tracer=tracer_of(config),
        )
        self._about = {
            "steerdec": steerdec.__version__,
            "vllm": vllm.__version__,
            "runner": "v1" if engine.v1 else "v2",
            "model": model_name,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "batch_invariant": _batch_invariant(config),
            "processor": _processor_loaded(config),
            "telemetry_lanes": None if pool is None else pool.count,
            "default": None if default is None else default.model_dump(exclude_none=True),
            "threshold_nats": settings.threshold_nats,
            "threshold_origin": settings.threshold_origin,
            "calibration": settings.calibration,
        }

    def _ready(self) -> Host:
        assert self._host is not None, "vLLM serves requests only after init_state"
        return self._host

    async def _steering(self) -> Response:
        pool = self._ready().pool
        lent = {} if pool is None else {"telemetry_lanes_lent": pool.lent}
        return JSONResponse(self._about | lent)

    async def _schema(self) -> Response:
        return JSONResponse(request_schema())

    async def _page(self) -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)


class _PageFiles(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(PAGE_HEADERS)
        return response


def _batch_invariant(config: Any) -> bool:
    """Return whether equal seeds give equal answers in any batch.

    They do in float32 on a CPU (measured: 480 of 480 texts), or if vLLM was started as batch-invariant.
    """
    on_cpu = config.device_config.device_type == "cpu"
    return (on_cpu and config.model_config.dtype == torch.float32) or bool(envs.VLLM_BATCH_INVARIANT)


def _processor_loaded(config: Any) -> bool:
    """Return whether the engine runs the processor: it is configured, and V1 drops it under speculative decoding."""
    named = any("EntropySteering" in str(p) for p in config.model_config.logits_processors or [])
    return named and (config.use_v2_model_runner or config.speculative_config is None)
