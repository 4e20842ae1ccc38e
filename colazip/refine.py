"""Refinement: passages that the stored codes put first are ranked again by finer vectors of 4 bits a
dimension.

Finer vectors are made when an archive is indexed, from its text or its gist, and lie beside it; a search
reads those of its candidates and decodes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from colazip.search import best_of_each, best_of_records, cosines
from colazip.vectors import pack_nibbles, scaled, unpack_nibbles

if TYPE_CHECKING:
    from colazip.coarse import LargeIndex
    from colazip.search import SearchIndex

_MIN_CANDIDATES, _CANDIDATES_EACH = 2048, 16  # passages ranked again: at least so many, and so many a hit
# The root mean square of a vector's dimensions times this is the largest integer, 7; what is beyond is cut
# off. Wide enough for the tails, narrow enough for the middle (docs/experiments.md, 36).
_REACH = 2.25
_LEVELS = 7
_PAIRS = unpack_nibbles(np.arange(256, dtype=np.uint8)[:, None]).astype(np.float32)  # what each byte says


def pack_finer(vectors: np.ndarray) -> np.ndarray:
    """Directions of vectors, two dimensions a byte: float32 [n, D], D even -> uint8 [n, D / 2]."""
    scale = np.sqrt(np.einsum("nd,nd->n", vectors, vectors) / vectors.shape[1])[:, None] * (_REACH / _LEVELS)
    steps = np.rint(np.divide(vectors, scale, out=np.zeros_like(vectors), where=scale > 0))
    return pack_nibbles(np.clip(steps, -_LEVELS, _LEVELS).astype(np.int8))


def mix(stored: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Between what a code stands for and the vector of a gist's reading: float32 [n, D] each -> [n, D].

    They err apart: the code coarsely, the reading in the rarer words (docs/experiments.md, 36).
    """
    return scaled(stored) + scaled(read)


class RefinedIndex:
    """An index of stored codes whose nearest passages are ranked by finer vectors, with its interface.

    packed: uint8 [n, D / 2], of each code, as `pack_finer` gave it; may be memory-mapped.
    """

    def __init__(self, index: SearchIndex | LargeIndex, packed: np.ndarray) -> None:
        self._index, self._packed = index, packed

    def __len__(self) -> int:
        return len(self._index)

    @property
    def codes(self) -> np.ndarray:
        """uint8 [n, M]."""
        return self._index.codes

    @property
    def owners(self) -> np.ndarray:
        """Record of each code, [n]."""
        return self._index.owners

    def search(
        self, query: np.ndarray, k: int, allowed: np.ndarray | None = None, group: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `SearchIndex.search`, of the passages nearest by their codes the k best by finer vectors."""
        index, places = self._index, None
        if allowed is not None:
            places, index = self._index.among(allowed)
        fetch = max(_MIN_CANDIDATES, _CANDIDATES_EACH * k)
        while True:
            near = index.near(query, fetch)
            near = near if places is None else places[near]
            owners = self.owners[near] if group else near
            best, scores = best_of_each(near, self._cosines(query, near), owners, k)
            if len(best) == k or len(near) < fetch:
                return best, scores
            fetch *= 4

    def cosines(self, query: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `SearchIndex.cosines`, by finer vectors."""
        return best_of_records(
            self.owners, records, lambda start, stop: self._cosines(query, np.arange(start, stop))
        )

    def _cosines(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        vectors = _PAIRS[self._packed[positions]].reshape(len(positions), len(query))
        return cosines(vectors, query.astype(np.float32))
