"""What a steering with memory does in Triton: the rule, applied to each request's own history.

Run by test_v2_sampler.py in a process of its own, in Triton's interpreter.
"""

from __future__ import annotations

import tests.support.interpreted  # noqa: F401  before triton

# isort: split
import pytest
from torch import Tensor

from steerdec.kernels import triton
from steerdec.kernels.reference import Outcome
from tests.support import batched, memory_episodes


@pytest.mark.parametrize("vocab", [60, 5000])
def test_each_row_is_decided_by_its_requests_own_history(vocab: int) -> None:
    assert memory_episodes.follow(triton.steer_, seed=vocab, steps=10, vocab=vocab) > 80


def test_a_row_reads_nothing_that_another_program_of_its_launch_writes() -> None:
    """Programs run together and one by one give the same, whichever is first."""
    with batched.compared() as counts:
        memory_episodes.follow(triton.steer_, seed=2, steps=6)
    assert counts["_decide"] == 6
    assert counts["not _decide"] == 0


def test_a_kernel_that_forgets_is_found() -> None:
    def forgetful(*arguments: Tensor) -> Outcome:
        arguments[-1].zero_()
        return triton.steer_(*arguments)

    with pytest.raises(AssertionError):
        memory_episodes.follow(forgetful, seed=0, steps=25)
