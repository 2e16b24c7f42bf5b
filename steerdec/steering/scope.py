"""Which tokens lie inside the thinking block: decided from the request's own tokens.

A delimiter is one token. The last delimiter before the token to be sampled decides: after the
opening one the model is thinking (the closing token itself is chosen while thinking), after the
closing one it is answering, before any of them it is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from steerdec.steering.admission import END_TOKEN, START_TOKEN
from steerdec.steering.encoding import ANSWER, EVERYWHERE, THINKING

NEITHER: Final = 0  # a state: before any delimiter


def delimiters(tokenizer: Any) -> tuple[int | None, int | None]:
    """Return the ids of `<think>` and `</think>` in a tokenizer; None where it has no such single token."""
    vocabulary = tokenizer.get_vocab()
    return vocabulary.get(START_TOKEN), vocabulary.get(END_TOKEN)


class Tracker:
    """Follows one request's tokens on the host (V1 runner)."""

    def __init__(self, scope: int, start_id: int, end_id: int, prompt_ids: Sequence[int]) -> None:
        self.scope, self.start_id, self.end_id = scope, start_id, end_id
        self._state = NEITHER
        self._follow(prompt_ids, 0)
        self._prompt_state = self._state
        self._followed_tokens = 0  # of the output

    def contains_next(self, output_ids: Sequence[int]) -> bool:
        """Return whether the token after `output_ids` is in scope. The list grows, unless vLLM takes tokens back."""
        if len(output_ids) < self._followed_tokens:
            self._state, self._followed_tokens = self._prompt_state, 0
        self._follow(output_ids, self._followed_tokens)
        self._followed_tokens = len(output_ids)
        return self._state == self.scope

    def _follow(self, ids: Sequence[int], start: int) -> None:
        for i in range(len(ids) - 1, start - 1, -1):
            if ids[i] == self.start_id or ids[i] == self.end_id:
                self._state = THINKING if ids[i] == self.start_id else ANSWER
                return


def rows_in_scope(
    scopes: Tensor,
    delimiter_ids: Tensor,
    token_ids: Tensor,
    slots: Tensor,
    pos: Tensor,
    local_pos: Tensor,
    input_ids: Tensor,
) -> Tensor:
    """Return whether each row's next token is in scope, [rows] bool; True for slots < 0 and scope EVERYWHERE.

    For the V2 runner on CPUs; it reads each history as a whole. `kernels.triton_step` is tested against it.

    Args:
        scopes: [slots] integer, EVERYWHERE / THINKING / ANSWER.
        delimiter_ids: [slots, 2] integer, opening and closing token.
        token_ids: [slots, max_model_len] integer, committed tokens.
        slots: [rows] each row's request.
        pos: [rows] position of the token fed at this row; the row samples the token at pos + 1.
        local_pos: [rows] the row's place among its request's rows; > 0 where a draft was fed.
        input_ids: [rows] the token fed; the rows of one request are adjacent, in order.
    """
    inside = torch.ones(len(slots), dtype=torch.bool, device=slots.device)
    for row, slot in enumerate(slots.tolist()):
        if slot < 0 or scopes[slot] == EVERYWHERE:
            continue
        local = int(local_pos[row])
        committed, fed = token_ids[slot, : int(pos[row]) - local], input_ids[row - local : row + 1]
        start_id, end_id = delimiter_ids[slot].tolist()
        inside[row] = states_after(torch.cat((committed, fed)), start_id, end_id) == scopes[slot]
    return inside


def states_after(token_ids: Tensor, start_id: int, end_id: int) -> Tensor:
    """Return the state after each of [rows, length] sequences, [rows] integer."""
    code = _codes(token_ids, start_id, end_id)
    index = torch.arange(token_ids.shape[-1], device=token_ids.device)
    last = pad(torch.where(code != NEITHER, index * 4 + code, -1), (0, 1), value=-1).amax(-1)  # also of no tokens
    return torch.where(last >= 0, last % 4, NEITHER)


def _codes(tokens: Tensor, start_id: Tensor | int, end_id: Tensor | int) -> Tensor:
    return torch.where(tokens == start_id, THINKING, torch.where(tokens == end_id, ANSWER, NEITHER))
