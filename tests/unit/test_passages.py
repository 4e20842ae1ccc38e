"""Long texts in passages: where they lie, how their codes are stored, and what a search says of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip import Archive, Record
from colazip.codec import Codec
from colazip.errors import FormatError, UsageError
from colazip.layers import BLOCK_BYTES, LAYERS, SEARCH
from colazip.passages import OVERLAP, count_passages, windows
from colazip.presets import FAST
from colazip.search_layer import dump_codes, load_codes
from colazip.vectors import assign_codes
from tests.plain_codec import PlainCodec
from tests.tiny_model import passages, tiny_codec, tiny_model

SHORT = b"a short record"
LONG = (" ".join(passages()[:30]) + "\n").encode()


@given(st.integers(0, 16384), st.integers(64, 2048), st.sampled_from([1, 2, 4, 8]))
def test_windows_cover_the_text_evenly(patches: int, tokens: int, patch: int) -> None:
    count = count_passages(patches, patch, tokens)
    found = windows(patches, patch, count)
    assert len(found) == count and (count == 0) == (patches == 0)
    if not count:
        return
    assert found[0][0] == 0 and found[-1][1] == patches
    shared = min(OVERLAP // patch, patches - 1)
    lengths = [end - start for start, end in found]
    assert max(lengths) - min(lengths) <= 1
    assert all(before[1] - after[0] == shared for before, after in pairwise(found))
    step = tokens // patch - OVERLAP // patch
    if count > 1:  # none is a short tail, none much longer than asked for
        assert 0.6 * step <= lengths[0] - shared <= 1.5 * step + 1


@given(st.integers(0, 200), st.integers(0, 60), st.sampled_from([1, 32]), st.integers(0, 2**32))
def test_codes_come_back(count: int, codes: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    slots = np.sort(rng.integers(0, count, codes if count else 0))
    rows = rng.integers(0, 256, (len(slots), width), dtype=np.uint8)
    layer = dump_codes(count, slots, rows)
    again, found = load_codes(layer, count, width)
    assert np.array_equal(again, slots) and np.array_equal(found, rows)
    if len(np.unique(slots)) == len(slots):  # as it was before there were passages: a bit, and the code
        assert len(layer) == -(-count // 8) + rows.size


@given(st.binary(max_size=60), st.integers(0, 40), st.sampled_from([1, 4, 32]))
@settings(max_examples=300)
def test_any_bytes_are_codes_or_damage(layer: bytes, count: int, width: int) -> None:
    try:
        slots, codes = load_codes(layer, count, width)
    except FormatError as error:
        assert "search layer" in str(error) and "\n" not in str(error)
        return
    assert codes.shape == (len(slots), width) and (np.diff(slots) >= 0).all()
    assert not len(slots) or 0 <= slots[0] <= slots[-1] < count


def test_a_code_stands_for_its_passage() -> None:
    """A long part has the codes of its passages, a short one what it always had, whatever is packed."""
    codec, whole = (Codec(tiny_model(), passage_tokens=tokens, context=True) for tokens in (512, None))
    parts = [SHORT, LONG, b"", bytes(range(256)), passages()[40].encode()]
    (block,) = codec.encode_blocks([parts])
    spans = codec.passages(parts)
    slots, codes = codec.search_codes(block)
    assert slots.tolist() == [slot for slot, found in enumerate(spans) for _ in found]
    assert len(spans[1]) > 10 and spans[2:4] == [[], []]
    assert codec.passages(parts, [len(found) for found in spans]) == spans
    old_slots, old_codes = whole.search_codes(whole.encode_blocks([parts])[0])
    assert old_slots.tolist() == [0, 1, 4]
    assert np.array_equal(codes[[0, -1]], old_codes[[0, 2]])
    for wanted, preset in (((SEARCH,), "small"), (None, FAST)):
        assert codec.encode_blocks([parts], wanted, preset)[0].layers[SEARCH] == block.layers[SEARCH]
    # The vector of a passage is near that of its text by itself: only what the encoder saw around it differs.
    alone = codec.vectors([LONG[start:end] for start, end in spans[1]])
    decoded = codec.codebook[np.arange(codes.shape[1]), codes[slots == 1]].reshape(len(alone), -1)
    best = (alone @ decoded.T).argmax(1)
    assert (best == np.arange(len(alone))).mean() > 0.6
    assert assign_codes(alone, codec.codebook).shape == codes[slots == 1].shape


def test_ranges_cut_no_character() -> None:
    text = ("日本語のテキスト、" * 400).encode()
    (found,) = tiny_codec().passages([text], [40])
    assert len(found) == 40 and found[0][0] == 0 and found[-1][1] == len(text)
    for start, end in found:
        text[start:end].decode()


def test_too_small_a_passage() -> None:
    with pytest.raises(UsageError, match="at least 64"):
        Codec(tiny_model(), passage_tokens=10)


def marked(count: int, at: int) -> bytes:
    """A text of filler sentences, number `at` of which tells of a lighthouse."""
    sentences = [f"Filler sentence number {i} is about nothing." for i in range(count)]
    sentences[at] = "The lighthouse keeper trims the wick." * 8
    return " ".join(sentences).encode()


def test_hits_name_their_passage(tmp_path: Path) -> None:
    codec = PlainCodec(passage_bytes=400)
    text = marked(4000, 3500)
    assert len(text) > 2 * BLOCK_BYTES
    records = [
        Record(SHORT, "short"),
        Record(b"x" * 60_000, "x"),
        Record(text, "long"),
        Record(SHORT, "last"),
    ]
    Archive.pack(tmp_path / "a.cola", records, codec=codec)
    with Archive(tmp_path / "a.cola", codec) as archive:
        hit = archive.search("The lighthouse keeper trims the wick.", 3)[0]
        assert hit.id == "long" and hit.span is not None
        assert text[slice(*hit.span)].decode() == hit.text and "lighthouse" in hit.text
        assert not hit.snippet.startswith(hit.text[:20]) and hit.snippet in hit.text
        grouped = archive.search("filler sentence about nothing", 50)
        assert len({h.id for h in grouped}) == len(grouped) == 4
        each = archive.search("filler sentence about nothing", 50, group=False)
        assert len(each) == 50 and len({h.span for h in each}) == 50
        assert each[0] == grouped[0] and [h.score for h in each] == sorted(
            (h.score for h in each), reverse=True
        )
        assert archive.search("short record", 1)[0].span == (0, len(SHORT))
        archive.strip(["exact"], tmp_path / "g.cola")
        archive.strip(["gist", "exact"], tmp_path / "s.cola")
    for name in ("g.cola", "s.cola"):
        with Archive(tmp_path / name, codec) as archive:
            hit = archive.search("The lighthouse keeper trims the wick.", 1)[0]
            assert hit.id == "long" and hit.span is None


def test_with_a_model(tmp_path: Path) -> None:
    records = [Record(LONG, "long"), *(Record(text.encode()) for text in passages()[40:50])]
    for layers in (LAYERS, (SEARCH, "gist")):
        Archive.pack(tmp_path / "a.cola", records, codec=tiny_codec(), layers=layers, overwrite=True)
        with Archive(tmp_path / "a.cola", tiny_codec()) as archive:
            hits = archive.search(passages()[20], 5, group=False)
            assert hits[0].id == "long" and 0 < len(hits[0].text) < 2000
            if archive.holds_text:
                spans = [hit.span for hit in hits if hit.id == "long"]
                assert all(LONG[slice(*span)].decode() in LONG.decode() for span in spans if span)
                at = LONG.find(passages()[20].encode())
                assert any(span and span[0] < at + 200 and span[1] > at for span in spans)
