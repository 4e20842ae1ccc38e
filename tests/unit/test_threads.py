"""Batches side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from colazip.nn.threads import each


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads of torch, as a caller has set them; put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_order_and_threads_are_given_back(threads: int, count: int) -> None:
    assert each(lambda i: i * i, range(count)) == [i * i for i in range(count)]
    assert torch.get_num_threads() == threads


def test_each_batch_has_a_core_of_its_own(threads: int) -> None:
    meet = threading.Barrier(threads)

    def call(i: int) -> tuple[int, bool]:
        meet.wait(20)  # so many are under way at once
        return torch.get_num_threads(), torch.is_inference_mode_enabled()

    assert each(call, range(threads)) == [(1, True)] * threads


def test_an_error_is_raised_and_threads_are_given_back(threads: int) -> None:
    def call(i: int) -> int:
        if i == 2:
            raise ValueError("the third")
        return i

    with pytest.raises(ValueError, match="the third"):
        each(call, range(5))
    assert torch.get_num_threads() == threads
