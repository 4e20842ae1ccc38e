"""Sums of search rows, with context if wanted, on a GPU, of many texts at once.

What `colazip.context` gives, which explains it: all sums are of multiples of 1 / 256, and the network is
exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from colazip.context import WINDOW, like_lengths
from colazip.nn.context import ContextEncoder
from colazip.vectors import RowSums

_ENTRIES = 1 << 18  # rows that are picked at once
_VECTORS = 4096  # that meet the codebook at once
_POSITIONS = 1 << 16  # of a batch, padding included


@torch.inference_mode()
def assign_codes(vectors: np.ndarray, codebook: np.ndarray, device: torch.device | str) -> np.ndarray:
    """`vectors.assign_codes` on a device: squares are added one after the other, each operation rounded by
    itself; of centroids as near as each other the first is taken."""
    book = torch.from_numpy(np.ascontiguousarray(codebook, np.float32)).to(device)
    codes = [np.zeros((0, len(codebook)), np.uint8)]
    for lo in range(0, len(vectors), _VECTORS):
        some = torch.from_numpy(np.ascontiguousarray(vectors[lo : lo + _VECTORS])).to(device)
        slices = some.view(len(some), len(book), 1, -1)
        distance = torch.zeros(len(some), *book.shape[:2], device=device)
        for d in range(book.shape[2]):
            gap = slices[..., d] - book[None, :, :, d]
            distance += gap * gap
        codes.append(distance.argmin(-1).to(torch.uint8).cpu().numpy())
    return np.concatenate(codes)


class DeviceSums:
    """rows: the search head's; encoder: what adds context, on its device."""

    def __init__(
        self, rows: RowSums, encoder: ContextEncoder | None, patch: int, device: torch.device
    ) -> None:
        self._rows, self._encoder, self._patch, self._device = rows, encoder, patch, device
        self._table = torch.from_numpy(rows.grid).to(device, torch.float32) / 256.0

    @torch.inference_mode()
    def __call__(self, texts: Sequence[np.ndarray], spans: np.ndarray, *, context: bool) -> np.ndarray:
        """What spans of patches add up to, float64 [C, D]. texts: tokens int64 [T] each, none empty; spans:
        int64 [C, 2], first patch and end, in the patches of all texts end to end."""
        width = self._rows.width
        if not len(spans):
            return np.zeros((0, width))
        count = np.array([len(text) for text in texts])
        patches = -(-count // self._patch)
        tokens, starts = np.concatenate(texts), np.cumsum(count) - count
        first_patch = np.cumsum(patches) - patches
        inside = np.arange(len(tokens)) - np.repeat(starts, count)  # its place in its text
        patch = np.repeat(first_patch, count) + inside // self._patch
        rows, at = self._rows.entries(tokens, starts)
        sums = torch.zeros(int(patches.sum()), width, device=self._device)
        self._add_rows(sums, rows, patch[at])
        if context and self._encoder is not None:
            first = self._rows.words.units(tokens, starts)
            begins = np.zeros(len(tokens), np.int64)
            begins[first] = 1
            units = torch.zeros(len(first), width, device=self._device)
            self._add_rows(units, rows, (begins.cumsum() - 1)[at])
            text = np.repeat(np.arange(len(texts)), count)[first]
            windows = -(-patches // max(1, WINDOW // self._patch))
            # As `context._windows` cuts them: window i begins at patch i * patches // windows.
            own = ((inside[first] // self._patch + 1) * windows[text] - 1) // patches[text]
            self._add_context(sums, units, patch[first], (np.cumsum(windows) - windows)[text] + own)
        return self._of_spans(sums, spans)

    def _of_spans(self, sums: Tensor, spans: np.ndarray) -> np.ndarray:
        length = spans[:, 1] - spans[:, 0]
        passage = np.repeat(np.arange(len(spans)), length)
        patch = np.arange(len(passage)) - np.repeat(np.cumsum(length) - length - spans[:, 0], length)
        found = torch.zeros(len(spans), sums.shape[1], dtype=torch.float64, device=self._device)
        for lo in range(0, len(passage), _ENTRIES):
            some = slice(lo, lo + _ENTRIES)
            found.index_add_(0, self._moved(passage[some]), sums[self._moved(patch[some])].double())
        return found.cpu().numpy()

    def _moved(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def _add_rows(self, sums: Tensor, rows: np.ndarray, into: np.ndarray) -> None:
        for lo in range(0, len(rows), _ENTRIES):
            some = slice(lo, lo + _ENTRIES)
            sums.index_add_(0, self._moved(into[some]), self._table[self._moved(rows[some])])

    def _add_context(self, sums: Tensor, units: Tensor, patch: np.ndarray, window: np.ndarray) -> None:
        """patch, window: int64 [U], where each unit counts and in which window it is read, both ascending."""
        assert self._encoder is not None
        starts = np.flatnonzero(np.diff(window, prepend=-1))
        lengths = np.diff(np.append(starts, len(window)))
        for batch in like_lengths(lengths.tolist(), _POSITIONS):
            each = np.arange(lengths[batch].max())
            there = each < lengths[batch][:, None]
            at = np.where(there, starts[batch][:, None] + each, 0)
            valid, index = self._moved(there), self._moved(at)
            added = self._encoder(units[index] * valid[..., None], valid)
            added = (added.clamp(-127.0, 127.0).double() * 256.0).round() / 256.0
            into = self._moved(patch[at])
            sums.index_add_(0, into.flatten(), (added * valid[..., None]).float().flatten(0, 1))
