"""The rANS coder: round trips, sizes, and agreement with a plain reading of the format."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.entropy import PRECISION, StreamDecoder, cost_bits, encode_streams, state_count
from tests.plain_entropy import encode_plainly

TOTAL = 1 << PRECISION


def random_tables(rng: np.random.Generator, rows: int, alphabet: int, peak: float) -> np.ndarray:
    """Tables, int32 [rows, alphabet + 1], of random shape; a high peak makes one symbol nearly certain."""
    weights = np.exp(peak * rng.standard_normal((rows, alphabet)))
    freq = 1 + np.floor(weights / weights.sum(1, keepdims=True) * (TOTAL - alphabet)).astype(np.int64)
    freq[np.arange(rows), freq.argmax(1)] += TOTAL - freq.sum(1)
    return np.concatenate([np.zeros((rows, 1), np.int64), freq.cumsum(1)], axis=1).astype(np.int32)


def draw(rng: np.random.Generator, cdf: np.ndarray) -> np.ndarray:
    """One symbol of each row, int64 [rows], by the row's own probabilities."""
    return (cdf[:, 1:] <= rng.integers(0, TOTAL, len(cdf))[:, None]).sum(1)


def intervals(cdf: np.ndarray, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(start, freq), uint32 [n] each."""
    rows = np.arange(len(symbols))
    start, end = cdf[rows, symbols], cdf[rows, symbols + 1]
    return start.astype(np.uint32), (end - start).astype(np.uint32)


def test_agrees_with_a_plain_coder():
    rng = np.random.default_rng(1)
    streams = []
    for size, alphabet, peak in [
        (1, 2, 0),
        (7, 300, 2),
        (300, 5, 6),
        (16383, 40, 1),
        (16384, 40, 1),
        (25000, 3, 3),
    ]:
        cdf = random_tables(rng, size, alphabet, peak)
        streams.append(intervals(cdf, draw(rng, cdf)))
    expected = [encode_plainly(start.tolist(), freq.tolist()) for start, freq in streams]
    assert encode_streams(streams) == expected
    assert [encode_streams([stream])[0] for stream in streams] == expected


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.one_of(st.integers(0, 40), st.integers(0, 1500)), max_size=6),
    states=st.sampled_from([None, 2, 3, 16]),  # the encoder gives several to long streams only
    alphabet=st.one_of(st.integers(1, 8), st.sampled_from([64, 129, 300])),
    peak=st.sampled_from([0.0, 1.0, 3.0, 10.0]),
    calls=st.integers(1, 12),
    dtype=st.sampled_from([np.int32, np.int64, np.uint32]),
)
def test_round_trip_in_any_grouping(seed, sizes, states, alphabet, peak, calls, dtype):
    rng = np.random.default_rng(seed)
    tables = [random_tables(rng, size, alphabet, peak) for size in sizes]
    symbols = [draw(rng, cdf) for cdf in tables]
    parts = [intervals(*pair) for pair in zip(tables, symbols, strict=True)]
    if states is None:
        decoder = StreamDecoder(encode_streams(parts))
    else:
        decoder = StreamDecoder([encode_plainly(a.tolist(), b.tolist(), states) for a, b in parts])

    # Each stream is cut at its own random places, so that a call has many symbols of one and none of another.
    cuts = [np.sort(rng.integers(0, size + 1, calls - 1)).tolist() for size in sizes]
    ends = [[0, *cut, size] for cut, size in zip(cuts, sizes, strict=True)]
    decoded: list[list[int]] = [[] for _ in sizes]
    for call in range(calls):
        cut_here = [slice(end[call], end[call + 1]) for end in ends]
        owner = np.repeat(np.arange(len(sizes)), [part.stop - part.start for part in cut_here])
        cdf = [table[part] for table, part in zip(tables, cut_here, strict=True)]
        cdf = np.concatenate([np.zeros((0, alphabet + 1), np.int32), *cdf]).astype(dtype)
        for number, symbol in zip(owner.tolist(), decoder.decode(owner, cdf).tolist(), strict=True):
            decoded[number].append(symbol)
    decoder.finish()
    assert decoded == [part.tolist() for part in symbols]


@pytest.mark.parametrize("alphabet", [1, 2, 3, 100])
def test_shared_table(alphabet):
    rng = np.random.default_rng(alphabet)
    cdf = random_tables(rng, 1, alphabet, 1.0)
    sizes = [25000, 0, 20]
    symbols = [draw(rng, cdf.repeat(size, 0)) for size in sizes]
    coded = encode_streams([intervals(cdf.repeat(len(part), 0), part) for part in symbols])
    decoder = StreamDecoder(coded)
    decoded = decoder.decode(np.repeat(np.arange(3), sizes), cdf[0])
    decoder.finish()
    assert decoded.dtype == np.int64
    assert decoded.tolist() == np.concatenate(symbols).tolist()


@pytest.mark.parametrize("alphabet", [2, 64, 300])
@pytest.mark.parametrize("size", [3000, 25000])
def test_size_is_the_ideal(alphabet, size):
    rng = np.random.default_rng(size + alphabet)
    cdf = random_tables(rng, size, alphabet, 1.5)
    start, freq = intervals(cdf, draw(rng, cdf))
    ideal = cost_bits(freq).sum() / 8
    (coded,) = encode_streams([(start, freq)])
    assert ideal < len(coded) < 1.001 * ideal + 8 * state_count(size)


def test_short_streams_are_short():
    rng = np.random.default_rng(5)
    streams = []
    for size in rng.integers(1, 100, 500).tolist():
        cdf = random_tables(rng, size, 30, 2.0)
        streams.append(intervals(cdf, draw(rng, cdf)))
    excess = [
        len(coded) - cost_bits(freq).sum() / 8
        for coded, (_, freq) in zip(encode_streams(streams), streams, strict=True)
    ]
    assert np.mean(excess) < 3.2
    assert max(excess) < 6


@pytest.mark.parametrize(
    ("symbols", "states"),
    [(0, 1), (1, 1), (16_383, 1), (16_384, 2), (24_576, 3), (131_072, 16), (10**9, 16)],
)
def test_states_grow_with_the_stream(symbols, states):
    assert state_count(symbols) == states


def test_nothing_to_say_takes_no_bytes():
    empty = np.empty(0, np.uint32)
    certain = (np.zeros(50, np.uint32), np.full(50, TOTAL, np.uint32))
    assert encode_streams([]) == []
    assert encode_streams([(empty, empty), certain]) == [b"", b""]
    decoder = StreamDecoder([b"", b""])
    assert decoder.decode(np.ones(50, np.int64), np.array([0, TOTAL])).tolist() == [0] * 50
    decoder.finish()


def test_cost_bits():
    assert cost_bits(np.array([1, TOTAL // 2, TOTAL], np.uint32)).tolist() == [PRECISION, 1.0, 0.0]


@pytest.mark.parametrize(
    ("start", "freq"),
    [([0], [0]), ([1], [TOTAL]), ([-1], [5]), ([TOTAL], [1]), ([0, 0], [1])],
)
def test_bad_intervals_are_refused(start, freq):
    with pytest.raises(ValueError):
        encode_streams([(np.array(start), np.array(freq))])


@pytest.mark.parametrize(
    "cdf", [np.array([0.0, TOTAL]), np.zeros((2, 3), np.int32), np.zeros((1, 1, 2), np.int32)]
)
def test_bad_table_shapes_are_refused(cdf):
    with pytest.raises(ValueError):
        StreamDecoder([b""]).decode(np.zeros(1, np.int64), cdf)


def test_needs_no_torch():
    code = "import sys, colazip.entropy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
