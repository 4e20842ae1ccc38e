"""Codec: what goes in comes out, whatever it is and however it is batched."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.classical import RAW, ZSTD, ZSTD_DICTIONARY
from colazip.codec import Codec, Gist
from colazip.encode import LaneEncoder
from colazip.errors import FormatError, MissingLayerError, ModelMismatchError, UsageError, VersionError
from colazip.lanes import lay_out
from colazip.layers import BLOCK_BYTES, EXACT, GIST, LAYERS, PLAIN, SEARCH, Block
from colazip.presets import BALANCED, FAST, SMALL
from colazip.wire import Reader, varint
from tests.tiny_model import passages, tiny_codec, tiny_model

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
    """Blocks of passages, long and short, with awkward records among them, and one where text comes back
    that is stored plain."""
    texts = [t.encode() for t in passages()]
    return [
        [*texts[:6], *AWKWARD, texts[6][:50]],
        [b" ".join(texts[10:20]), texts[20]],
        [texts[21] * 20, texts[21], noise(100), texts[22], texts[21]],
        [noise(3000)],
    ]


def noise(count: int) -> bytes:
    return random.Random(count).randbytes(count)


@contextlib.contextmanager
def arithmetic(threads: int, precision: str) -> Iterator[None]:
    """torch's threads, and what it may do to float32 products."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def layers_of(blocks: Sequence[Block]) -> list[dict[str, bytes]]:
    return [dict(b.layers) for b in blocks]


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


def test_bits_are_what_the_layers_take() -> None:
    codec = tiny_codec()
    texts = [*passages()[:3], " ".join(passages()[:4]), ""]  # one of several segments
    bits = codec.bits(texts)
    for text, count in zip(texts[:4], bits, strict=False):
        (block,) = codec.encode_blocks([[text.encode()]], (GIST, EXACT))
        stored = sum(len(data) for data in block.layers.values())
        assert count / 8 <= stored <= count / 8 + 24  # checksum, tokens, states of the entropy coder
    assert bits[4] == 0.0
    many = codec.bits(texts * 20)  # in any company
    assert np.allclose(many, np.tile(bits, 20), rtol=1e-12)


@pytest.fixture(scope="module")
def coded() -> list[Block]:
    """`text_blocks` coded one by one."""
    return [tiny_codec().encode_blocks([block])[0] for block in text_blocks()]


@pytest.mark.parametrize(
    ("size", "threads", "precision"),
    [
        *((size, threads, "highest") for threads in (1, 2) for size in (1, 7, 64)),
        *((64, 1, precision) for precision in ("high", "medium")),
        (7, 2, "high"),
    ],
)
def test_same_bytes_and_text_whatever_the_arithmetic(
    coded: list[Block], size: int, threads: int, precision: str
) -> None:
    codec = tiny_codec(size)
    with arithmetic(threads, precision):
        assert layers_of(codec.encode_blocks(text_blocks())) == layers_of(coded)
        assert codec.decode_blocks(coded) == text_blocks()


def test_the_groups_and_batches_of_a_gpu_decide_no_byte(coded: list[Block]) -> None:
    """A device by another name than `cpu` is treated as a GPU."""
    codec = Codec(tiny_codec().model, device="cpu:0")
    assert codec.batch_size > tiny_codec().batch_size
    assert codec.encode_blocks(text_blocks()) == coded
    assert codec.decode_blocks(coded) == text_blocks()


def test_a_block_does_not_depend_on_its_neighbours(coded: list[Block]) -> None:
    codec = tiny_codec()
    for order in ([3, 2, 1, 0], [2, 0, 2, 0], [1, 3] * 9):  # more blocks than are in flight at once
        together = codec.encode_blocks([text_blocks()[i] for i in order])
        assert layers_of(together) == layers_of([coded[i] for i in order])
        assert codec.decode_blocks(together) == [text_blocks()[i] for i in order]


# Plain parts in a block of text: the decoder's memory does not see them, so the encoder's may not either


def gist_stream(block: Block) -> bytes:
    """The gist layer without its head and the token counts in front."""
    reader = gist_body(block)
    for _ in range(block.count):
        reader.varint(BLOCK_BYTES + 1)
    return reader.rest()


