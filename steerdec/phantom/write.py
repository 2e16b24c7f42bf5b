"""A chain as a model folder that vLLM and transformers load: a llama whose only layer adds nothing.

The embedding of a token is a direction of its own for the state it leads to. Attention and MLP add zero, the final
norm keeps the direction, and the head holds the state's log-probabilities over the norm's length. So the logits after
a token are the natural logarithms of the chain's probabilities, to float32.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import torch

from steerdec.phantom.chain import END, END_OF_THINKING, NEVER_NATS, THINK, Chain

HEAD_SIZE: Final = 32  # a head size that vLLM's attention on CPUs takes
CONTEXT_TOKENS: Final = 4096
NORM_EPSILON: Final = 1e-6
# The problem is the first line of a message; the instructions of a prompt template follow it, and a chain whose next
# token depends only on the last one must not see them.
CHAT_TEMPLATE: Final = "{{ messages[-1]['content'].split('\\n')[0] }}"
# As some reasoning models have it, the prompt opens the thinking part.
THINKING_TEMPLATE: Final = THINK + CHAT_TEMPLATE


def write_model(chain: Chain, folder: Path, *, thinking: bool = False) -> None:
    """Write weights, tokenizer and chat template into `folder`, which must exist."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = build_tokenizer(chain)
    tokenizer.chat_template = THINKING_TEMPLATE if thinking else CHAT_TEMPLATE
    states = list(chain.states)
    directions = len(states) + 1  # the last is for tokens that lead to no state: after them a response ends
    hidden = HEAD_SIZE * math.ceil(directions / HEAD_SIZE)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=HEAD_SIZE,
        num_hidden_layers=1,
        num_attention_heads=hidden // HEAD_SIZE,
        num_key_value_heads=hidden // HEAD_SIZE,
        max_position_embeddings=CONTEXT_TOKENS,
        rms_norm_eps=NORM_EPSILON,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    embedding, head = embedding_and_head(chain, tokenizer.get_vocab(), hidden)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(head)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def embedding_and_head(chain: Chain, ids: dict[str, int], hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [vocabulary, hidden] each, in float64; `ids` maps a token as the vocabulary spells it to its row."""
    states = {name: i for i, name in enumerate(chain.states)}
    ending = len(states)
    # A direction of length sqrt(hidden) has mean square 1, and the norm divides it by sqrt(1 + epsilon).
    length = math.sqrt(hidden)
    logit_of_one = math.sqrt(hidden) / math.sqrt(1.0 + NORM_EPSILON)
    embedding = torch.zeros(len(ids), hidden, dtype=torch.float64)
    embedding[:, ending] = length
    for text, to in chain.state_after().items():
        row = ids[spelled(text)]
        embedding[row] = 0.0
        embedding[row, ending if to is None else states[to]] = length
    head = torch.full((len(ids), hidden), NEVER_NATS / logit_of_one, dtype=torch.float64)
    columns = [ids[spelled(text)] for text in chain.tokens]
    head[columns, : len(states)] = torch.from_numpy(chain.log_probabilities().T / logit_of_one)
    head[ids[END], ending] = 0.0
    return embedding, head


def build_tokenizer(chain: Chain) -> Any:
    """Return a tokenizer with a token for each text of the chain and one for each byte, so that it reads any prompt."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [text for text in (THINK, END_OF_THINKING, END) if text in chain.tokens]
    words = [spelled(text) for text in chain.tokens if text not in special]
    vocabulary = {word: i for i, word in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *words])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^ \n]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    # As reasoning models have them: single tokens that stay in the text.
    core.add_tokens([AddedToken(text, normalized=False) for text in special if text != END])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, clean_up_tokenization_spaces=False)


def spelled(text: str) -> str:
    """Return a text as the vocabulary spells it, with byte-level BPE's letter in place of the space."""
    return text.replace(" ", "\u0120")
