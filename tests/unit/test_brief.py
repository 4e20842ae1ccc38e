"""Briefs: which words are kept, that blocks and archives of them read back, that none promises exact text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip import Archive, Record
from colazip.brief import LARGEST, SMALLEST, WORDS, Abridger, choose
from colazip.codec import Codec
from colazip.errors import FormatError, MissingLayerError, UsageError
from colazip.layers import BLOCK_BYTES, EXACT, GIST, LAYERS, PLAIN, SEARCH, Block
from colazip.wire import varint
from tests.tiny_model import passages, tiny_codec, tiny_model

LONG = " ".join(passages()[:12]).encode()
NOISE = bytes(range(256)) * 2
MIXED = [LONG, b"a short record, kept whole", b"", NOISE, LONG[:2000] + b"\xff\xfe" + LONG[2000:4000]]


def abridger(share: float) -> Abridger:
    return Abridger(share, tiny_model().tokenizer, tiny_model().rows)


def brief_of(data: bytes, share: float = 1 / 8) -> bytes:
    (tokens,) = tiny_model().tokenizer.encode([data])
    return abridger(share).abridge(data, tokens)


def brief_codec(share: float = 1 / 8, batch_size: int = 64) -> Codec:
    return Codec(tiny_model(), batch_size=batch_size, brief=share)


def is_spread(words: list[str], text: str) -> bool:
    """Whether the words stand in the text in this order."""
    at = 0
    for word in words:
        at = text.find(word, at) + len(word)
        if at < len(word):
            return False
    return True


def test_words_that_point_where_all_do_are_kept() -> None:
    """Against every pair there is: the greedy choice of two begins with the best single word."""
    rng = np.random.default_rng(0)
    rows = np.rint(rng.normal(size=(9, 6)) * 256)
    rows[4] = rows.sum(0) - rows[4]  # points nearly where all of them do
    words = [f"w{i}" for i in range(9)]
    total = rows.sum(0)

    def cosine(chosen: list[int]) -> float:
        made = rows[chosen].sum(0)
        return float(made @ total / (np.linalg.norm(made) * np.linalg.norm(total)))

    kept = choose(words, rows, WORDS)
    assert kept == sorted(set(kept)) and 4 in kept
    assert cosine(kept) > 0.999 * max(cosine([i]) for i in range(9))
    # No word that was left out would have helped, beyond what is not worth a word.
    assert all(cosine(sorted([*kept, i])) < cosine(kept) + 3.5e-4 for i in set(range(9)) - set(kept))


def test_a_word_said_again_is_kept_once_and_counts_for_all() -> None:
    tide, boat = [256.0, 0.0], [0.0, 256.0]
    assert choose(["tide", "boat"], np.array([tide, boat]), 9) == [0, 1]
    assert choose(["boat", "tide", "tide", "tide"], np.array([boat, tide, tide, tide]), 9) == [1]


def test_a_window_keeps_no_more_than_its_words() -> None:
    rows = np.rint(np.random.default_rng(1).normal(size=(400, 64)) * 256)
    words = [str(i) for i in range(400)]
    assert len(choose(words, rows, 20)) == 20 < len(choose(words, rows, 400))
    assert choose(["a", "b"], np.zeros((2, 4)), 9) == [0]  # nothing to go by: the first


def test_briefs_are_words_of_the_text_in_order() -> None:
    sizes = []
    for share in (1.0, 1 / 4, 1 / 16):
        brief = brief_of(LONG, share)
        words = brief.decode().split()
        assert is_spread(words, LONG.decode())
        sizes.append(len(words))
        assert len(words) <= WORDS * -(-len(LONG.split()) // round(WORDS / share))
    assert sizes[0] > sizes[1] > sizes[2] > 1


def test_short_texts_are_kept_whole() -> None:
    short = b"It's 3.14, isn't it?\n\n  Well-known; (quite so) " + b"word. " * (WORDS - 8)
    assert brief_of(short) == brief_of(short, 1.0) == short
    assert len(brief_of(short, 1 / 16)) < len(short)
    assert [abridger(share).words for share in (1.0, 1 / 8, 1 / 16, 1 / 32)] == [WORDS, WORDS, 50, 25]
    assert len(brief_of(short + b"more words follow here")) < len(short)


def test_scripts_without_spaces_are_cut_by_characters() -> None:
    text = "北京是中华人民共和国的首都。" * 8 + " and a few words " * 4
    brief = brief_of(text.encode()).decode()
    assert 0 < len(brief) < len(text) and not set(brief) - set(text)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*passages()[:6], "\x00", "é", "日本", "🙂", "-'.", "\n"]), max_size=40),
    st.binary(max_size=40),
    st.sampled_from([SMALLEST, 1 / 8, LARGEST]),
)
def test_any_bytes_have_a_brief_no_longer_than_they_are(texts: list[str], tail: bytes, share: float) -> None:
    data = " ".join(texts).encode() + tail
    brief = brief_of(data, share)
    assert len(brief) <= len(data)
    if brief != data:
        brief.decode()  # it is text


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan"), 1 / 100])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="from 1/64 to 1"):
        Codec(tiny_model(), brief=share)


# Blocks


def test_a_block_of_briefs_reads_back() -> None:
    codec = brief_codec()
    (block,) = codec.encode_blocks([MIXED], (SEARCH, GIST))
    assert set(block.layers) == {SEARCH, GIST, PLAIN}
    wanted = [b if b == NOISE else brief_of(b) for b in MIXED]
    for reader in (codec, tiny_codec(), Codec(tiny_model(), implementation="numpy")):
        assert reader.read_gist([block]) == [[w.decode("utf-8", "replace") for w in wanted]]
    assert 3 in codec.plain_slots(block) and 0 not in codec.plain_slots(block)
    # What is searched are the whole texts.
    (whole,) = Codec(tiny_model(), context=True).encode_blocks([MIXED], (SEARCH,))
    assert block.layers[SEARCH] == whole.layers[SEARCH]


def test_briefs_and_other_gists_in_one_call() -> None:
    brief = brief_codec()
    blocks = [c.encode_blocks([[text]], (GIST,))[0] for text in MIXED[:2] for c in (brief, tiny_codec())]
    assert tiny_codec().read_gist(blocks) == [tiny_codec().read_gist([b])[0] for b in blocks]


def test_batches_decide_no_byte_of_a_brief() -> None:
    one, other = (brief_codec(batch_size=size).encode_blocks([MIXED, MIXED[:2]], (GIST,)) for size in (1, 64))
    assert [dict(b.layers) for b in one] == [dict(b.layers) for b in other]


def test_a_brief_is_far_smaller_than_the_gist() -> None:
    brief, gist = (c.encode([LONG], (GIST,))[0] for c in (brief_codec(), tiny_codec()))
    assert len(brief) < 0.5 * len(gist)
    assert tiny_codec().read([brief]) == [brief_of(LONG).decode()]


def test_no_exact_layer_is_promised() -> None:
    codec = brief_codec()
    for layers in (None, LAYERS, (GIST, EXACT)):
        with pytest.raises(UsageError, match="a brief leaves words out"):
            codec.encode_blocks([[LONG]], layers)
    (block,) = codec.encode_blocks([[LONG]], (GIST,))
    for call in (lambda: codec.gists(block), lambda: codec.decode_blocks([block])):
        with pytest.raises(MissingLayerError):
            call()


def test_the_bounds_of_a_block_are_those_of_the_whole_texts() -> None:
    """However short their briefs would be."""
    whole = LONG * (BLOCK_BYTES // len(LONG) + 1)
    for layers in ((GIST,), (SEARCH, GIST)):
        with pytest.raises(UsageError, match="a block holds at most"):
            brief_codec().encode_blocks([[whole]], layers)


def test_damage_is_an_error() -> None:
    (block,) = brief_codec().encode_blocks([MIXED[:2]], (GIST,))
    layer = block.layers[GIST]
    rng = np.random.default_rng(2)
    for at in sorted({0, 1, 2, 3, 4, len(layer) - 1, *rng.integers(0, len(layer), 12).tolist()}):
        bad = layer[:at] + bytes([layer[at] ^ 1 << int(rng.integers(8))]) + layer[at + 1 :]
        for spoilt in (bad, layer[:at]):
            with pytest.raises((FormatError, MissingLayerError)):
                tiny_codec().read_gist([Block(2, {GIST: spoilt})])
    # A brief inside a brief is none that a writer makes.
    nested = varint(tiny_model().config.details) + varint(len(layer)) + layer
    with pytest.raises((FormatError, MissingLayerError)):
        tiny_codec().read_gist([Block(2, {GIST: nested})])


# Archives


def test_an_archive_of_briefs(tmp_path: Path) -> None:
    path = tmp_path / "brief.cola"
    records = [Record(data, f"r{i}") for i, data in enumerate(MIXED)]
    Archive.pack(path, records, codec=brief_codec(), layers=(SEARCH, GIST))
    with Archive(path, tiny_codec()) as archive:
        assert dict(archive.gists())["r0"] == archive.gist("r0") == brief_of(LONG).decode()
        assert archive.verify()["decoded"] == [SEARCH, GIST]
        (hit,) = (hit for hit in archive.search(passages()[0]) if hit.id == "r0")
        assert set(hit.text.split()) <= set(brief_of(LONG).decode().split())
        with pytest.raises(MissingLayerError, match="exact"):
            archive.get("r0")
        for call in (archive.regenerate, archive.fill, lambda id: archive.proceed(id, tokens=9)):
            with pytest.raises(MissingLayerError, match="without brief") as caught:
                call("r0")
            assert "\n" not in str(caught.value)