def gist_body(block: Block) -> Reader:
    """The gist layer from the token counts on, of a gist of most detail coded given codes of 4 bytes."""
    reader = Reader(block.layers[GIST], "gist layer")
    assert [reader.varint(9) for _ in range(3)] == [tiny_model().config.details + 1, 0, 4]
    return reader


def exact_stream(block: Block) -> bytes:
    """The exact layer without its checksum."""
    return block.layers[EXACT][4:]


def test_plain_parts_leave_no_trace_in_the_streams() -> None:
    """Two blocks with the same text, one with plain parts beside it: the same symbols under the same
    frequencies. One plain part says over and over what the text says, so that a memory that saw it would
    guess otherwise."""
    codec = tiny_codec()
    text = [t.encode() for t in passages()[:3]]
    mixed_parts = [text[0] * 30, text[0], noise(200), *text[1:], noise(3)]
    mixed, pure = codec.encode_blocks([mixed_parts, text])
    counts = gist_body(mixed)
    plain = [counts.varint(BLOCK_BYTES + 1) == 0 for _ in mixed_parts]
    assert plain == [True, False, True, False, False, True]
    assert PLAIN not in pure.layers
    assert gist_stream(mixed) == gist_stream(pure)
    assert exact_stream(mixed) == exact_stream(pure)
    assert codec.decode_blocks([mixed, pure]) == [mixed_parts, text]


def test_the_memory_makes_what_comes_back_cheap() -> None:
    """Or it would not be there: a text said twice in a block costs less than twice."""
    codec = tiny_codec()
    text = " ".join(passages()[:4]).encode()
    once, apart, twice = codec.encode_blocks([[text], [b"x", text], [text, b" ".join([b"Once more:", text])]])
    assert len(gist_stream(twice)) < 1.8 * len(gist_stream(once))
    assert abs(len(gist_stream(apart)) - len(gist_stream(once))) < 10


pieces_of_text = st.builds(
    lambda i, lo, hi: passages()[i][lo : lo + hi].encode(),
    st.integers(0, 9),
    st.integers(0, 40),
    st.integers(0, 120),
)
repeated = st.builds(lambda piece, times: piece * times, pieces_of_text, st.integers(2, 40))
cut = st.builds(lambda piece, at: piece[at:] + b"\xe2\x82" + piece[:at], pieces_of_text, st.integers(0, 50))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(pieces_of_text, repeated, cut, st.binary(max_size=60)), max_size=8),
        min_size=1,
        max_size=3,
    )
)
def test_text_that_comes_back_and_noise_in_any_mixture(blocks: list[list[bytes]]) -> None:
    codec = tiny_codec()
    coded = codec.encode_blocks(blocks)
    assert codec.decode_blocks(coded) == blocks
    assert layers_of(codec.encode_blocks(blocks[::-1])) == layers_of(coded[::-1])


# Gists


def detailed(detail: int, batch_size: int = 64) -> Codec:
    return Codec(tiny_codec().model, batch_size=batch_size, detail=detail)


DETAILS = range(3)


@pytest.mark.parametrize("detail", DETAILS)
def test_text_comes_back_from_a_gist_of_any_detail(detail: int) -> None:
    blocks = detailed(detail).encode_blocks(text_blocks())
    assert [b.layers[GIST][1] for b in blocks] == [detail] * len(blocks)
    assert tiny_codec().decode_blocks(blocks) == text_blocks()
    text = " ".join(passages()[-4:])
    assert tiny_codec().decode(detailed(detail).encode([text])) == [text.encode()]


@pytest.mark.parametrize("detail", DETAILS)
def test_batches_and_threads_decide_no_byte_of_any_detail(detail: int) -> None:
    blocks = detailed(detail).encode_blocks(text_blocks()[:3])
    for size, threads in ((1, 1), (7, 2)):
        with arithmetic(threads, "highest"):
            codec = detailed(detail, size)
            assert layers_of(codec.encode_blocks(text_blocks()[:3])) == layers_of(blocks)
            assert codec.decode_blocks(blocks) == text_blocks()[:3]
            assert codec.read_gist(blocks) == tiny_codec().read_gist(blocks)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), pieces_of_text, st.binary(max_size=80)), max_size=5))
