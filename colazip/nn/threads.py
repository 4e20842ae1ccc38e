"""Independent batches side by side: a thread each, one core each.

Exact layers are chains of short operations. Threads that share every operation wait for each other at each of
them, and beside another busy process they wait very long; threads that have a batch of their own need not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_MOST = 8  # batches side by side: each takes memory


def each(call: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """What `call` gives for each of the items, in inference mode, on as many threads as torch has for one
    operation. An error is raised once what is under way has ended; the rest is not begun."""

    def alone(item: T) -> R:
        with torch.inference_mode():
            return call(item)

    before = torch.get_num_threads()
    side_by_side = min(before, len(items), _MOST)
    if side_by_side < 2:
        return [alone(item) for item in items]
    # Of torch's own threads each has its share; the number is where it is set, and where new threads begin.
    share = max(1, before // side_by_side)
    pool = ThreadPoolExecutor(side_by_side, initializer=torch.set_num_threads, initargs=(share,))
    try:
        return list(pool.map(alone, items))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
