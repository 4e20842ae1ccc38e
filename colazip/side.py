"""Search codes as side information: gist and exact layer beside them are coded given them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from colazip.lanes import Lanes


@dataclass(frozen=True)
class Side:
    """vectors: float32 [C, D], what C codes stand for; of: int64 [L, P], which of them each patch of a lane
    has (0 behind a lane's end)."""

    vectors: np.ndarray
    of: np.ndarray

    def lanes(self, lo: int, hi: int, patches: int) -> Side:
        """Of lanes lo to hi, cut to so many patches, and of the vectors that they have."""
        used, of = np.unique(self.of[lo:hi, :patches], return_inverse=True)
        return Side(self.vectors[used], of.reshape(hi - lo, patches))

    def patches(self, lo: int, hi: int) -> Side:
        """Of patches lo to hi of every lane."""
        return Side(self.vectors, self.of[:, lo:hi])

    def subset(self, lanes: Sequence[int]) -> Side:
        """Of some of the lanes."""
        return Side(self.vectors, self.of[np.array(lanes, np.int64)])


def joined(sides: Sequence[Side]) -> Side:
    """Of all lanes of several."""
    widest = max((side.of.shape[1] for side in sides), default=0)
    first = np.concatenate([[0], np.cumsum([len(side.vectors) for side in sides])]).astype(np.int64)
    shifted = [
        np.pad(side.of + at, ((0, 0), (0, widest - side.of.shape[1])))
        for side, at in zip(sides, first.tolist(), strict=False)
    ]
    return Side(np.concatenate([side.vectors for side in sides]), np.concatenate(shifted))


def code_of_patches(patches: int, codes: int) -> np.ndarray:
    """Which of its codes each patch of a part has, in equal shares: int64 [P]."""
    return np.arange(patches) * codes // max(1, patches)


def of_part(vectors: np.ndarray, patches: int) -> Side:
    """Of a part of so many patches, in one lane. vectors: float32 [n, D], what its codes stand for."""
    return Side(vectors, code_of_patches(patches, len(vectors))[None])


def beside(lanes: Lanes, found: Sequence[tuple[np.ndarray, np.ndarray]], patch: int) -> Side:
    """What is known of blocks, for the lanes of their parts.

    found: of each block (the part of each of its codes, int64 [n], ascending; what they stand for, float32
    [n, D]). Raises ValueError where a part with lanes has none.
    """
    first = np.concatenate([[0], np.cumsum([len(slots) for slots, _ in found])])
    vectors = np.concatenate([of_block for _, of_block in found])
    patches: dict[tuple[int, int], int] = {}
    for block, part, start, count in zip(lanes.block, lanes.part, lanes.start, lanes.count, strict=True):
        key = int(block), int(part)
        patches[key] = max(patches.get(key, 0), -(-int(start + count) // patch))
    shares = {}
    for (block, part), length in patches.items():
        slots = found[block][0]
        lo, hi = np.searchsorted(slots, (part, part + 1))
        if lo == hi:
            raise ValueError(f"part {part} has no search code")
        shares[block, part] = first[block] + lo + code_of_patches(length, int(hi - lo))
    of = np.zeros((len(lanes), int(lanes.patches.max(initial=0))), np.int64)
    for i in range(len(lanes)):
        at, count = int(lanes.start[i]) // patch, int(lanes.patches[i])
        of[i, :count] = shares[int(lanes.block[i]), int(lanes.part[i])][at : at + count]
    return Side(vectors, of)
