"""What stands around the networks on a CPU, for many lanes at a time, in loops that Numba compiles.

Same integers as `colazip.entropy.StreamDecoder`, `colazip.memory.BlockMemory` and `colazip.vectors.Adding`,
which explain them and, in NumPy, take an operation of its own for each step: fast networks wait for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from colazip.entropy import CUT_SHORT, PRECISION, StreamDecoder, check_tables, damaged
from colazip.memory import (
    ODD,
    ORDERS,
    RUN_BITS,
    RUNS,
    SLOT_BITS,
    TAG_BITS,
    TOKEN_BITS,
    BlockMemory,
)
from colazip.vectors import Adding

_U = np.uint64
_SLOT, _SHIFT, _WORD, _REFILL_BELOW = _U((1 << PRECISION) - 1), _U(PRECISION), _U(32), _U(1 << 32)
_TAG, _TOKEN, _RUN = _U((1 << TAG_BITS) - 1), _U((1 << TOKEN_BITS) - 1), _U(RUNS - 1)
_TOKEN_BITS, _TAG_SHIFT, _SLOT_SHIFT = _U(TOKEN_BITS), _U(TOKEN_BITS + RUN_BITS), _U(64 - SLOT_BITS)
_ODD = np.array(ODD, _U)


def loop(function: Callable[..., Any]) -> Any:
    """Compiled when first called, and kept in Numba's cache; other threads may run meanwhile. Nothing is
    reordered, fused or rounded otherwise."""
    return njit(function, nogil=True, cache=True, error_model="numpy")


@loop
def _decode(stream, cdf, state, first, count, turn, words, cursor, end, origin, out):  # type: ignore[no-untyped-def]
    """Fills out; returns the stream that ended before its symbols did, or -1. Arguments as of
    `StreamDecoder`."""
    symbols = cdf.shape[1] - 1
    for i in range(len(stream)):
        s = stream[i]
        lane = first[s] + turn[s]
        turn[s] = turn[s] + 1 if turn[s] + 1 < count[s] else 0
        x = state[lane]
        slot = x & _SLOT
        row = cdf[i]
        low, high = 0, symbols  # whatever the table holds, the symbol is one of them
        while high - low > 1:
            middle = (low + high) >> 1
            if _U(row[middle]) <= slot:
                low = middle
            else:
                high = middle
        start = _U(row[low])
        x = (x >> _SHIFT) * (_U(row[low + 1]) - start) + (slot - start)
        if x < _REFILL_BELOW:
            if cursor[s] < end[s]:
                x = x << _WORD | _U(words[cursor[s]])
                cursor[s] += 1
            elif x < origin[s]:
                return s
        state[lane] = x
        out[i] = low
    return -1


class LoopStreams(StreamDecoder):
    """A `StreamDecoder` whose states advance one after the other."""

    def decode(self, stream: np.ndarray, cdf: np.ndarray) -> np.ndarray:
        check_tables(stream, cdf)
        if cdf.ndim == 1:
            cdf = np.broadcast_to(cdf, (len(stream), len(cdf)))
        out = np.empty(len(stream), np.int64)
        bad = _decode(
            stream,
            cdf,
            self._state,
            self._first_lane,
            self._count,
            self._turn,
            self._words,
            self._cursor,
            self._end,
            self._origin,
            out,
        )
        if bad >= 0:
            raise damaged(bad, CUT_SHORT)
        return out


@loop
def _guess(block, history, table, blocks, tags, slots, entries, guess, kind):  # type: ignore[no-untyped-def]
    for i in range(len(block)):
        context, guess[i], kind[i] = _U(1), 0, 0
        for order in range(ORDERS):
            token = _U(history[i, order])
            context = context + token if order == 0 else context << _TOKEN_BITS | token
            mixed = context * _ODD[order]
            tag = max((mixed >> _U(8)) & _TAG, _U(1))  # 0: empty
            slot = ((order * blocks + block[i]) << SLOT_BITS) + np.int64(mixed >> _SLOT_SHIFT)
            entry = table[slot]
            tags[order, i], slots[order, i], entries[order, i] = tag, slot, entry
            if entry >> _TAG_SHIFT == tag:
                guess[i] = np.int64(entry & _TOKEN)
                kind[i] = 1 + order * RUNS + np.int64(entry >> _TOKEN_BITS & _RUN)


@loop
def _learn(came, table, tags, slots, entries):  # type: ignore[no-untyped-def]
    for order in range(ORDERS):
        for i in range(len(came)):
            token, tag, entry = _U(came[i]), tags[order, i], entries[order, i]
            runs = _U(0)
            if entry >> _TAG_SHIFT == tag and entry & _TOKEN == token:
                runs = min((entry >> _TOKEN_BITS & _RUN) + _U(1), _RUN)
            table[slots[order, i]] = tag << _TAG_SHIFT | runs << _TOKEN_BITS | token


class LoopMemory(BlockMemory):
    """A `BlockMemory` that looks up one lane after the other."""

    def guess(self, block: np.ndarray, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found, kind = np.empty((2, len(block)), np.int64)
        tags, entries = np.empty((2, ORDERS, len(block)), np.uint64)
        slots = np.empty((ORDERS, len(block)), np.int64)
        _guess(block, history, self._table, self._blocks, tags, slots, entries, found, kind)
        self._met = tags, slots, entries
        return found, kind

    def learn(self, came: np.ndarray) -> None:
        _learn(came, self._table, *self._met)


@loop
def _add_picked(rows, which, group, sums):  # type: ignore[no-untyped-def]
    for i in range(len(which)):
        row, into = which[i], group[i]
        for j in range(rows.shape[1]):
            sums[into, j] += np.int32(rows[row, j])


def _picked(rows: np.ndarray, which: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    sums = np.zeros((count, rows.shape[1]), np.int32)
    _add_picked(rows, which, group, sums)
    return sums


@loop
def _onto(sums, at, added):  # type: ignore[no-untyped-def]
    for i in range(len(at)):
        row = at[i]
        for j in range(sums.shape[1]):
            sums[row, j] += added[i, j]


ADDING = Adding(_picked, _onto)
