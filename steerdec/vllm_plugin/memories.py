"""The memories of requests in a worker: found again by the request's identity after a preemption.

vLLM computes the prefix of a preempted request again without logits, in another slot, and no hook tells a preempted
request from a finished one. So what is remembered of a request stays here after it has left the batch, until more
requests have come and gone since than there are memories.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

import torch

from steerdec.steering import memory

logger = logging.getLogger("vllm.steerdec")

MOST: Final = 65_536  # 5 MiB of the device with rings of 4 states

Identity = tuple[int, int | None]  # the number that admission drew, and the sequence's seed


class Memories:
    """Memories on the logits' device, one per request that needs one, and which request has which."""

    def __init__(self, device: torch.device, draft_tokens: int, most: int = MOST) -> None:
        """Make room for `most` requests, whose steps have up to `draft_tokens` drafts."""
        self.ring = memory.ring_entries(draft_tokens)
        self.words = torch.zeros(most, self.ring, memory.WORDS, dtype=torch.int32, device=device)
        self._unused = most
        self._entered: dict[Identity, tuple[int, int]] = {}  # memory, and in how many places of the batch
        self._left: OrderedDict[Identity, int] = OrderedDict()  # the longest gone first

    def enter(self, identity: Identity, generated_tokens: int) -> int:
        """Return the memory of a request that enters the batch after so many generated tokens."""
        index, places = self._entered.get(identity, (-1, 0))
        if not places:
            index = self._left.pop(identity, -1)
        if index < 0:
            index = self._new()
            if generated_tokens:
                logger.warning(
                    "The memory of a steered request that was preempted after %d tokens is lost: %d others came since. "
                    "Its threshold and its mean begin anew.",
                    generated_tokens,
                    len(self.words),
                )
        self._entered[identity] = index, places + 1
        return index

    def leave(self, identity: Identity) -> None:
        """Let a request go that has left one place of the batch, finished or preempted."""
        index, places = self._entered.pop(identity)
        if places > 1:
            self._entered[identity] = index, places - 1
        else:
            self._left[identity] = index

    def _new(self) -> int:
        """Return a memory that holds nothing: an unused one, else that of the request that left longest ago."""
        if self._unused:
            self._unused -= 1
            return self._unused
        if not self._left:
            raise RuntimeError(f"all {len(self.words)} memories belong to requests in the batch")
        _, index = self._left.popitem(last=False)
        self.words[index].zero_()
        return index
