"""What a steering with memory does on a CPU: the rule, applied to each request's own history."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steerdec.kernels import dispatch
from steerdec.kernels.dispatch import Backend
from steerdec.kernels.reference import Outcome
from steerdec.steering import encoding
from tests.support import memory_episodes as episodes


def with_backend(backend: Backend) -> episodes.Steer:
    def steer_(*arguments: Tensor) -> Outcome:
        return dispatch.steer_(*arguments, backend=backend)

    return steer_


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("seed", range(2))
def test_each_row_is_decided_by_its_requests_own_history(backend: Backend, seed: int) -> None:
    assert episodes.follow(with_backend(backend), seed, steps=40) > 300


def test_a_backend_that_forgets_is_found() -> None:
    def forgetful(*arguments: Tensor) -> Outcome:
        arguments[-1].zero_()
        return dispatch.steer_(*arguments)

    with pytest.raises(AssertionError):
        episodes.follow(forgetful, 0, steps=60)


def test_one_thread_and_several_decide_alike() -> None:
    """The rows of one request go to one thread, whoever takes the first of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert episodes.follow(dispatch.steer_, 7, steps=20) > 100
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 4), torch.int32), ((2, 4, 9), torch.int32), ((2, 4, 5), torch.float32)]
)
def test_a_memory_that_does_not_fit_is_named(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    table = torch.zeros(1, encoding.FLOATS), torch.zeros(1, encoding.INTS, dtype=torch.int32)
    rows = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"memory: is .* must be torch.int32 \[memories, ring, 5\] on cpu"):
        dispatch.steer_(torch.zeros(1, 9), *table, *rows, None, torch.zeros(shape, dtype=dtype))
