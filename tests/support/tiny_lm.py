"""A tiny random llama with a tokenizer of bytes, as a folder: whole commands in seconds, without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

# What it writes: letters, a space, and a full stop now and then, so that there are sentences and no answer is stated.
_WRITES: Final = {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 0.0, " ": 0.4, ". ": 0.8}
_CHAT: Final = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tiny_lm(folder: Path, *, seed: int = 0, context_tokens: int = 1024, head_dim: int = 8) -> Path:
    """Write it to `folder`; returns the folder. vLLM on a CPU needs heads of 32 or more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_of = {letter: i for i, letter in enumerate(letters)}
    vocabulary = bytes_of | {".\u0120": len(bytes_of)}  # a full stop with its space, so that sentences end often
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[(".", "\u0120")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    tokenizer.chat_template = _CHAT
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=context_tokens,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # one dimension that no layer writes to, so that the head has a bias in it
        model.model.embed_tokens.weight[:, 0] = 8.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight[:, 0] = -6.0
        for letter, bias in _WRITES.items():
            model.lm_head.weight[tokenizer(letter).input_ids[0], 0] = bias
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
