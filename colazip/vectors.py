"""Search vectors and their codes, the same bits on every machine. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from colazip.words import WordHash


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


def unpack_rows(packed: np.ndarray, columns: int) -> np.ndarray:
    """Integers as shipped -> int8 [R, D]: as they are, or two of -7 to 7 in a byte, the even column low."""
    if packed.dtype == np.int8:
        return packed
    pairs = np.stack([packed & 15, packed >> 4], -1).astype(np.int8) - np.int8(8)
    return pairs.reshape(len(packed), columns)


def pack_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [R, D], D even -> (two integers of -7 to 7 in each byte, uint8 [R, D / 2]; scales float32 [R,
    1])."""
    top = np.abs(rows).max(-1, keepdims=True)
    scale = np.where(top > 0, top, 1.0).astype(np.float32) / np.float32(7.0)
    q = (np.rint(rows / scale) + 8).astype(np.uint8)
    return q[:, ::2] | q[:, 1::2] << 4, scale


class RowSums:
    """Sum over a text of a row for each token and, if the model has such rows, for each word of several
    tokens.

    packed, scale: `search.tokens` as shipped; token_bytes: of each token; word_rows: how many rows words
    share. Rows are put on a grid of 1/256 within +-127 and added up as integers.
    """

    def __init__(
        self,
        packed: np.ndarray,
        scale: np.ndarray,
        columns: int,
        token_bytes: Sequence[bytes],
        word_rows: int,
    ) -> None:
        rows = unpack_rows(packed, columns).astype(np.float32) * scale
        self._rows = np.rint(np.clip(rows, -127.0, 127.0) * np.float32(256.0)).astype(np.int16)
        self._words = WordHash(token_bytes) if word_rows else None
        self._tokens, self._word_rows = len(token_bytes), word_rows

    def sums(self, tokens: np.ndarray) -> np.ndarray:
        """tokens int64 [T] -> float64 [D]."""
        total = self._rows[tokens].sum(0, dtype=np.int64)
        if self._words is not None:
            rows = self._tokens + self._words.words(tokens)[0] % np.uint32(self._word_rows)
            total += self._rows[rows].sum(0, dtype=np.int64)
        return total / 256.0
