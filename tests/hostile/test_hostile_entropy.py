"""Damaged, truncated and made-up entropy streams: always FormatError, never another exception."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.entropy import PRECISION, StreamDecoder, encode_streams
from colazip.errors import FormatError
from tests.plain_entropy import encode_plainly

TOTAL = 1 << PRECISION
CDF = np.array([0, 5, 1000, 70_000, 400_000, 1_000_000, TOTAL], np.int32)


def sample(size: int, seed: int = 0) -> tuple[bytes, list[int]]:
    """A stream of `size` symbols under CDF, and the symbols.

    From 500 symbols on it has several states, which the encoder gives to streams of 16,384 symbols and more.
    """
    slots = np.random.default_rng(seed).integers(0, TOTAL, size)
    symbols = np.searchsorted(CDF[1:], slots, side="right")
    start, freq = CDF[symbols], CDF[symbols + 1] - CDF[symbols]
    if size >= 500:
        return encode_plainly(start.tolist(), freq.tolist(), states=size // 150), symbols.tolist()
    (coded,) = encode_streams([(start, freq)])
    return coded, symbols.tolist()


def decode(data: bytes, size: int) -> list[int]:
    decoder = StreamDecoder([data])
    symbols = decoder.decode(np.zeros(size, np.int64), CDF).tolist()
    decoder.finish()
    return symbols


@pytest.mark.parametrize("size", [1, 5, 60, 500, 2100])
def test_every_truncation_is_caught(size):
    coded, symbols = sample(size)
    assert decode(coded, size) == symbols
    # The states of a long stream come first; past them, one cut in every word is as good as all four.
    for length in range(0, len(coded), 1 if len(coded) < 100 else 5):
        with pytest.raises(FormatError):
            decode(coded[:length], size)


@pytest.mark.parametrize("size", [1, 5, 60, 500, 2100])
def test_bytes_too_many_are_caught(size):
    coded, _ = sample(size)
    for extra in (b"\0", b"\1", b"\xff", b"\0" * 4, b"\xff" * 4, b"\0" * 8, b"\xff" * 64):
        with pytest.raises(FormatError):
            decode(coded + extra, size)
        with pytest.raises(FormatError):
            decode(extra + coded, size)


@pytest.mark.parametrize("size", [1, 5, 60, 500, 2100])
def test_every_flipped_bit_is_caught(size):
    # One in about 2**20 would get through; none of these does, and they are the same in every run.
    coded, _ = sample(size)
    for bit in range(0, 8 * len(coded), 1 if len(coded) < 100 else 11):
        damaged = bytearray(coded)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode(bytes(damaged), size)


@pytest.mark.parametrize("size", [1, 5, 60, 500, 2100])
def test_wrong_number_of_symbols_is_caught(size):
    coded, _ = sample(size)
    for wrong in (0, size - 1, size + 1, size + 100):
        with pytest.raises(FormatError):
            decode(coded, wrong)


def test_symbols_of_an_empty_stream():
    with pytest.raises(FormatError):
        decode(b"", 1)


@pytest.mark.parametrize(
    "data",
    [
        b"\0",  # a leading zero byte
        b"\1",  # a mark and no state
        b"\1\x20\0\x20",  # a needless mark
        b"\0\0\x10",  # the origin, which is no bytes
        b"\xff\xff\x0f",  # below the origin
        b"\x20\0\x20\0",  # a leading zero byte
        b"\x20\0\x20\0\0\0\0\0\0",  # ... in front of a word
        b"\2",
        b"\2" + b"\xff" * 15,
        b"\2" + b"\xff" * 17,
        b"\x10" + b"\xff" * 127,
        b"\2" + b"\xff" * 8 + b"\0" * 8,  # a state below its origin
        b"\2" + b"\xff" * 8 + b"\xff\xff\xff\xff\0\0\0\0",
    ],
)
def test_impossible_bytes_are_refused_at_once(data):
    with pytest.raises(FormatError):
        StreamDecoder([b"", data])


def test_the_message_names_the_stream():
    good, _ = sample(60)
    bad, _ = sample(60, seed=1)
    decoder = StreamDecoder([good, bad[:-4] + b"\x99" * 4, good])
    with pytest.raises(FormatError, match=r"^entropy stream 1 is damaged: [^\n]+$"):
        decoder.decode(np.repeat(np.arange(3), 60), CDF)
        decoder.finish()


def test_damage_in_one_stream_leaves_the_others_alone():
    good, symbols = sample(60)
    decoder = StreamDecoder([good, b"\xff" * 200, good])
    decoded = decoder.decode(np.repeat(np.arange(3), 60), CDF).reshape(3, 60)
    assert decoded[0].tolist() == decoded[2].tolist() == symbols
    with pytest.raises(FormatError, match="stream 1 "):
        decoder.finish()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), size=st.integers(0, 3000))
def test_made_up_bytes_never_crash(data, size):
    if size == 0 and not data:
        return
    with pytest.raises(FormatError):
        decode(data, size)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6), min_size=1, max_size=20
    ),
    shared=st.booleans(),
)
def test_bad_tables_never_crash(rows, shared):
    coded, _ = sample(100)
    table = np.array(rows, np.int32)
    decoder = StreamDecoder([coded, coded])
    try:
        symbols = decoder.decode(np.zeros(len(rows), np.int64), table[0] if shared else table)
    except FormatError:
        return
    assert symbols.min() >= 0
    assert symbols.max() < 5
