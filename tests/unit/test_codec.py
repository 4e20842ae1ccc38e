"""Codec: what goes in comes out, whatever it is and however it is batched."""

from __future__ import annotations

import contextlib
import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.classical import RAW, ZSTD, ZSTD_DICTIONARY
from colazip.codec import Codec
from colazip.errors import FormatError, MissingLayerError, ModelMismatchError, UsageError, VersionError
from colazip.layers import BLOCK_BYTES, EXACT, GIST, LAYERS, PLAIN, SEARCH, Block
from colazip.presets import BALANCED, FAST, SMALL
from tests.tiny_model import passages, tiny_codec

AWKWARD = [
    b"",
    b"a",
    b"\x00",
    b"\xff\xfe\xfd",
    "naïve café 😀 日本語 한국어".encode(),
    b"half a character: \xe2\x82",
    b"<pad> is only a word",
    b"\r\n\t  trailing   ",
    "\ud800".encode("utf-8", "surrogatepass"),
]


def text_blocks() -> list[list[bytes]]:
    """Two blocks of passages, long and short, with awkward records among them."""
    texts = [t.encode() for t in passages()]
    return [[*texts[:6], *AWKWARD, texts[6][:50]], [b" ".join(texts[10:20]), texts[20]]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)), max_size=8))
def test_any_bytes_come_back_and_hardly_grow(records: list[bytes]) -> None:
    codec = tiny_codec()
    blobs = codec.encode(records)
    assert all(len(b) <= len(r) + 8 for b, r in zip(blobs, records, strict=True))
    assert codec.decode(blobs) == records


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=300), max_size=6), min_size=1, max_size=3), st.randoms())
def test_blocks_of_any_bytes_come_back(blocks: list[list[bytes]], rng: random.Random) -> None:
    for parts in blocks:  # text among the noise, so that both ways of coding meet in a block
        parts.insert(rng.randint(0, len(parts)), rng.choice(passages()).encode())
    codec = tiny_codec()
    assert codec.decode_blocks(codec.encode_blocks(blocks)) == blocks


def test_text_is_coded_by_the_model_and_smaller() -> None:
    codec = tiny_codec()
    texts = [t.encode() for t in passages()[:40]]
    (block,) = codec.encode_blocks([texts])
    assert len(codec.plain_slots(block)) <= 4  # the dictionary was made of these very texts
    assert sum(map(len, block.layers.values())) < 0.6 * sum(map(len, texts))
    assert codec.decode_blocks([block]) == [texts]


def test_same_bytes_for_any_batch_size_and_thread_count() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for size in (1, 7, 64):
                codec = tiny_codec(size)
                blocks = codec.encode_blocks(text_blocks())
                results.append([dict(b.layers) for b in blocks])
                assert codec.decode_blocks(blocks) == text_blocks()
    finally:
        torch.set_num_threads(threads)
    assert all(r == results[0] for r in results)


def test_a_block_does_not_depend_on_its_neighbours() -> None:
    codec = tiny_codec()
    together = codec.encode_blocks(text_blocks())
    alone = [codec.encode_blocks([b])[0] for b in text_blocks()]
    assert [dict(b.layers) for b in together] == [dict(b.layers) for b in alone]
    assert codec.decode_blocks(together[1:]) == text_blocks()[1:]


def test_vectors_do_not_depend_on_the_batch() -> None:
    texts = passages()[:9]
    together = tiny_codec(64).vectors(texts)
    alone = np.concatenate([tiny_codec(1).vectors([t]) for t in texts])
    assert (together == alone).all()
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    assert (tiny_codec().vectors([""]) == 0).all()


def test_search_codes_belong_to_their_parts() -> None:
    codec = tiny_codec()
    texts = [t.encode() for t in passages()[:5]]
    (block,) = codec.encode_blocks([[texts[0], bytes(range(256)), *texts[1:]]])
    slots, codes = codec.search_codes(block)
    assert slots.tolist() == [0, 2, 3, 4, 5]
    book = codec.codebook
    read = np.concatenate([book[m][codes[:, m]] for m in range(len(book))], axis=1)
    cosine = (read * codec.vectors(texts)).sum(1) / np.linalg.norm(read, axis=1)
    assert cosine.mean() > 0.5


