"""Search vectors and their codes, the same bits on every machine. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from colazip.nn.loading import compiled_loops
from colazip.words import WordHash

if TYPE_CHECKING:
    from colazip.nn.context import ContextEncoder


def unit(sums: np.ndarray) -> np.ndarray:
    """Sums on the grid, float64 [N, D] -> unit vectors, float32 [N, D]; a zero row stays zero.

    The sum of squares runs over integers of 12 bits, hence is exact in any order.
    """
    top = np.abs(sums).max(-1, keepdims=True)
    q = np.rint(sums * (4095.0 / np.where(top > 0, top, 1.0)))
    return (q / np.sqrt(np.maximum((q * q).sum(-1, keepdims=True), 1.0))).astype(np.float32)


def shorten(vectors: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """What vectors are along some axes, at unit length: float32 [N, D], float16 [n, D] -> float32 [N, n]."""
    return scaled(vectors @ axes.astype(np.float32).T)


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, a zero row stays, to the rounding of floats (`unit` is exact): float32 [N, D] ->
    float32 [N, D]."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


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


def read_codes(codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """What codes stand for, before unit length: uint8 [N, M], [M, 256, D / M] -> float32 [N, D]."""
    vectors = codebook[np.arange(len(codebook)), codes].reshape(len(codes), codebook[:, 0].size)
    return vectors.astype(np.float32, copy=False)


def pack_nibbles(integers: np.ndarray) -> np.ndarray:
    """Two integers of -7 to 7 in a byte, the even column low: int8 [R, D], D even -> uint8 [R, D / 2]."""
    shifted = (integers + np.int8(8)).astype(np.uint8)
    return shifted[:, ::2] | shifted[:, 1::2] << 4


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """What `pack_nibbles` took: uint8 [R, D / 2] -> int8 [R, D]."""
    pairs = np.stack([packed & 15, packed >> 4], -1).astype(np.int8) - np.int8(8)
    return pairs.reshape(len(packed), 2 * packed.shape[1])


def pack_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [R, D], D even -> (two integers of -7 to 7 in each byte, uint8 [R, D / 2]; scales float32 [R,
    1])."""
    top = np.abs(rows).max(-1, keepdims=True)
    scale = np.where(top > 0, top, 1.0).astype(np.float32) / np.float32(7.0)
    return pack_nibbles(np.rint(rows / scale).astype(np.int8)), scale


@dataclass(frozen=True)
class SearchRows:
    """What search vectors are made of. rows: float32 [V + W, D], of tokens, then of words; codebooks: of each
    size M of a code its centroids, float32 [M, 256, D / M]; encoder: what adds context to the rows, if there
    is one; axes: the directions that vectors differ along, most first, float16 [D, D], one a row."""

    rows: np.ndarray
    codebooks: Mapping[int, np.ndarray]
    encoder: ContextEncoder | None = None
    axes: np.ndarray | None = None


class Adding(NamedTuple):
    """How rows are added up: exact, hence the same in any order.

    picked: rows int16 [R, D], which of them int64 [N], the group of each int64 [N], count -> sums of each of
    count groups, int32 [count, D]. onto: adds float64 [N, D] to the rows int64 [N] of float64 [P, D].
    """

    picked: Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
    onto: Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def _add_picked(rows: np.ndarray, which: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(count))  # no group is empty
    return np.add.reduceat(rows[which[order]], starts, axis=0, dtype=np.int32)


def _add_onto(sums: np.ndarray, at: np.ndarray, added: np.ndarray) -> None:
    np.add.at(sums, at, added)


ADDING = Adding(_add_picked, _add_onto)


class RowSums:
    """Sums over a text of a row for each token and for each word of several tokens.

    packed, scale: `search.tokens` as shipped; token_bytes: of each token; word_rows: how many rows words
    share. Rows are put on a grid of 1/256 within +-127 and added up as integers.
    """

    def __init__(
        self, packed: np.ndarray, scale: np.ndarray, token_bytes: Sequence[bytes], word_rows: int
    ) -> None:
        rows = unpack_nibbles(packed).astype(np.float32) * scale
        # In 1 / 256.
        self.grid = np.rint(np.clip(rows, -127.0, 127.0) * np.float32(256.0)).astype(np.int16)
        self.words = WordHash(token_bytes)
        self._tokens, self._word_rows = len(token_bytes), word_rows

    @property
    def adding(self) -> Adding:
        """How rows are added up, compiled or not."""
        loops = compiled_loops()
        return ADDING if loops is None else loops.ADDING

    @property
    def width(self) -> int:
        """Of a vector, D."""
        return self.grid.shape[1]

    def patches(self, tokens: np.ndarray, patch: int) -> np.ndarray:
        """What each patch adds to a sum: tokens int64 [T] -> float64 [P, D]. A word counts where it begins.

        All are multiples of 1 / 256 far below 2**53: their sums are exact in any order.
        """
        count = -(-len(tokens) // patch)
        return self._sums(tokens, np.arange(len(tokens)) // patch, count) / 256.0

    def units(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What an encoder reads: (sums of each unit's rows, float32 [U, D]; its first token, int64 [U])."""
        first = self.words.units(tokens)
        unit = np.searchsorted(first, np.arange(len(tokens)), side="right") - 1
        return (self._sums(tokens, unit, len(first)) / 256.0).astype(np.float32), first

    def _sums(self, tokens: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
        """Sums of the rows of each of `count` groups, none of them empty, in 1 / 256: int32 [count, D].

        group: of each token, ascending. A word counts where its first token is.
        """
        if not len(tokens):
            return np.zeros((0, self.grid.shape[1]), np.int32)
        rows, first = self.entries(tokens)
        return self.adding.picked(self.grid, rows, group[first], count)

    def entries(self, tokens: np.ndarray, starts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the tokens and words of a text, and the token at which each counts: int64 [N] both.
        Arguments as `WordHash.joined` has them."""
        hashes, first, _ = self.words.words(tokens, starts)
        rows = np.concatenate([tokens, self._tokens + hashes.astype(np.int64) % self._word_rows])
        return rows, np.concatenate([np.arange(len(tokens)), first])
