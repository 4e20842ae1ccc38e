"""Peers of the compression benchmark: bytes come back, boundaries are counted, strength is as known."""

from __future__ import annotations

import random

import numpy as np
import pytest

from colazip.entropy import PRECISION
from colazip.evaluate import peers
from colazip.layers import BLOCK_BYTES, BLOCK_PARTS
from colazip.tokenizer import Tokenizer

WORDS = [
    "the",
    "a",
    "of",
    "in",
    "on",
    "wind",
    "tide",
    "boat",
    "rope",
    "sail",
    "anchor",
    "harbour",
    "keel",
    "helm",
    "watch",
    "lee",
    "windward",
    "moor",
    "drift",
]


def sentences(count: int, seed: int) -> list[bytes]:
    """Short records over a small vocabulary, alike enough for a dictionary to pay."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(8, 40))).encode() for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([s.decode() for s in sentences(200, seed=1)], 320)


@pytest.fixture(scope="module")
def every_peer(tokenizer: Tokenizer) -> list[peers.Peer]:
    pytest.importorskip("brotli")
    pytest.importorskip("pyppmd")
    return [
        peers.zstd_per_record(),
        peers.brotli_per_record(),
        peers.zstd_dictionary(sentences(2000, seed=1), 4096, "4 KiB"),
        peers.zstd_solid(),
        peers.xz_solid(),
        peers.brotli_solid(),
        peers.ppmd_solid(memory=1 << 22),
        peers.static_ans(tokenizer, sentences(200, seed=1)),
    ]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [b""],
        [b"", b"a", b"", b"bc"],
        [bytes(range(256)) * 3, b"\xff\xfe", "snow ☃ 雪".encode(), b"x" * 20_000],
        sentences(50, seed=2),
    ],
    ids=["none", "one empty", "empties", "binary", "sentences"],
)
def test_bytes_come_back_and_are_counted(every_peer: list[peers.Peer], records: list[bytes]) -> None:
    for peer in every_peer:
        measured = peers.measure(peer, records)
        assert measured.total_bytes == len(peer.pack(records))
        assert measured.records == len(records)
        assert measured.raw_bytes == sum(map(len, records))


def test_a_record_costs_its_boundary() -> None:
    one = peers.zstd_per_record().pack([b"a" * 300])
    two = peers.zstd_per_record().pack([b"a" * 300, b"a" * 300])
    assert len(two) == 2 * len(one)
    length, at = peers.read_varint(one, 0)
    assert length == len(one) - at


def test_strength_is_in_the_known_order() -> None:
    records = sentences(400, seed=3)
    plain = peers.measure(peers.zstd_per_record(), records)
    trained = peers.measure(peers.zstd_dictionary(sentences(2000, seed=1), 4096, "4 KiB"), records)
    solid = peers.measure(peers.zstd_solid(), records)
    assert solid.total_bytes < trained.total_bytes < plain.total_bytes
    assert trained.ratio > plain.ratio > 1


def test_measure_refuses_a_lossy_coder() -> None:
    lossy = peers.per_record("lossy", lambda data: data[:-1], lambda data: data)
    with pytest.raises(ValueError, match="lossy"):
        peers.measure(lossy, [b"abc"])


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 1 << 20, 1 << 40])
def test_varint_round_trip(value: int) -> None:
    coded = peers.varint(value)
    assert peers.read_varint(coded, 0) == (value, len(coded))


def test_varint_cut_short() -> None:
    with pytest.raises(ValueError, match="ends inside"):
        peers.read_varint(b"\x80\x80", 0)


def test_too_few_samples_for_a_dictionary() -> None:
    with pytest.raises(ValueError, match="no dictionary"):
        peers.zstd_dictionary([b"one"], 1024, "1 KiB")


def test_static_table_is_near_the_entropy_of_its_tokens(tokenizer: Tokenizer) -> None:
    records = sentences(800, seed=4)
    peer = peers.static_ans(tokenizer, records)
    split = np.concatenate(tokenizer.encode(records))
    share = np.bincount(split) / len(split)
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum() * len(split) / 8
    size = peers.measure(peer, records).total_bytes - len(records)  # a varint of its tokens for each
    assert entropy <= size < entropy * 1.02 + 20


@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 0, 5], [10**9, 1, 0, 0, 7], [1] * 1000])
def test_frequency_table(counts: list[int]) -> None:
    table = peers.frequency_table(np.array(counts))
    assert table.sum() == 1 << PRECISION and table.min() >= 1
    assert (np.diff(table[np.argsort(counts, kind="stable")]) >= -1).all()


def test_blocks_fill_up_as_in_an_archive() -> None:
    big, small = b"x" * (BLOCK_BYTES - 10), b"y" * 10
    assert peers.in_blocks([]) == []
    assert peers.in_blocks([big, small, b"", b"z"]) == [range(0, 3), range(3, 4)]
    assert peers.in_blocks([b"x" * (2 * BLOCK_BYTES), small]) == [range(0, 1), range(1, 2)]
    assert peers.in_blocks([b""] * (BLOCK_PARTS + 1)) == [
        range(0, BLOCK_PARTS),
        range(BLOCK_PARTS, BLOCK_PARTS + 1),
    ]


def test_language_model_is_charged_for_bits_and_boundaries() -> None:
    records, tokens = (
        [b"ab", b"", b"x" * 300],
        [np.array([1, 2]), np.zeros(0, np.int64), np.ones(200, np.int64)],
    )
    # 3 records, their 3 token counts (200 takes two bytes), the length of the stream; 8 + 0 + 9 bits.
    assert peers.language_model_bytes(records, tokens, np.array([8.0, 0.0, 9.0])) == 1 + 1 + 1 + 2 + 1 + 3
    assert peers.language_model_bytes([], [], np.zeros(0)) == 0
