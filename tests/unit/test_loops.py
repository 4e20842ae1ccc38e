"""What stands around the networks in compiled loops gives what NumPy's operations give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip import vectors
from colazip.entropy import PRECISION, StreamDecoder, encode_streams
from colazip.errors import FormatError
from colazip.memory import ORDERS, BlockMemory, recall
from colazip.nn.loops import ADDING, LoopMemory, LoopStreams
from colazip.vectors import RowSums
from tests.plain_entropy import encode_plainly
from tests.tiny_model import tiny_model

TOTAL = 1 << PRECISION
SEEDS = st.integers(0, 2**32 - 1)


def tables(random: np.random.Generator, rows: int, symbols: int) -> np.ndarray:
    """Cumulative frequencies, int32 [rows, symbols + 1]."""
    share = random.dirichlet(np.full(symbols, 0.3), rows) if symbols > 1 else np.ones((rows, 1))
    frequency = np.floor(share * (TOTAL - symbols)).astype(np.int64) + 1
    frequency[:, 0] += TOTAL - frequency.sum(1)
    return np.concatenate([np.zeros((rows, 1)), frequency.cumsum(1)], 1).astype(np.int32)


def streams_of(
    random: np.random.Generator, cdf: np.ndarray, owner: np.ndarray, count: int, states: int
) -> list:
    symbols = (cdf[:, 1:] <= random.integers(0, TOTAL, (len(cdf), 1))).sum(1)
    at = np.arange(len(cdf))
    start = cdf[at, symbols]
    pairs = start, cdf[at, symbols + 1] - start
    parts = [tuple(side[owner == s] for side in pairs) for s in range(count)]
    if states == 1:
        return [encode_streams(parts), symbols]
    return [[encode_plainly(a.tolist(), b.tolist(), states) for a, b in parts], symbols]


@settings(max_examples=60, deadline=None)
@given(
    SEEDS,
    st.integers(1, 4),
    st.integers(0, 300),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([1, 2, 64, 129]),
)
def test_streams(seed: int, count: int, size: int, states: int, symbols: int) -> None:
    random = np.random.default_rng(seed)
    owner = np.sort(random.integers(0, count, size))
    cdf = tables(random, size, symbols)
    streams, expected = streams_of(random, cdf, owner, count, states)
    plain, loop = StreamDecoder(streams), LoopStreams(streams)
    # In several calls, each of which has some of every stream.
    call = np.concatenate([np.arange(n) * 4 // max(n, 1) for n in np.bincount(owner, minlength=count)])
    for part in (np.flatnonzero(call == c) for c in range(4)):
        found = loop.decode(owner[part], cdf[part])
        assert found.dtype == np.int64
        assert found.tolist() == plain.decode(owner[part], cdf[part]).tolist() == expected[part].tolist()
    plain.finish()
    loop.finish()


def test_one_table_for_all_and_tables_that_do_not_fit() -> None:
    random = np.random.default_rng(3)
    cdf = tables(random, 1, 7)
    owner = np.zeros(50, np.int64)
    streams, expected = streams_of(random, cdf.repeat(50, 0), owner, 1, 1)
    assert LoopStreams(streams).decode(owner, cdf[0]).tolist() == expected.tolist()
    for bad in (cdf.astype(np.float32), cdf[None], cdf.repeat(3, 0)):
        with pytest.raises(ValueError, match="for 50 symbols"):
            LoopStreams(streams).decode(owner, bad)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(1, 60), st.sampled_from([1, 3]), st.data())
def test_damage_is_caught_as_elsewhere(seed: int, size: int, states: int, data: st.DataObject) -> None:
    """Bits flipped and bytes cut: the same error, or none, as without loops; tables of nonsense, too."""
    random = np.random.default_rng(seed)
    cdf = tables(random, size, 9)
    owner = np.sort(random.integers(0, 2, size))
    streams, _ = streams_of(random, cdf, owner, 2, states)
    worst = bytearray(streams[1])
    if worst and data.draw(st.booleans()):
        worst[data.draw(st.integers(0, len(worst) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        worst = worst[: data.draw(st.integers(0, len(worst)))]
    if data.draw(st.booleans()):
        cdf = random.integers(-(2**31), 2**31, cdf.shape).astype(np.int32)

    def outcome(kind: type[StreamDecoder]) -> object:
        try:
            decoder = kind([streams[0], bytes(worst)])
            found = decoder.decode(owner, cdf).tolist()
            assert all(0 <= symbol < 9 for symbol in found)
            decoder.finish()
            return found
        except FormatError as error:
            return str(error)

    found = outcome(LoopStreams)
    if (np.diff(cdf, axis=1) > 0).all():
        assert found == outcome(StreamDecoder)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(1, 30), st.sampled_from([3, 40, 65536]))
def test_memory(seed: int, blocks: int, longest: int, vocabulary: int) -> None:
    random = np.random.default_rng(seed)
    count = np.sort(random.integers(1, longest + 1, 7))[::-1].copy()
    tokens = random.integers(0, vocabulary, (7, longest))
    block = random.integers(0, blocks, 7)
    expected = recall(tokens, block, count)
    assert all(
        np.array_equal(a, b) for a, b in zip(recall(tokens, block, count, LoopMemory), expected, strict=True)
    )
    plain, loop = BlockMemory(blocks), LoopMemory(blocks)
    for lanes in (7, 7, 3, 1, 1):
        history = random.integers(0, vocabulary, (lanes, ORDERS))
        for a, b in zip(plain.guess(block[:lanes], history), loop.guess(block[:lanes], history), strict=True):
            assert a.tolist() == b.tolist() and a.dtype == b.dtype
        came = random.integers(0, vocabulary, lanes)
        plain.learn(came)
        loop.learn(came)


def test_sums_of_rows() -> None:
    random = np.random.default_rng(0)
    rows: RowSums = tiny_model().rows
    grid = random.integers(-32768, 32768, (50, rows.width)).astype(np.int16)
    group = np.concatenate([np.arange(9), random.integers(0, 9, 200)])
    which = random.integers(0, 50, len(group))
    expected = vectors.ADDING.picked(grid, which, group, 9)
    assert np.array_equal(ADDING.picked(grid, which, group, 9), expected)
    assert expected.dtype == ADDING.picked(grid, which[:0], group[:0], 0).dtype == np.int32
    sums = random.integers(-1000, 1000, (9, 5)) / 256.0
    added, mine = random.integers(-1000, 1000, (30, 5)) / 256.0, sums.copy()
    at = random.integers(0, 9, 30)
    vectors.ADDING.onto(sums, at, added)
    ADDING.onto(mine, at, added)
    assert np.array_equal(mine, sums)
