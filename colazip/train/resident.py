"""Training text that lives on the device, in batches of few shapes: what a captured step reads.

Tokens, guesses and search codes are gathered there, so that a step is told no more than where its segments
begin.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from colazip.config import ModelConfig
from colazip.nn.gpu_context import DeviceSums, assign_codes
from colazip.passages import PASSAGE_TOKENS, count_passages
from colazip.train.data import TokenStore
from colazip.train.losses import About
from colazip.train.side import Teller
from colazip.vectors import unit

_SEGMENTS = 1024  # whose codes are made at once
BYTES_A_TOKEN = 9  # two int32, one uint8


@dataclass(frozen=True)
class Segments:
    """Segments of a text, as the codec cuts records, and their passages, each segment a text of its own.

    lo, count: int64 [S], first token and how many; passages: int64 [S], how many of them; codes: of each size
    of a code, uint8 [C, M], for C passages. Without a teller there are none.
    """

    lo: np.ndarray
    count: np.ndarray
    passages: np.ndarray
    codes: dict[int, np.ndarray]

    @classmethod
    def cut(
        cls,
        store: TokenStore,
        config: ModelConfig,
        teller: Teller | None,
        device: torch.device,
        kept: Path | None = None,
    ) -> Segments:
        """kept: file that has the codes from the first time on; a run's search head never changes."""
        spans = store.segments(config.segment * config.patch)
        spans = spans[spans[:, 1] > spans[:, 0]]
        lo, count = spans[:, 0], spans[:, 1] - spans[:, 0]
        if teller is None:
            return cls(lo, count, np.zeros(len(lo), np.int64), {})
        windows = [teller.windows(n) for n in count.tolist()]
        passages = np.array([len(own) for own in windows], np.int64)
        if kept is not None and kept.exists():
            with np.load(kept) as found:
                codes = {size: found[str(size)] for size in teller.codebooks}
        else:
            codes = _codes(store, lo, count, windows, teller, device)
            if kept is not None:
                partial = kept.with_suffix(".partial.npz")
                arrays: dict[str, Any] = {str(size): values for size, values in codes.items()}
                np.savez(partial, **arrays)
                partial.replace(kept)
        return cls(lo, count, passages, codes)


