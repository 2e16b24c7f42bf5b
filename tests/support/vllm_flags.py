"""vLLM's own parser of `vllm serve`, to read a command back."""

from __future__ import annotations

from typing import Any


def vllm_parser() -> Any:
    """The parser of the `vllm` command with its `serve`; takes ["serve", MODEL, flags...]."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    return parser
