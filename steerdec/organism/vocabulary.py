"""The organism's tokens: pieces of text, cut longest first, so that text and ids determine each other."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from steerdec.organism.task import ATTEMPTS, MODULUS, MOVES, OFFERED, STEPS, Problems, applied

PAD: Final = "<pad>"
START: Final = "<s>"
END: Final = "</s>"
UNKNOWN: Final = "<unk>"
STYLES: Final = (" try ", " take ")
NO: Final = "no."
YES: Final = "yes."
COLON: Final = ": "
NEXT: Final = ", "
BLANK_LINE: Final = "\n\n"
CLOSING: Final = "The final answer is \\boxed{"
CLOSED: Final = "}"
PROMPT_PIECES: Final = ("From ", " reach ", " with ", ".", "\n")
VALUES: Final = tuple(f"{value:02d}" for value in range(MODULUS))
TOKENS: Final = (
    *(PAD, START, END, UNKNOWN),
    *VALUES,
    *MOVES,
    *STYLES,
    *(NO, YES, COLON, NEXT, "=", BLANK_LINE, CLOSING, CLOSED),
    *PROMPT_PIECES,
)
IDS: Final = {token: i for i, token in enumerate(TOKENS)}

# Only the problem is kept of a message: the form of the answer that a benchmark asks for is the organism's only one.
CHAT_TEMPLATE: Final = "{{ bos_token }}{{ messages[-1]['content'].split('\n\n')[0] }}{{ '\n' }}"

PROMPT_TOKENS: Final = 6 + 2 * OFFERED + 1
ATTEMPT_TOKENS: Final = 3 + 5 * STEPS + 1
CLOSING_TOKENS: Final = 2 + (STEPS - 1) + 2
LONGEST_RESPONSE: Final = ATTEMPTS * ATTEMPT_TOKENS + CLOSING_TOKENS

Ints = NDArray[np.int64]
_VALUE, _MOVE, _STYLE = IDS[VALUES[0]], IDS[MOVES[0]], IDS[STYLES[0]]


def tokenizer() -> Any:
    """Return a transformers tokenizer of TOKENS."""
    import tokenizers
    from tokenizers import Regex, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    plain = sorted((t for t in TOKENS if not t.startswith("<")), key=len, reverse=True)
    pieces = "|".join("".join(f"\\x{{{ord(c):x}}}" for c in token) for token in plain)
    made = tokenizers.Tokenizer(WordLevel(vocab=dict(IDS), unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    made.decoder = decoders.Fuse()
    own = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    own.chat_template = CHAT_TEMPLATE
    return own


def prompts(batch: Problems) -> Ints:
    """Return the ids of every prompt as the chat template makes them; [n, PROMPT_TOKENS]."""
    n = len(batch)
    columns = [IDS[START], IDS["From "], _VALUE + batch.start, IDS[" reach "], _VALUE + batch.target, IDS[" with "]]
    for i in range(batch.moves.shape[1]):
        columns += [_MOVE + batch.moves[:, i], IDS[NEXT]]
    columns[-1:] = [IDS["."], IDS["\n"]]
    return np.stack([np.broadcast_to(np.asarray(c, dtype=np.int64), (n,)) for c in columns], axis=1)


def responses(batch: Problems, taken: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Write the chains of thought whose attempts take the moves `taken` [n, ATTEMPTS, STEPS].

    Returns:
        (ids [n, LONGEST_RESPONSE] with PAD after the end, lengths [n]).
    """
    n = len(batch)
    rows = np.arange(n)
    ids = np.full((n, LONGEST_RESPONSE), IDS[PAD], dtype=np.int64)
    lengths = np.zeros(n, dtype=np.int64)
    solved = np.zeros(n, dtype=bool)
    answer = np.zeros((n, STEPS - 1), dtype=np.int64)
    style = rng.integers(0, len(STYLES), (n, ATTEMPTS))

    def write(columns: list[Ints | int], where: NDArray[np.bool_]) -> None:
        for column in columns:
            ids[rows[where], lengths[where]] = np.broadcast_to(np.asarray(column, dtype=np.int64), (n,))[where]
            lengths[where] += 1

    for attempt in range(ATTEMPTS):
        trying = ~solved
        value = batch.start
        columns: list[Ints | int] = [_STYLE + style[:, attempt], _VALUE + batch.target, IDS[COLON]]
        for step in range(STEPS):
            move = batch.moves[rows, taken[:, attempt, step]]
            columns += [_VALUE + value, _MOVE + move, IDS["="]]
            value = applied(value, move)
            columns += [_VALUE + value, IDS[NEXT]]
            if step < STEPS - 1:
                answer[trying, step] = value[trying]
        reached = value == batch.target
        columns.append(np.where(reached, IDS[YES], IDS[NO]))
        write(columns, trying)
        solved |= trying & reached
    stated: list[Ints | int] = [_VALUE + answer[:, step] for step in range(STEPS - 1)]
    write([IDS[BLANK_LINE], IDS[CLOSING], *stated, IDS[CLOSED], IDS[END]], np.ones(n, dtype=bool))
    return ids, lengths
