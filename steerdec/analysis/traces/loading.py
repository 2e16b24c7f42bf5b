"""Load the tokenizer and weights of a model, for scoring on the available device."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from steerdec import models
from steerdec.analysis.traces.trace import Trace
from steerdec.common.errors import InputError

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_ROWS: Final = 64  # sequences in one batch
_FEW: Final = 3  # differences named in a message


@dataclass(frozen=True)
class Loaded:
    """A causal language model in evaluation mode, without gradients."""

    name: str
    folder: Path
    tokenizer: Any
    model: Any
    device: torch.device
    dtype: torch.dtype
    context_tokens: int  # from its configuration; 2^63 - 1 if that has no limit


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a model by name or folder. Raises ModelError, InputError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(models.fetch(name))
    except (OSError, ValueError) as e:
        raise InputError(f"--model: {name} has no readable tokenizer ({_first_line(e)})") from None


def load(
    name: str, *, dtype: str | None = None, device: str | None = None, attention: str = "sdpa", tokenizer: Any = None
) -> Loaded:
    """Load a model for scoring.

    Args:
        name: folder, Hugging Face id, or the embedded model's name.
        dtype: one of DTYPES. Default: float32 without a GPU, else the dtype the weights are stored in.
        device: torch device. Default: cuda if available.
        attention: transformers' implementation; "eager" if attention weights will be read.
        tokenizer: its tokenizer, if it is already loaded.

    Raises:
        ModelError: there is no such model.
        InputError: the dtype or device does not exist, or the weights cannot be read.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    where = _device(device)
    torch_dtype: Any = DTYPES[dtype] if dtype else "auto" if where.type == "cuda" else torch.float32
    folder = models.fetch(name)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype, attn_implementation=attention)
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"--model: {name} cannot be loaded as a causal language model ({_first_line(e)})") from None
    model = model.to(where).eval().requires_grad_(False)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**63 - 1
    return Loaded(
        name, folder, load_tokenizer(name) if tokenizer is None else tokenizer, model, where, model.dtype, int(context)
    )


def check_same_tokenizer(first: Any, second: Any, names: tuple[str, str]) -> None:
    """Check that both give the same ids to the same text, so that tokens can be compared one by one. Raises InputError.

    Their vocabularies must be equal. Merges and rules are compared on a text that covers most of what tokenizers differ
    in.
    """
    one, two = first.get_vocab(), second.get_vocab()
    if one != two:
        unlike = sorted((k for k in one.keys() | two.keys() if one.get(k) != two.get(k)), key=str)
        shown = ", ".join(f"{k!r} is {one.get(k, 'absent')} and {two.get(k, 'absent')}" for k in unlike[:_FEW])
        raise InputError(
            f"{names[0]} and {names[1]} have different tokenizers ({len(unlike)} tokens differ: {shown}); "
            "only models with one tokenizer can be compared token by token"
        )
    if first(_PROBE).input_ids != second(_PROBE).input_ids:
        raise InputError(
            f"{names[0]} and {names[1]} have one vocabulary but split text into different tokens; "
            "only models with one tokenizer can be compared token by token"
        )


_PROBE: Final = (
    "It's 3,141.59 + 2x: \\boxed{\\frac{1}{2}}\n\n  the  naïve café — 你好, 🙂\t(unlike)ANTIDISESTABLISHMENT </think>"
)


def check_fits(traces: Iterable[Trace], loaded: Loaded) -> None:
    """Check that every trace fits the model's context and vocabulary, before anything is scored. Raises InputError."""
    vocabulary = int(loaded.model.get_input_embeddings().weight.shape[0])
    for trace in traces:
        tokens = len(trace.prompt_ids) + len(trace.response_ids)
        if tokens > loaded.context_tokens:
            raise InputError(
                f"{trace.where} has {tokens} tokens with its prompt; {loaded.name} takes at most "
                f"{loaded.context_tokens} (max_position_embeddings)"
            )
        if (largest := max((*trace.prompt_ids, *trace.response_ids), default=0)) >= vocabulary:
            raise InputError(
                f"{trace.where} holds token id {largest}; {loaded.name} has a vocabulary of {vocabulary}: "
                "is the trace from another tokenizer?"
            )


def _device(name: str | None) -> torch.device:
    """Return the device of that name. Raises InputError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f'--device: "{name}" is not a device to score on; allowed are cpu, cuda, and cuda:N')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() or "no"
        raise InputError(f"--device: {name} is not available; torch finds {found} GPU{'s' * (found not in ('no', 1))}")
    return device


def free_bytes(device: torch.device) -> int:
    """Return how many bytes can still be allocated on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()


def free_host_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process can still allocate: the machine's, or less where a cgroup limits it.

    Args:
        root: where /proc and /sys are mounted.
    """
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError):
        meminfo = (root / "proc/meminfo").read_text()
        if found := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE):  # free, or a cache that can go
            available = int(found[1]) * 1024
    cgroup = root / "sys/fs/cgroup"
    version_1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
    for limit, used in (("memory.max", "memory.current"), version_1):
        with suppress(OSError, ValueError):  # no such cgroup, or "max", which means no limit
            available = min(available, int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
    return max(0, available)


def batch_rows(loaded: Loaded, tokens: int) -> int:
    """Return how many sequences of `tokens` tokens fit into a quarter of the free memory: keys, values, and logits."""
    config = loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * heads * width * loaded.dtype.itemsize * tokens
    logits = 6 * 4 * int(config.vocab_size)  # about six float32 copies while sampling
    return max(1, min(MOST_ROWS, free_bytes(loaded.device) // int(4 * (cache + logits))))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