def test_layers_stand_alone() -> None:
    codec = tiny_codec()
    parts = [t.encode() for t in passages()[:3]]
    (full,) = codec.encode_blocks([parts])
    (gist,) = codec.encode_blocks([parts], (GIST,))
    (search,) = codec.encode_blocks([parts], (SEARCH,))
    assert set(gist.layers) == {GIST} and gist.layers[GIST] == full.layers[GIST]
    assert set(search.layers) == {SEARCH} and search.layers[SEARCH] == full.layers[SEARCH]
    reading = codec.read_gist([gist])[0]
    assert len(reading) == 3 and all(isinstance(r, str) and r for r in reading)
    assert reading == codec.read_gist([full])[0]
    with pytest.raises(MissingLayerError, match="exact"):
        codec.decode_blocks([gist])
    with pytest.raises(MissingLayerError, match="gist"):
        codec.read_gist([search])
    with pytest.raises(MissingLayerError, match="search"):
        codec.search_codes(gist)


def test_blob_of_the_gist_alone_reads_but_does_not_decode() -> None:
    codec = tiny_codec()
    text = " ".join(passages()[:4])
    (blob,) = codec.encode([text], (GIST,))
    assert codec.read([blob])[0]
    with pytest.raises(MissingLayerError):
        codec.decode([blob])


@pytest.mark.parametrize("layers", [(), ("gits",), (EXACT,), (SEARCH, EXACT)])
def test_impossible_layers(layers: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        tiny_codec().encode(["text"], layers)


def test_long_records_are_cut_and_joined() -> None:
    codec = tiny_codec()
    text = (" ".join(passages()) + "\n").encode() * 2
    pieces = codec.split(text)
    assert len(pieces) > 1 and b"".join(pieces) == text and max(map(len, pieces)) <= BLOCK_BYTES
    assert codec.decode(codec.encode([text])) == [text]
    wide = "語".encode() * 40_000
    assert all(p.decode() for p in codec.split(wide))
    assert codec.split(b"") == [b""]


def test_blobs_of_another_model_or_release_are_refused() -> None:
    codec = tiny_codec()
    text = " ".join(passages()[-4:])
    (blob,) = codec.encode([text])
    assert blob[2] & 1  # coded by the model
    with pytest.raises(VersionError, match="upgrade"):
        codec.decode([blob[:2] + bytes([blob[2] + 0x10]) + blob[3:]])
    stranger = Codec(tiny_codec().model)
    stranger.model = type(codec.model)(
        "0" * 32, *(getattr(codec.model, n) for n in ("config", "tokenizer", "vae", "search", "prior"))
    )
    with pytest.raises(ModelMismatchError):
        stranger.decode([blob])


def test_damaged_blobs_are_refused() -> None:
    codec = tiny_codec()
    text = " ".join(passages()[-4:])  # held out: the dictionary knows the others by heart
    blobs = [
        *codec.encode([text, bytes(range(200)), "ab" * 100]),
        *codec.encode([text], preset=BALANCED),
    ]
    assert [blob[2] & 15 for blob in blobs] == [1, RAW << 1, ZSTD << 1, ZSTD_DICTIONARY << 1]
    rng = random.Random(0)
    for blob in blobs:
        for _ in range(60):
            at = rng.randrange(len(blob))
            broken = bytearray(blob)
            broken[at] ^= 1 << rng.randrange(8)
            with pytest.raises((FormatError, ModelMismatchError)):
                codec.decode([bytes(broken)])
        for cut in (0, 1, 2, 3, 7, 10, len(blob) - 1):
            with pytest.raises(FormatError):
                codec.decode([blob[:cut]])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_blocks_never_give_other_text(data: st.DataObject) -> None:
    """Checksums of the container taken away, the codec itself still refuses to return other text."""
    codec = tiny_codec()
    parts = [t.encode() for t in passages()[:3]] + [b"\xff" * 40]
    (block,) = codec.encode_blocks([parts], preset=data.draw(st.sampled_from([SMALL, FAST])))
    layers = dict(block.layers)
    name = data.draw(st.sampled_from([n for n in (GIST, EXACT, PLAIN) if n in layers]))
    body = bytearray(layers[name])
    at = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        body[at] ^= data.draw(st.integers(1, 255))
    else:
        del body[at:]
    layers[name] = bytes(body)
    with contextlib.suppress(FormatError):
        # Some bits of a zstd frame say nothing about its content.
        assert codec.decode_blocks([Block(block.count, layers)]) == [parts] and name == PLAIN


def test_hostile_counts_are_bounded() -> None:
    codec = tiny_codec()
    for plain in (
        b"",
        b"\0" * 4,
        b"\0" * 4 + b"\xff" * 12,
        b"\0" * 5 + b"\3",
        b"\0" * 5 + b"\1" + b"\xff" * 9,
    ):
        with pytest.raises(FormatError):
            codec.decode_blocks([Block(1, {PLAIN: plain})])
    with pytest.raises(FormatError):
        codec.decode_blocks([Block(1 << 40, {PLAIN: b"\0" * 99})])
    for gist in (b"\xff" * 9 + b"\x01", b"\xff\xff\x7f", b"\x80" * 20):
        with pytest.raises(FormatError):
            codec.read_gist([Block(1, {GIST: gist})])
    with pytest.raises(FormatError):
        codec.read_gist([Block(1 << 40, {GIST: b""})])
    with pytest.raises(FormatError):
        codec.decode_blocks([Block(1, {GIST: b"\x00", EXACT: b"", PLAIN: b"\xff\xff\xff\x7f"})])


@pytest.mark.parametrize("preset", [FAST, BALANCED])
def test_presets_without_a_gist_keep_exact_text_and_search_codes(preset: str) -> None:
    codec = tiny_codec()
    blocks = codec.encode_blocks(text_blocks(), preset=preset)
    assert [set(b.layers) for b in blocks] == [{SEARCH, PLAIN}] * 2
    assert codec.decode_blocks(blocks) == text_blocks()
    mixed = [blocks[0], *codec.encode_blocks(text_blocks()[1:])]
    assert codec.decode_blocks(mixed) == text_blocks()
    small = codec.encode_blocks(text_blocks())
    assert [b.layers[SEARCH] for b in blocks] == [b.layers[SEARCH] for b in small]
    (alone,) = codec.encode_blocks(text_blocks()[:1], (PLAIN,), preset)
    assert dict(alone.layers) == {PLAIN: blocks[0].layers[PLAIN]}
    with pytest.raises(MissingLayerError, match="gist"):
        codec.read_gist(blocks)


def test_more_effort_is_smaller() -> None:
    (text,) = [b" ".join(t.encode() for t in passages()[:60])]
    sizes = [
        len(tiny_codec().encode_blocks([[text]], (PLAIN,), p)[0].layers[PLAIN]) for p in (FAST, BALANCED)
    ]
    assert sizes[1] < sizes[0] < len(text) / 1.8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)), max_size=8))