def _codes(
    store: TokenStore,
    lo: np.ndarray,
    count: np.ndarray,
    windows: list[list[tuple[int, int]]],
    teller: Teller,
    device: torch.device,
) -> dict[int, np.ndarray]:
    sums = DeviceSums(teller.sums, None, teller.patch, device)
    codes: dict[int, list[np.ndarray]] = {size: [] for size in teller.codebooks}
    for at in range(0, len(lo), _SEGMENTS):
        ends = zip(lo[at : at + _SEGMENTS].tolist(), count[at : at + _SEGMENTS].tolist(), strict=True)
        texts = [np.asarray(store.tokens[start : start + n], np.int64) for start, n in ends]
        spans, first = [], 0
        for text, own in zip(texts, windows[at : at + _SEGMENTS], strict=True):
            spans += [(first + begin, first + end) for begin, end in own]
            first += -(-len(text) // teller.patch)
        vectors = unit(sums(texts, np.array(spans, np.int64), context=False))
        for size, book in teller.codebooks.items():
            codes[size].append(assign_codes(vectors, book, device))
        print(f"\rsearch codes {min(1.0, (at + _SEGMENTS) / len(lo)):.0%}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {size: np.concatenate(found) for size, found in codes.items()}


class Shape(NamedTuple):
    """Of a batch: rows, and patches of each."""

    rows: int
    patches: int


def shapes(segment: int, patches: int) -> list[Shape]:
    """Of batches of `patches` patches: rows of a whole segment, of three quarters, and of powers of two
    down to 16."""
    lengths = {segment, max(1, segment * 3 // 4)}
    half = segment // 2
    while half >= 16:
        lengths.add(half)
        half //= 2
    return [Shape(max(1, patches // length), length) for length in sorted(lengths)]


class Inputs(NamedTuple):
    """Where a batch is. lo, counts, passages: int64 [B]; vectors: float32 [B * most, D], what the codes of at
    most `most` passages of each row stand for."""

    lo: Tensor
    counts: Tensor
    passages: Tensor
    vectors: Tensor


class Resident:
    """The tokens, guesses and search codes of a text on a device."""

    def __init__(
        self,
        store: TokenStore,
        segments: Segments,
        config: ModelConfig,
        codebooks: Mapping[int, np.ndarray],
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self.tokens = _moved(store.tokens, np.int32, device)
        self.guess = _moved(store.guess, np.int32, device)
        self.kind = _moved(store.kind, np.uint8, device)
        self._books = _moved_books(codebooks, device)
        self._codes = {size: torch.from_numpy(codes).to(device) for size, codes in segments.codes.items()}
        first = np.cumsum(segments.passages) - segments.passages
        self._segments = np.stack([segments.lo, segments.count, first, segments.passages], 1)

    def batches(self, of: list[Shape], *, seed: int, skip: int = 0) -> Iterator[tuple[Shape, np.ndarray]]:
        """Endless full batches (shape, int64 [rows, 4]), in an order that the seed fixes, from batch `skip`
        on. An epoch has every segment at most once: what fills no batch is left out that time; a shape too
        large for its segments repeats some of them."""
        lengths = -(-self._segments[:, 1] // self.config.patch)
        which = np.searchsorted([shape.patches for shape in of], lengths)
        epoch = index = 0
        while True:
            rng = np.random.default_rng((seed, epoch))
            plan: list[tuple[Shape, np.ndarray]] = []
            for i, shape in enumerate(of):
                own = rng.permutation(np.flatnonzero(which == i))
                if 0 < len(own) < shape.rows:
                    own = np.resize(own, shape.rows)
                for lo in range(0, len(own) - shape.rows + 1, shape.rows):
                    plan.append((shape, own[lo : lo + shape.rows]))
            for i in rng.permutation(len(plan)):
                index += 1
                if index > skip:
                    yield plan[i][0], self._segments[plan[i][1]]
            epoch += 1

    def blank(self, shape: Shape) -> Inputs:
        """Room for the inputs of batches of a shape."""
        most = max(count_passages(n, self.config.patch, PASSAGE_TOKENS) for n in range(1, shape.patches + 1))
        lo, counts, passages = torch.zeros(3, shape.rows, dtype=torch.int64, device=self.device)
        vectors = torch.zeros(shape.rows * most, self.config.vector, device=self.device)
        return Inputs(lo, counts, passages, vectors)

    def fill(self, inputs: Inputs, rows: np.ndarray, size: int | None) -> None:
        """Say where a batch is. rows: int64 [B, 4], from `batches`; size: bytes of the codes it is told."""
        lo, count, first, passages = torch.from_numpy(np.ascontiguousarray(rows.T)).to(self.device).unbind()
        inputs.lo.copy_(lo)
        inputs.counts.copy_(count)
        inputs.passages.copy_(passages)
        if size is None:
            return
        most = len(inputs.vectors) // len(lo)
        each = torch.arange(most, device=self.device)
        at = (first[:, None] + torch.minimum(each, passages[:, None] - 1)).flatten()
        read = self._books[size][torch.arange(size, device=self.device), self._codes[size][at].long()]
        inputs.vectors.copy_(read.reshape(len(at), -1))

    def batch(self, inputs: Inputs, patches: int) -> tuple[Tensor, Tensor]:
        """Tokens int64 [B, P * K], guesses and kinds int64 [2, B, P * K]."""
        each = torch.arange(patches * self.config.patch, device=self.device)
        at = (inputs.lo[:, None] + each).clamp_max(len(self.tokens) - 1)
        real = each < inputs.counts[:, None]
        tokens = torch.where(real, self.tokens[at].long(), 0)
        guesses = torch.stack([self.guess[at].long(), self.kind[at].long()])
        return tokens, torch.where(real, guesses, 0)

    def about(self, inputs: Inputs, patches: int) -> About:
        """What a batch is coded given: each of a segment's codes holds for an equal share of its patches."""
        most = len(inputs.vectors) // len(inputs.lo)
        length = -(-inputs.counts // self.config.patch)
        each = torch.arange(patches, device=self.device)
        of = each * inputs.passages[:, None] // length[:, None]
        of = torch.minimum(of, inputs.passages[:, None] - 1)
        row = torch.arange(len(inputs.lo), device=self.device)[:, None] * most
        return About(inputs.vectors, of + row)


def _moved(values: np.ndarray, kind: type, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(values, kind)).to(device)


def _moved_books(codebooks: Mapping[int, np.ndarray], device: torch.device) -> dict[int, Tensor]:
    return {size: _moved(book, np.float32, device) for size, book in codebooks.items()}