def test_gists_of_several_details_in_one_call(drawn: list[tuple[int, bytes, bytes]]) -> None:
    parts = [[text, other] for _, text, other in drawn]
    blocks = [detailed(detail).encode_blocks([p])[0] for (detail, _, _), p in zip(drawn, parts, strict=True)]
    assert tiny_codec().decode_blocks(blocks) == parts
    assert tiny_codec().read_gist(blocks) == [tiny_codec().read_gist([b])[0] for b in blocks]
    blobs = [
        detailed(detail).encode([passages()[i] + text.decode()])[0]
        for i, (detail, text, _) in enumerate(drawn)
    ]
    texts = [passages()[i].encode() + text for i, (_, text, _) in enumerate(drawn)]
    assert tiny_codec().decode(blobs) == texts


def test_more_detail_is_a_larger_gist_and_a_better_reading() -> None:
    texts = [t.encode() for t in passages()[-8:]]
    blocks = [detailed(detail).encode_blocks([texts])[0] for detail in DETAILS]
    assert not any(PLAIN in b.layers for b in blocks)
    gist, exact = ([len(b.layers[name]) for b in blocks] for name in (GIST, EXACT))
    assert gist == sorted(gist, reverse=True) and exact == sorted(exact)
    tokens = np.concatenate(tiny_codec().model.tokenizer.encode(texts))
    right = []
    for block in blocks:
        read = tiny_codec().read_tokens(list(tiny_codec().gists(block).values()))
        right.append(float((np.concatenate(read) == tokens).mean()))
    assert right == sorted(right, reverse=True) and right[0] > 0.6 > right[2] > 1 / 32


@pytest.mark.parametrize("detail", DETAILS)
def test_a_gist_is_what_stands_for_the_tokens(detail: int) -> None:
    """Of every length within a patch, of several segments, and beside plain parts, which have none."""
    codec, cells = detailed(detail), tiny_codec().model.cells
    texts = [passages()[-1].encode()[:length] for length in range(60, 90)]
    texts += [b"", noise(80), " ".join(passages()[-4:]).encode()]
    (block,) = codec.encode_blocks([texts])
    tokens = codec.model.tokenizer.encode(texts)
    assert {len(t) % codec.model.config.patch for t in tokens} == set(range(codec.model.config.patch))
    gists = codec.gists(block)
    plain = set(codec.plain_slots(block).tolist())
    assert set(gists) == set(range(len(texts))) - plain - {30} and 31 in plain and len(gists) > 20
    reading = codec.read_tokens(list(gists.values()))
    texts_read = codec.read_gist([block])[0]
    for (slot, gist), read in zip(gists.items(), reading, strict=True):
        assert gist.detail == detail
        assert np.array_equal(gist.tokens, cells.named(np.asarray(tokens[slot], np.int64), detail))
        is_open = cells.is_open(gist.tokens, detail)
        assert np.array_equal(read[~is_open], tokens[slot][~is_open])  # what is named is right
        assert np.array_equal(cells.named(read, detail), gist.tokens)  # and the rest is what it can be
        assert codec.model.tokenizer.decode(read.tolist()).decode("utf-8", "replace") == texts_read[slot]
    assert {texts_read[slot].encode() for slot in plain if slot != 31} <= set(texts)


def test_gists_read_the_same_in_any_company() -> None:
    gists = [
        gist
        for detail in DETAILS
        for block in detailed(detail).encode_blocks(text_blocks(), (GIST,))
        for gist in tiny_codec().gists(block).values()
    ]
    gists.insert(3, Gist(np.zeros(0, np.int64), 1))
    readings = tiny_codec(7).read_tokens(gists)
    assert [len(r) for r in readings] == [len(g.tokens) for g in gists]
    for gist, reading in list(zip(gists, readings, strict=True))[::4]:
        for name in ("numpy", "torch"):
            alone = Codec(tiny_codec().model, batch_size=1, implementation=name).read_tokens([gist])
            assert np.array_equal(alone[0], reading)
    assert tiny_codec().read_tokens([]) == []


