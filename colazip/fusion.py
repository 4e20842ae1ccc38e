"""Hybrid ranking: one score from how well the words match and how near the meaning is.

    score = (bm25 / best bm25 of the query + WEIGHT * cosine) / (1 + WEIGHT)       from 0 to 1

A record that one side did not find has 0 there; a cosine below 0 counts as 0. Ranks alone (reciprocal rank
fusion) throw away how far apart the hits are: with sides of unequal strength that costs more than the weaker
one adds (docs/experiments.md).
"""

from __future__ import annotations

import numpy as np

WEIGHT = 0.7  # of the cosine, against 1 for the words

MIN_DEPTH, DEPTH_EACH = 100, 5  # candidates of each side: at least so many, and so many a hit


def depth(k: int) -> int:
    """How many candidates each side gives to fuse the best k."""
    return max(MIN_DEPTH, DEPTH_EACH * k)


def fuse(bm25: np.ndarray, cosine: np.ndarray, weight: float = WEIGHT) -> np.ndarray:
    """Scores of a query's candidates, float32 [n].

    bm25: float [n], 0 without a word in common. cosine: float [n], NaN without a vector.
    """
    best = float(bm25.max(initial=0.0))
    words = bm25 / best if best > 0 else np.zeros_like(bm25)
    meaning = np.maximum(np.nan_to_num(cosine, nan=0.0), 0.0)
    return ((words + weight * meaning) / (1 + weight)).astype(np.float32)
