"""Search vectors in context: a network adds to the rows of each word what the words around it say. No torch.

A text is read in windows of at most WINDOW tokens that do not overlap; what a unit (a word, as a rule) adds
counts for the patch that its first token is in. So passages are sums of patches, as without the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Lock

import numpy as np

from colazip.vectors import RowSums

WINDOW = 256  # tokens whose units see each other
_POSITIONS = 4096  # of a batch on a CPU, padding included
# Sums of rows float32 [B, U, D], bool [B, U] of those that are there -> float32 [B, U, D].
Network = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Calls something for each batch of windows.
Run = Callable[[Callable[[list[int]], None], Sequence[list[int]]], object]


def in_turn(call: Callable[[list[int]], None], batches: Sequence[list[int]]) -> None:
    for batch in batches:
        call(batch)


def summands(
    rows: RowSums,
    network: Network,
    texts: Sequence[np.ndarray],
    patch: int,
    each: Run = in_turn,
) -> list[np.ndarray]:
    """What each patch of a text adds to its sum: tokens int64 [T] each -> float64 [P, D] each.

    each: how batches are run. All sums are multiples of 1 / 256, exact in any order; no text depends on
    another.
    """
    found = [rows.patches(tokens, patch) for tokens in texts]
    units: list[np.ndarray] = []
    places: list[tuple[int, np.ndarray]] = []  # of each window: the text, and the patch of each unit
    for text, tokens in enumerate(texts):
        sums, first = rows.units(tokens)
        at = first // patch
        for lo, hi in _windows(len(found[text]), max(1, WINDOW // patch)):
            some = slice(*np.searchsorted(at, (lo, hi)))
            if some.stop > some.start:
                units.append(sums[some])
                places.append((text, at[some]))
    adding = Lock()  # a text has windows in several batches

    def add(batch: list[int]) -> None:
        width = max(len(units[i]) for i in batch)
        padded = np.zeros((len(batch), width, rows.width), np.float32)
        valid = np.zeros((len(batch), width), bool)
        for lane, i in enumerate(batch):
            padded[lane, : len(units[i])] = units[i]
            valid[lane, : len(units[i])] = True
        added = np.rint(np.clip(network(padded, valid), -127.0, 127.0).astype(np.float64) * 256.0) / 256.0
        with adding:
            for lane, i in enumerate(batch):
                text, at = places[i]
                rows.adding.onto(found[text], at, added[lane, : len(at)])

    each(add, list(like_lengths([len(u) for u in units], _POSITIONS)))
    return found


def _windows(patches: int, longest: int) -> list[tuple[int, int]]:
    """(first, end) patches of windows as even as can be, none longer than `longest`."""
    count = -(-patches // longest)
    return [(i * patches // count, (i + 1) * patches // count) for i in range(count)]


def like_lengths(lengths: Sequence[int], positions: int) -> Iterator[list[int]]:
    """Windows of like length together, so that there is little padding: at most `positions` in a batch, or
    one."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > positions:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