def test_a_lane_codes_the_gist_s_symbols_and_the_open_slots() -> None:
    model = tiny_codec().model
    texts = [passages()[0].encode()[:length] for length in (61, 62, 63, 64, 700)]
    tokens = model.tokenizer.encode(texts)
    segment = model.config.segment * model.config.patch
    lanes = lay_out([[len(t) for t in tokens]], segment, model.config.patch)
    table = np.zeros((len(lanes), int(lanes.count.max())), np.int64)
    for row, (part, start, count) in enumerate(zip(lanes.part, lanes.start, lanes.count, strict=True)):
        table[row, :count] = tokens[part][start : start + count]
    limits = model.tensors["vae.readout.limits"]
    for detail in DETAILS:
        rows = LaneEncoder(model.vae, 2).code(lanes, table, detail, exact=True)
        assert len(rows) == len(lanes) > len(texts)
        for row, count, mine in zip(rows, lanes.count.tolist(), table, strict=True):
            named = model.cells.named(mine[:count], detail)
            has_slot = limits[detail][model.tensors["vae.readout.class_of"][named]] > 0
            moments = [2 * t + s for t in range(count) for s in range(1 + has_slot[t])]
            assert row.moments.tolist() == moments and row.gist.shape == (2, len(moments))
            assert row.exact.shape == (2, model.cells.is_open(named, detail).sum())
            assert min(row.gist[1].min(), row.exact[1].min(initial=1)) >= 1
        gist_alone = LaneEncoder(model.vae, 2).code(lanes, table, detail, exact=False)
        assert all(np.array_equal(a.gist, b.gist) for a, b in zip(rows, gist_alone, strict=True))
        assert all(row.exact.shape == (2, 0) for row in gist_alone)


@pytest.mark.parametrize("detail", [-1, 3, 1 << 40])
def test_a_detail_that_the_model_does_not_write(detail: int) -> None:
    with pytest.raises(UsageError, match="0 to 2"):
        detailed(detail)


# Search


def test_vectors_do_not_depend_on_the_batch() -> None:
    texts = passages()[:9]
    together = tiny_codec(64).vectors(texts)
    alone = np.concatenate([tiny_codec(1).vectors([t]) for t in texts])
    assert (together == alone).all()
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    assert (tiny_codec().vectors([""]) == 0).all()


