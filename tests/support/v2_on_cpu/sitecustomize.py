"""vLLM's V2 runner and our Triton kernels in Triton's interpreter, in the processes of a server or of `steerdec check`.

Put this folder first in PYTHONPATH and set VLLM_USE_V2_MODEL_RUNNER=1. Python imports the module when it starts, before
vLLM and triton; it does nothing in processes that run no engine.
"""

from __future__ import annotations

import os
import sys

_ENGINES = ("steerdec.server.vllm_cli", "multiprocessing.spawn", "steerdec.check.part")
_started_as = " ".join(sys.orig_argv)
if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1" and any(name in _started_as for name in _ENGINES):
    sys.path.insert(0, os.environ["STEERDEC_ROOT"])
    import tests.support.interpreted  # noqa: F401
    from steerdec.kernels import dispatch

    dispatch.BACKEND_OF_DEVICE["cpu"] = "triton"
