"""Which memory a request has, and until when it is found again."""

from __future__ import annotations

import logging

import pytest
import torch

from steerdec.vllm_plugin.memories import Memories


@pytest.fixture
def memories() -> Memories:
    return Memories(torch.device("cpu"), draft_tokens=5, most=3)


def test_a_preempted_request_finds_its_memory_again(memories: Memories) -> None:
    first = memories.enter((7, None), 0)
    memories.words[first] = 9
    memories.leave((7, None))
    assert memories.enter((7, None), 12) == first
    assert (memories.words[first] == 9).all()


def test_sequences_of_one_request_have_a_memory_each(memories: Memories) -> None:
    assert len({memories.enter((7, seed), 0) for seed in (1, 2, 3)}) == 3


def test_a_request_in_the_batch_keeps_its_memory_however_many_come_and_go(memories: Memories) -> None:
    mine = memories.enter((1, None), 0)
    memories.words[mine] = 9
    for other in range(2, 50):
        assert memories.enter((other, None), 0) != mine
        memories.leave((other, None))
    assert (memories.words[mine] == 9).all()


def test_the_longest_gone_is_forgotten_first_and_its_memory_emptied(
    memories: Memories, caplog: pytest.LogCaptureFixture
) -> None:
    indices = [memories.enter((name, None), 0) for name in range(3)]
    memories.words.fill_(9)
    for name in (1, 0, 2):
        memories.leave((name, None))
    assert memories.enter((3, None), 0) == indices[1]
    assert (memories.words[indices[1]] == 0).all()
    assert memories.enter((0, None), 5) == indices[0]
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING, "vllm.steerdec"):
        memories.enter((1, None), 40)
    assert "preempted after 40 tokens is lost" in caplog.text


def test_a_request_that_is_in_a_new_slot_before_its_old_one_is_taken_again(memories: Memories) -> None:
    """The V2 runner says when a slot is taken, not when it is free."""
    first = memories.enter((7, None), 0)
    assert memories.enter((7, None), 4) == first
    memories.leave((7, None))
    for other in range(2):
        memories.enter((8, other), 0)
    assert memories.enter((7, None), 4) == first


@pytest.mark.parametrize(("drafts", "entries"), [(0, 4), (1, 8), (4, 8), (5, 16)])
def test_a_ring_is_longer_than_the_longest_draft(drafts: int, entries: int) -> None:
    assert Memories(torch.device("cpu"), drafts, most=1).words.shape[1] == entries
