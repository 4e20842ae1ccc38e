"""Records in order out of decoded blocks: all, a range of them, or those that a filter lets pass. Only blocks
that hold one of them are decoded."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Generic, TypeVar

import numpy as np

from colazip.archive.filters import passing
from colazip.archive.store import Store

_T = TypeVar("_T")
_WIDE = 8  # blocks of a range that may share one with its neighbour
Places = Sequence[tuple[int, int]]  # group and block in it
Chosen = Iterable[tuple[int, Sequence[int]]]  # groups, and rows of each in rising order
Run = tuple[int, int, list[list[_T]]]  # group, first row, the parts of that row and of those after it


def chosen_rows(store: Store, span: range, where: str | None) -> Iterator[tuple[int, Sequence[int]]]:
    """(group, its rows in rising order) for every group that holds one of the records.

    span: ordinals, step 1. where: only records whose metadata pass. Raises UsageError for a filter that can't
    be read.
    """
    return rows_of(store, span, None if where is None else passing(store, where, span))


def rows_of(store: Store, span: range, mask: np.ndarray | None) -> Iterator[tuple[int, Sequence[int]]]:
    """As `chosen_rows`. mask: bool [records], None for all."""
    for group, info in enumerate(store.manifest.groups):
        first = store.first_records[group]
        rows: Sequence[int] = range(max(span.start - first, 0), min(span.stop - first, info.records))
        if rows and mask is not None:
            begin, end = first + rows[0], first + rows[-1] + 1
            rows = (np.flatnonzero(mask[begin:end]) + rows[0]).tolist()
        if rows:
            yield group, rows


def ranges(store: Store, count: int) -> list[tuple[int, int]]:
    """What `Archive.ranges` gives."""
    blocks = store.manifest.blocks
    count = min(count, blocks)
    cuts = {_cut(store, blocks * at // count, blocks / count) for at in range(1, count)}
    bounds = sorted({0, store.first_records[-1], *cuts})
    return list(pairwise(bounds))


def _cut(store: Store, block: int, width: float) -> int:
    """Ordinal of a record to cut before, near `block` (counted over the archive). width: blocks a range."""
    group = bisect_right(store.first_blocks, block) - 1
    block -= store.first_blocks[group]
    if block == 0:  # groups begin with a record, so their tables needn't be read
        return store.first_records[group]
    blocks, rows = store.tables(group)
    if rows.starts is None:
        return store.first_records[group] + int(blocks.starts[block])
    begun = np.intersect1d(blocks.starts, rows.starts)  # parts that a block and a record begin with
    away = np.abs(np.searchsorted(blocks.starts, begun) - block)
    part = begun[away.argmin()]
    if width >= _WIDE and away.min() > width / 2:
        part = blocks.starts[block]
    return store.first_records[group] + int(np.searchsorted(rows.starts, part))


def stream(
    store: Store,
    chosen: Chosen,
    in_batches: Callable[[Iterable[tuple[int, int]]], Iterable[Places]],
    decode: Callable[[Places], list[list[_T]]],
) -> Iterator[Run[_T]]:
    """The chosen rows, in runs of neighbours, a batch of blocks at a time; memory is bounded."""
    begun: deque[_Group[_T]] = deque()

    def places() -> Iterator[tuple[int, int]]:
        for group, rows in chosen:
            begun.append(_Group(store, group, rows))
            yield from ((group, block) for block in blocks_of(store, group, rows))

    for batch in in_batches(places()):
        decoded = iter(decode(batch))
        for group, run in groupby(batch, key=itemgetter(0)):
            while begun[0].number != group:
                begun.popleft()
            for _, block in run:
                if not begun[0].goes_on(block):
                    yield from begun[0].finished()
                begun[0].add(block, next(decoded))
            yield from begun[0].finished()


class _Group(Generic[_T]):
    """The rows wanted of one group, and the decoded parts that they still need."""

    def __init__(self, store: Store, number: int, rows: Sequence[int]) -> None:
        self.store = store
        self.number = number
        self.rows = rows
        self.given = 0  # of the rows
        self.parts: list[_T] = []
        self.first = 0  # part, counted in the group, that `parts` begins with

    def goes_on(self, block: int) -> bool:
        """Whether a block follows the parts that are there."""
        return int(self.store.tables(self.number)[0].starts[block]) == self.first + len(self.parts)

    def add(self, block: int, parts: list[_T]) -> None:
        """Take the next block. Where some were passed over, rows before them have to be taken out first."""
        if not self.goes_on(block):
            self.parts, self.first = [], int(self.store.tables(self.number)[0].starts[block])
        self.parts += parts

    def finished(self) -> Iterator[Run[_T]]:
        """Rows that are whole now."""
        table = self.store.tables(self.number)[1]
        begin, done = 0, list[list[_T]]()
        needed = end = self.first + len(self.parts)
        while self.given < len(self.rows):
            row = self.rows[self.given]
            first, last = table.parts(row)
            if last > end:
                needed = min(first, end)
                break
            if done and row != begin + len(done):
                yield self.number, begin, done
                done = []
            if not done:
                begin = row
            done.append(self.parts[first - self.first : last - self.first])
            self.given += 1
        del self.parts[: needed - self.first]
        self.first = needed
        if done:
            yield self.number, begin, done


def blocks_of(store: Store, group: int, rows: Sequence[int]) -> Iterable[int]:
    """Blocks that hold parts of these rows, in order."""
    info = store.manifest.groups[group]
    if len(rows) == info.records:
        return range(info.blocks)
    blocks, table = store.tables(group)
    bounds = np.array([table.parts(row) for row in rows], dtype=np.int64) - [0, 1]
    first, last = (np.searchsorted(blocks.starts, bounds, side="right") - 1).T
    holds = np.zeros(info.blocks + 1, dtype=np.int64)
    np.add.at(holds, first, 1)
    np.add.at(holds, last + 1, -1)
    found: list[int] = np.flatnonzero(np.cumsum(holds[:-1])).tolist()
    return found
