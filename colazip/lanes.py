"""The order in which the segments of a block are coded, shared by encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lanes:
    """Segments of several blocks, longest first; within a block they keep that order, so blocks can be
    batched freely.

    block, part: int64 [L], where a lane comes from (part counts within the block). start, count: int64 [L],
    its tokens within the part. patches: int64 [L].
    """

    block: np.ndarray
    part: np.ndarray
    start: np.ndarray
    count: np.ndarray
    patches: np.ndarray

    def __len__(self) -> int:
        return len(self.block)

    def subset(self, which: Sequence[int]) -> Lanes:
        """Some of the lanes, in ascending order."""
        at = np.array(which, np.int64)
        return Lanes(self.block[at], self.part[at], self.start[at], self.count[at], self.patches[at])

    def active(self, position: int) -> int:
        """Lanes with more than `position` tokens: a prefix."""
        return int(np.searchsorted(-self.count, -position, side="left"))

    def active_patches(self, position: int) -> int:
        """Lanes with more than `position` patches: a prefix."""
        return int(np.searchsorted(-self.patches, -position, side="left"))

    def by_block(self, count: int) -> np.ndarray:
        """The first `count` lanes ordered by block: what the entropy decoder asks for. int64 [count]."""
        return np.argsort(self.block[:count], kind="stable")


def lay_out(tokens_of_parts: Sequence[Sequence[int]], segment: int, patch: int) -> Lanes:
    """tokens_of_parts: for each block, the token count of each part (0 or less: nothing to code).

    segment: tokens of a lane at most; patch: tokens of a patch.
    """
    rows = [
        (b, p, lo, min(segment, n - lo))
        for b, parts in enumerate(tokens_of_parts)
        for p, n in enumerate(parts)
        for lo in range(0, n, segment)
    ]
    table = np.array(rows, np.int64).reshape(-1, 4)
    table = table[np.argsort(-table[:, 3], kind="stable")]
    block, part, start, count = (np.ascontiguousarray(c) for c in table.T)
    return Lanes(block, part, start, count, -(-count // patch))
