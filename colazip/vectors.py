"""Search vectors and their codes, the same bits on every machine. No torch."""

from __future__ import annotations

import numpy as np


def unit(sums: np.ndarray) -> np.ndarray:
    """Sums on the grid, float64 [N, D] -> unit vectors, float32 [N, D]; a zero row stays zero.

    The sum of squares runs over integers of 12 bits, hence is exact in any order.
    """
    top = np.abs(sums).max(-1, keepdims=True)
    q = np.rint(sums * (4095.0 / np.where(top > 0, top, 1.0)))
    return (q / np.sqrt(np.maximum((q * q).sum(-1, keepdims=True), 1.0))).astype(np.float32)


def assign_codes(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Nearest centroid of each slice: float32 [N, D], [M, 256, D / M] -> uint8 [N, M].

    Squares are added one dimension after the other, so that no library's order of summation can decide a tie.
    """
    slices = vectors.reshape(len(vectors), codebook.shape[0], 1, codebook.shape[2])
    codes = np.empty((len(vectors), codebook.shape[0]), np.uint8)
    for lo in range(0, len(vectors), 256):
        distance = np.zeros((len(slices[lo : lo + 256]), *codebook.shape[:2]), np.float32)
        for d in range(codebook.shape[2]):
            gap = slices[lo : lo + 256, :, :, d] - codebook[None, :, :, d]
            distance += gap * gap
        codes[lo : lo + 256] = distance.argmin(-1)
    return codes
