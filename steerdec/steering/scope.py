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


class DeviceTracker:
    """Follows every slot's tokens on the device, without a host sync (V2 runner).

    A new or resumed request's history is read once, when it enters; after that each step looks
    only at what was committed since the last one, and at the tokens it feeds (drafts included).
    """

    def __init__(self, max_num_reqs: int, max_tokens_per_step: int, all_token_ids: Tensor) -> None:
        """`max_tokens_per_step`: tokens a request can commit in one step, 1 + the number of drafts."""
        device = all_token_ids.device
        self._all_token_ids = all_token_ids  # [max_num_reqs, max_model_len]
        # One slot more than there are requests: rows that must not write use it.
        self._state = torch.zeros(max_num_reqs + 1, dtype=torch.int64, device=device)
        self._followed = torch.zeros(max_num_reqs + 1, dtype=torch.int64, device=device)
        self._window = torch.arange(max_tokens_per_step, device=device)
        self._spare = max_num_reqs

    def enter(self, slot: int, start_id: int, end_id: int, prefill_len: int) -> None:
        """Read the history of a request whose `prefill_len` tokens are in `all_token_ids` now."""
        self._state[slot] = states_after(self._all_token_ids[slot, :prefill_len], start_id, end_id)
        self._followed[slot] = prefill_len

    def rows_in_scope(
        self, scopes: Tensor, delimiter_ids: Tensor, slots: Tensor, pos: Tensor, local_pos: Tensor, input_ids: Tensor
    ) -> Tensor:
        """Return whether each row's next token is in scope, [rows] bool; True for slots < 0 and scope EVERYWHERE.

        Args:
            scopes: [max_num_reqs] integer, EVERYWHERE / THINKING / ANSWER.
            delimiter_ids: [max_num_reqs, 2] integer, opening and closing token.
            slots: [rows] each row's request.
            pos: [rows] position of the token fed at this row; the row samples the token at pos + 1.
            local_pos: [rows] the row's place among its request's rows; > 0 where a draft was fed.
            input_ids: [rows] the token fed.
        """
        slot = slots.clamp(min=0).long()
        start_id, end_id = delimiter_ids[slot, 0], delimiter_ids[slot, 1]
        first_fed = (pos - local_pos).long()

        # Committed since the last step: up to the first token fed now.
        index = self._followed[slot][:, None] + self._window
        tokens = self._all_token_ids[slot[:, None], index.clamp(max=self._all_token_ids.shape[1] - 1)]
        code = _codes(tokens, start_id[:, None], end_id[:, None])
        last = torch.where((index < first_fed[:, None]) & (code != NEITHER), self._window * 4 + code, -1).amax(-1)
        state = torch.where(last >= 0, last % 4, self._state[slot])
        writer = torch.where((local_pos == 0) & (slots >= 0), slot, self._spare)
        self._state[writer] = state
        self._followed[writer] = torch.maximum(self._followed[slot], first_fed)

        # Fed in this step: the rows of one request are adjacent, in order.
        row = torch.arange(len(slots), device=slots.device)
        code = _codes(input_ids, start_id, end_id)
        last = torch.where(code != NEITHER, row * 4 + code, -1).cummax(0).values
        state = torch.where(last // 4 >= row - local_pos, last % 4, state)

        wanted = scopes[slot]
        return (state == wanted) | (wanted == EVERYWHERE) | (slots < 0)


def states_after(token_ids: Tensor, start_id: int, end_id: int) -> Tensor:
    """Return the state after each of [rows, length] sequences, [rows] integer."""
    code = _codes(token_ids, start_id, end_id)
    index = torch.arange(token_ids.shape[-1], device=token_ids.device)
    last = pad(torch.where(code != NEITHER, index * 4 + code, -1), (0, 1), value=-1).amax(-1)  # also of no tokens
    return torch.where(last >= 0, last % 4, NEITHER)


def _codes(tokens: Tensor, start_id: Tensor | int, end_id: Tensor | int) -> Tensor:
    return torch.where(tokens == start_id, THINKING, torch.where(tokens == end_id, ANSWER, NEITHER))
