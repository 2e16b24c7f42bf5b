"""The request slots of vLLM's V2 runner, and the rows of one step, as a kernel reads them."""

from __future__ import annotations

from typing import Final, NamedTuple

from torch import Tensor

from steerdec.steering import encoding

# Columns of a slot's integers, after those of `encoding`.
STEERED: Final = encoding.INTS  # 0 or 1
SCOPE: Final = encoding.INTS + 1
START_ID: Final = encoding.INTS + 2
END_ID: Final = encoding.INTS + 3
LANE: Final = encoding.INTS + 4  # -1 without
GENERATION: Final = encoding.INTS + 5
OCCUPANT: Final = encoding.INTS + 6  # a number that changes with the slot's request, below OCCUPANTS
SLOT_INTS: Final = encoding.INTS + 7
OCCUPANTS: Final = 2**29


class Slots(NamedTuple):
    """The state of each request slot; everything on the device."""

    floats: Tensor  # [slots, FLOATS] float32
    ints: Tensor  # [slots, SLOT_INTS] int32
    prompt_len: Tensor  # [slots] int32
    prefill_len: Tensor  # [slots] int32
    token_ids: Tensor  # [slots, max_model_len] int32, committed tokens
    history: (
        Tensor  # [slots] int64, of `_decide_step`: where it last followed a request's tokens to, and the state there
    )
    lanes: Tensor  # [lanes, capacity_tokens, 4] int32; the last lane is not written
    memory: Tensor | None = None  # [memories, ring, memory.WORDS] int32; None if no row's request has one


class Layout(NamedTuple):
    """What each row of logits is in this step; [rows] each."""

    slots: Tensor  # int64; < 0 for padding
    pos: Tensor  # int64, of the token fed at the row
    local_pos: Tensor  # int32, the row's place among its request's rows; > 0 where a draft was fed
    input_ids: Tensor  # int32, the token fed