def test_any_bytes_come_back_with_a_preset_and_hardly_grow(records: list[bytes]) -> None:
    codec = tiny_codec()
    blobs = codec.encode(records, preset=FAST)
    assert all(len(b) <= len(r) + 7 for b, r in zip(blobs, records, strict=True))
    assert codec.decode(blobs) == records
    assert codec.decode_blocks(codec.encode_blocks([records], preset=FAST)) == [records]


@pytest.mark.parametrize(
    ("preset", "layers", "advice"),
    [
        (FAST, (GIST,), "preset small"),
        (BALANCED, LAYERS, "preset small"),
        (SMALL, (SEARCH, PLAIN), "preset fast"),
        (FAST, (GIST, PLAIN), "either"),
        ("fsat", None, "fast, balanced, small"),
    ],
)
def test_layers_that_a_preset_does_not_make(preset: str, layers: tuple[str, ...], advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        tiny_codec().encode_blocks([[b"text"]], layers, preset)


def test_bytes_that_are_no_text_skip_the_networks() -> None:
    codec = tiny_codec()
    noise = random.Random(0).randbytes(3000)
    short, text = b"\xff\xfe", passages()[0].encode()
    (block,) = codec.encode_blocks([[noise, short, text]])
    assert codec.plain_slots(block).tolist() == [0, 1]
    assert codec.search_codes(block)[0].tolist() == [1, 2]  # a short part is never left out of search
    assert codec.decode_blocks([block]) == [[noise, short, text]]
    (vectors,) = codec.encode_blocks([[noise, short, text]], (SEARCH,))
    assert vectors.layers[SEARCH] == block.layers[SEARCH]


def test_a_blob_with_a_dictionary_needs_its_model() -> None:
    codec = tiny_codec()
    text = passages()[0]
    (blob,) = codec.encode([text], preset=BALANCED)
    bare = Codec(dataclasses.replace(codec.model, id="0" * 32, dictionary=None))
    with pytest.raises(ModelMismatchError):
        bare.decode([blob])
    (other,) = bare.encode([text], preset=BALANCED)
    assert len(other) > len(blob)
    assert bare.decode([other]) == codec.decode([other]) == [text.encode()]
    (block,) = codec.encode_blocks([[text.encode()]], preset=FAST)
    with pytest.raises(FormatError, match="dictionary"):
        bare.decode_blocks([block])


def test_default_layers_are_all_three() -> None:
    (block,) = tiny_codec().encode_blocks([[passages()[0].encode()]])
    assert set(block.layers) == set(LAYERS)
