"""Gists coded given the search codes beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip import Archive, Embedder, Record
from colazip.codec import Codec
from colazip.config import ModelConfig
from colazip.errors import FormatError, MissingLayerError, ModelError, UsageError
from colazip.lanes import lay_out
from colazip.layers import BLOCK_BYTES, EXACT, GIST, SEARCH, Block
from colazip.nn import likeness, portable
from colazip.pretrained import load
from colazip.sampling import Sampling
from colazip.search_layer import dump_codes, load_codes
from colazip.side import Side, beside, code_of_patches, joined
from colazip.train.data import Batch
from colazip.train.side import Teller
from colazip.train.vae import VAESchedule
from colazip.variations import _pieces, write_in
from colazip.vectors import SearchRows, read_codes, unpack_nibbles
from colazip.wire import Reader, varint
from tests.golden.make_model_v3 import MODEL
from tests.tiny_model import passages, tiny_codec, tiny_model

SMALL, LARGE = 4, 8
TEXTS = [text.encode() for text in passages()[:12]]
# One lane and several, one code and several, no text, nothing, and what zstd keeps.
PARTS = [*TEXTS[:3], b" ".join(TEXTS), b"", bytes(range(256)), b"a", TEXTS[3] * 30, b" ".join(TEXTS[:7])]


def codec_of(**options: object) -> Codec:
    """Passages are short, so that a part has several codes."""
    return Codec(tiny_model(), **{"passage_tokens": 64, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("detail", [0, 2])
def test_both_implementations_read_what_any_batch_wrote(size: int, detail: int) -> None:
    blocks = [PARTS, TEXTS[3:6]]
    written = codec_of(code_bytes=size, detail=detail).encode_blocks(blocks)
    for batch in (1, 7):
        again = codec_of(code_bytes=size, detail=detail, batch_size=batch).encode_blocks(blocks)
        assert [b.layers for b in again] == [b.layers for b in written]
    readings = []
    for implementation in ("numpy", "torch"):
        codec = codec_of(implementation=implementation)  # of the model's own size of code
        assert codec.decode_blocks(written) == blocks
        readings.append(codec.read_gist(written))
    assert readings[0] == readings[1]
    (one,) = written[1:]
    assert codec_of().decode_blocks([one]) == [TEXTS[3:6]]


def test_the_codes_are_heeded() -> None:
    """Other bytes than without, and other bytes for other codes; both are read."""
    (given,) = codec_of().encode_blocks([PARTS])
    (apart,) = codec_of(conditional=False).encode_blocks([PARTS])
    assert given.layers[SEARCH] == apart.layers[SEARCH]
    assert given.layers[GIST] != apart.layers[GIST] and given.layers[EXACT] != apart.layers[EXACT]
    assert codec_of().decode_blocks([apart, given]) == [PARTS, PARTS]
    assert codec_of().encode_blocks([PARTS], (GIST,))[0].layers[GIST] == apart.layers[GIST]


def test_training_on_codes_makes_them_worth_their_while() -> None:
    """The tiny model of the tests learned with them: what it stores beside them is smaller for it."""
    parts = [text.encode() for text in passages()]
    sizes = []
    for conditional in (True, False):
        blocks = Codec(tiny_model(), conditional=conditional).encode_blocks(
            [parts[i : i + 60] for i in (0, 60)]
        )
        sizes.append(sum(len(b.layers[GIST]) + len(b.layers[EXACT]) for b in blocks))
    assert sizes[0] < sizes[1]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(TEXTS), st.text(max_size=80)), max_size=6))
def test_anything_comes_back(drawn: list[bytes | str]) -> None:
    parts = [d.encode("utf-8", "surrogatepass") if isinstance(d, str) else d for d in drawn]
    blocks = tiny_codec().encode_blocks([parts, parts[::-1]])
    assert tiny_codec().decode_blocks(blocks) == [parts, parts[::-1]]
    assert tiny_codec().decode(tiny_codec().encode(parts)) == parts


def test_what_leaves_words_out_is_given_the_codes_of_the_whole() -> None:
    for options in ({"brief": 0.5}, {"price": 9.0}):
        (given,) = codec_of(**options).encode_blocks([PARTS], (SEARCH, GIST))
        (apart,) = codec_of(conditional=False, **options).encode_blocks([PARTS], (SEARCH, GIST))
        assert given.layers[SEARCH] == apart.layers[SEARCH]
        assert given.layers[GIST] != apart.layers[GIST]
        (texts,) = codec_of().read_gist([given])
        assert all(texts[i] for i in (0, 1, 2, 3, 7, 8))
        if "brief" in options:
            assert [texts] == codec_of().read_gist([apart])


def test_a_gist_taken_out_reads_as_it_does_in_its_block() -> None:
    codec = codec_of()
    (block,) = codec.encode_blocks([PARTS])
    gists = codec.gists(block)
    assert all(gist.side is not None for gist in gists.values())
    read = dict(zip(gists, codec.read_tokens(list(gists.values())), strict=True))
    (texts,) = codec.read_gist([block])
    for slot, tokens in read.items():
        assert codec.model.tokenizer.decode(tokens.tolist()).decode("utf-8", "replace") == texts[slot]
    cut = [piece for gist in gists.values() for piece in _pieces(codec, gist)]
    assert len(cut) > len(gists)
    joined_up = np.concatenate(codec.read_tokens(cut))
    assert np.array_equal(joined_up, np.concatenate(list(read.values())))


def test_one_layer_without_the_other() -> None:
    codec = codec_of()
    (block,) = codec.encode_blocks([TEXTS[:4]])
    torn = Block(block.count, {k: v for k, v in block.layers.items() if k != SEARCH})
    for read in (codec.decode_blocks, codec.read_gist, lambda blocks: codec.gists(blocks[0])):
        with pytest.raises(MissingLayerError, match="given the search codes"):
            read([torn])
    with pytest.raises(MissingLayerError, match="search"):
        codec.search_codes(torn)


def test_other_codes_than_it_was_given() -> None:
    """Nothing but an error can come of it."""
    codec = codec_of()
    (block,) = codec.encode_blocks([TEXTS[:4]])
    slots, codes = load_codes(block.layers[SEARCH], 4, SMALL)
    many = np.where(np.arange(len(slots)) < len(slots) - 1, 1, BLOCK_BYTES)

    def with_search(layer: bytes) -> Block:
        return Block(4, {**block.layers, SEARCH: layer})

    for layer in (
        dump_codes(4, slots, codes[::-1]),
        dump_codes(4, slots[:-1], codes[:-1]),
        dump_codes(4, slots[:0], codes[:0]),
        dump_codes(4, np.repeat(slots, many), np.repeat(codes, many, axis=0)),
        block.layers[SEARCH][:-1],
        block.layers[SEARCH] + b"\0",
        b"",
    ):
        with pytest.raises(FormatError):
            codec.decode_blocks([with_search(layer)])


@pytest.mark.parametrize(
    "head", [(4, 3, SMALL), (4, 0, 5), (4, 0, LARGE), (5, 0, SMALL), (4, 0, 1 << 40), (4, 0)]
)
def test_heads_that_lie(head: tuple[int, ...]) -> None:
    codec = codec_of()
    (block,) = codec.encode_blocks([TEXTS[:4]])
    reader = Reader(block.layers[GIST], "gist layer")
    assert [reader.varint(9) for _ in range(3)] == [4, 0, SMALL]
    forged = b"".join(map(varint, head)) + reader.rest()
    with pytest.raises((FormatError, MissingLayerError)):
        codec.decode_blocks([Block(4, {**block.layers, GIST: forged})])


def test_a_model_without_knows_no_such_gist() -> None:
    model = load(MODEL)  # of the time before
    codec = Codec(model)
    assert model.config.conditional is None and not codec.conditional
    (block,) = codec.encode_blocks([TEXTS[:2]])
    assert block.layers[GIST][0] == 0
    forged = Block(2, {**block.layers, GIST: varint(4) + varint(0) + varint(SMALL) + block.layers[GIST][1:]})
    with pytest.raises(FormatError):
        codec.decode_blocks([forged])
    with pytest.raises(ModelError, match="conditional"):
        ModelConfig.from_json('{"name": "x", "conditional": false}')


def test_archives(tmp_path: Path) -> None:
    records = [Record(text, f"r{n}") for n, text in enumerate([*TEXTS, b"", bytes(range(256))])]
    Archive.pack(tmp_path / "a.cola", records, codec=tiny_codec())
    Archive.pack(tmp_path / "g.cola", records, codec=tiny_codec(), layers=("gist", "exact"))
    with Archive(tmp_path / "a.cola", tiny_codec()) as archive:
        assert archive.manifest.conditional
        archive.verify()
        assert archive.get("r3") == TEXTS[3] and list(archive) == records
        assert dict(archive.gists())["r4"] == archive.gist("r4")
        with pytest.raises(UsageError, match="coded given its search codes"):
            archive.strip(["search"], tmp_path / "b.cola")
        assert not (tmp_path / "b.cola").exists()
        archive.strip(["exact"], tmp_path / "b.cola")
        archive.strip(["gist", "exact"], tmp_path / "s.cola")
        readings = dict(archive.gists())
    with Archive(tmp_path / "b.cola", tiny_codec()) as archive:
        assert archive.manifest.conditional and dict(archive.gists()) == readings
    for name in ("s", "g"):
        with Archive(tmp_path / f"{name}.cola", tiny_codec()) as archive:
            assert not archive.manifest.conditional


def test_an_embedders_codes_say_nothing_to_the_model(tmp_path: Path) -> None:
    def vectors(texts: list[str]) -> np.ndarray:
        return np.array([[len(t), t.count("e"), t.count("a"), 1.0] for t in texts], np.float32)

    records = [Record(text, f"r{n}") for n, text in enumerate(TEXTS)]
    embedder = Embedder(vectors, "counts")
    Archive.pack(tmp_path / "a.cola", records, codec=tiny_codec(), embedder=embedder)
    with Archive(tmp_path / "a.cola", tiny_codec(), embedder=embedder) as archive:
        assert not archive.manifest.conditional
        assert archive.get("r5") == TEXTS[5]
        archive.strip(["search"], tmp_path / "b.cola")


def test_shares_of_a_part() -> None:
    assert code_of_patches(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert code_of_patches(2, 2).tolist() == [0, 1] and code_of_patches(0, 1).tolist() == []


def test_sides_of_several_parts() -> None:
    one = Side(np.eye(2, 3, dtype=np.float32), np.array([[0, 1, 1]]))
    other = Side(np.full((1, 3), 7, np.float32), np.array([[0]]))
    both = joined([one, other])
    assert both.of[0].tolist() == [0, 1, 1] and both.of[1, 0] == 2
    few = both.lanes(1, 2, 1)
    assert few.vectors.tolist() == [[7, 7, 7]] and few.of.tolist() == [[0]]


def test_training_is_given_the_codes_that_are_written() -> None:
    """Those by rows alone, of segments that are whole texts of one lane."""
    model = tiny_model()
    packed, scale = model.tensors["search.tokens.q"], model.tensors["search.tokens.scale"]
    rows = unpack_nibbles(packed).astype(np.float32) * scale
    teller = Teller.of_search(model.config, SearchRows(rows, model.codebooks), model.tokenizer)
    codec = Codec(model, context=False)
    parts = [text[:200] for text in TEXTS[:5]]
    (block,) = codec.encode_blocks([parts], (SEARCH,))
    slots, codes = codec.search_codes(block)
    tokens = model.tokenizer.encode(parts)
    width = -(-max(map(len, tokens)) // model.config.patch) * model.config.patch
    table = np.stack([np.pad(t, (0, width - len(t))) for t in tokens])
    batch = Batch(table, np.array(list(map(len, tokens))), np.zeros((2, *table.shape), np.int64))
    about = teller.about(batch, model.config.code_bytes, torch.device("cpu"))
    assert np.array_equal(about.vectors.numpy(), read_codes(codes, codec.codebook))
    assert np.array_equal(teller.rows().numpy(), model.token_rows)
    assert about.of[:, 0].tolist() == [int(np.flatnonzero(slots == p)[0]) for p in range(5)]


def test_which_batches_are_told() -> None:
    schedule = VAESchedule(10, untold=0.25, told=(0.5, 0.5))
    drawn = [schedule.code_bytes(i, (SMALL, LARGE)) for i in range(400)]
    assert drawn == [schedule.code_bytes(i, (SMALL, LARGE)) for i in range(400)]
    assert 60 < drawn.count(None) < 140 and 110 < drawn.count(LARGE) < 190
    assert {VAESchedule(10, untold=0.0).code_bytes(i, (SMALL,)) for i in range(20)} == {SMALL}


def test_parts_without_a_code() -> None:
    lanes = lay_out([[5, 9]], 8, 2)
    nothing = np.zeros(1, np.int64), np.zeros((1, 3), np.float32)
    with pytest.raises(ValueError, match="part 1"):
        beside(lanes, [nothing], 2)


@pytest.mark.parametrize("most", [0, 2])
def test_likenesses_looked_up_and_computed_are_the_same(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short texts at once have more codes than are worth a table each."""
    blocks = [PARTS, TEXTS[3:6]]
    written = codec_of().encode_blocks(blocks)
    for module in (likeness, portable):
        monkeypatch.setattr(module, "LOOKED_UP", most)
    assert [b.layers for b in codec_of().encode_blocks(blocks)] == [b.layers for b in written]
    for implementation in ("numpy", "torch"):
        assert codec_of(implementation=implementation).decode_blocks(written) == blocks


def test_holes_are_filled_by_what_the_codes_say() -> None:
    codec = codec_of()
    (block,) = codec.encode_blocks([PARTS])
    pieces = [piece for gist in codec.gists(block).values() for piece in _pieces(codec, gist)][:4]
    tokens, sides = [p.tokens for p in pieces], [p.side for p in pieces]
    holes = [np.arange(len(t)) // 4 % 3 == 1 for t in tokens]
    told = write_in(codec, tokens, holes, Sampling(seed=3), sides)
    untold = write_in(codec, tokens, holes, Sampling(seed=3))
    for piece, hole, a, b in zip(tokens, holes, told, untold, strict=True):
        known = ~hole
        assert np.array_equal(a[known], piece[known]) and np.array_equal(b[known], piece[known])
    assert not np.array_equal(np.concatenate(told), np.concatenate(untold))
    again = write_in(codec, tokens, holes, Sampling(seed=3), sides)
    assert np.array_equal(np.concatenate(told), np.concatenate(again))