def test_shorter_vectors() -> None:
    """The first dimensions along the model's axes: nested, of unit length, and ever nearer to the whole."""
    codec, texts = tiny_codec(), passages()[:60]
    whole = codec.vectors(texts)
    width = whole.shape[1]
    assert np.allclose(
        codec.vectors(texts, width) @ codec.vectors(texts, width).T, whole @ whole.T, atol=0.01
    )
    gaps = []
    for n in (1, 4, 8, width):
        short = codec.vectors(texts, n)
        assert short.shape == (60, n) and np.allclose((short**2).sum(1), 1, atol=1e-3)
        prefix = codec.vectors(texts, width)[:, :n]
        assert np.allclose(short, prefix / np.linalg.norm(prefix, axis=1, keepdims=True), atol=1e-4)
        gaps.append(np.abs(short @ short.T - whole @ whole.T).mean())
    assert gaps == sorted(gaps, reverse=True)
    # The axes are ordered: a run of the first says more than one of the last.
    last = whole @ codec.model.axes[-8:].T.astype(np.float32)
    assert (last**2).sum() < (codec.vectors(texts, width)[:, :8] ** 2).sum()
    assert (codec.vectors([""], 3) == 0).all()
    for wrong in (0, -1, width + 1):
        with pytest.raises(UsageError, match=f"1 to {width}"):
            codec.vectors(texts, wrong)


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
    (apart,) = Codec(tiny_model(), conditional=False).encode_blocks([parts])
    (search,) = Codec(tiny_model(), context=True).encode_blocks([parts], (SEARCH,))
    assert set(gist.layers) == {GIST} and gist.layers[GIST] == apart.layers[GIST]
    assert gist.layers[GIST] != full.layers[GIST]
    assert set(search.layers) == {SEARCH} and search.layers[SEARCH] == full.layers[SEARCH]
    reading = codec.read_gist([gist])[0]
    assert len(reading) == 3 and all(isinstance(r, str) and r for r in reading)
    assert reading == codec.read_gist([apart])[0]
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
    stranger.model = dataclasses.replace(codec.model, id="0" * 32)
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
    for gist in (
        b"",
        b"\0",
        b"\3\0",  # a detail that there is none of
        b"\xff" * 9 + b"\x01",
        b"\0" + b"\xff" * 9 + b"\x01",
        b"\0\xff\xff\x7f",
        b"\0" + b"\x80" * 20,
    ):
        with pytest.raises(FormatError):
            codec.read_gist([Block(1, {GIST: gist})])
    with pytest.raises(FormatError):
        codec.read_gist([Block(1 << 40, {GIST: b""})])
    for broken in (
        Block(1, {GIST: b"\0\0", EXACT: b"", PLAIN: b"\xff\xff\xff\x7f"}),
        Block(1, {GIST: b"\0\1", EXACT: b"\0" * 3}),
        Block(1, {GIST: b"\0\1", EXACT: b"\0" * 4, PLAIN: b""}),  # of no part
        Block(
            2, {GIST: b"\0" + varint(BLOCK_BYTES + 1) * 2, EXACT: b"\0" * 4}
        ),  # more tokens than a block's bytes
        Block(1, {GIST: b"\0" + varint(BLOCK_BYTES + 2), EXACT: b"\0" * 4}),
    ):
        with pytest.raises(FormatError):
            codec.decode_blocks([broken])
    many = Block(1, {GIST: b"\0" + varint(BLOCK_BYTES + 2), PLAIN: b""})
    for call in (codec.gists, codec.plain_slots, codec.plain_texts):
        with pytest.raises(FormatError):
            call(many)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2), st.integers(1, 60), st.binary(max_size=60), st.binary(max_size=40))
def test_streams_of_noise_give_a_reading_or_an_error(
    detail: int, count: int, gist: bytes, exact: bytes
) -> None:
    """A stream may say slots that no encoder says: rubbish, never anything but text or a FormatError."""
    block = Block(1, {GIST: bytes([detail, count + 1]) + gist, EXACT: exact})
    readings = []
    for name in ("numpy", "torch"):
        codec = Codec(tiny_codec().model, implementation=name)
        with contextlib.suppress(FormatError):
            readings.append(codec.read_gist([block]))
        with pytest.raises(FormatError):
            codec.decode_blocks([block])
    assert readings in ([], [readings[0]] * 2 if readings else [])


@pytest.mark.parametrize("preset", [FAST, BALANCED])
def test_presets_without_a_gist_keep_exact_text_and_search_codes(preset: str) -> None:
    codec = tiny_codec()
    blocks = codec.encode_blocks(text_blocks(), preset=preset)
    assert [set(b.layers) for b in blocks] == [{SEARCH, PLAIN}] * len(text_blocks())
    assert codec.decode_blocks(blocks) == text_blocks()
    mixed = [blocks[0], *codec.encode_blocks(text_blocks()[1:])]
    assert codec.decode_blocks(mixed) == text_blocks()
    small = Codec(tiny_model(), context=False).encode_blocks(text_blocks())
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
    (vectors,) = Codec(tiny_model(), context=True).encode_blocks([[noise, short, text]], (SEARCH,))
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


def test_what_is_no_record() -> None:
    codec = tiny_codec()
    for calls in (codec.encode, codec.vectors):
        with pytest.raises(UsageError, match="put it into a list"):
            calls("abc")
        with pytest.raises(UsageError, match="text or bytes, not int"):
            calls([3])  # type: ignore[list-item]
    assert codec.decode(codec.encode([bytearray(b"abc"), memoryview(b"def")])) == [b"abc", b"def"]  # type: ignore[list-item]
