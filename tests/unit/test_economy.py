"""What a gist leaves out at a price: units, the choice among them, and gists that are archives' own."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fidelity import align
from colazip import economy
from colazip.archive import Archive, Record
from colazip.codec import Codec
from colazip.economy import economize, split
from colazip.errors import MissingLayerError, UsageError
from colazip.layers import EXACT, GIST, SEARCH
from tests.tiny_model import passages, tiny_codec, tiny_model

TEXTS = [text.encode() for text in passages()[:12]]
FOREIGN = bytes(range(256)) * 2


def thrifty(price: float, **options: object) -> Codec:
    return Codec(tiny_model(), price=price, **options)  # type: ignore[arg-type]


def byte_tokens(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, lengths) of a vocabulary of bytes."""
    return np.frombuffer(text, np.uint8).astype(np.int64), np.ones(256, np.int64)


@given(st.text(max_size=60).filter(bool))
@settings(max_examples=200, deadline=None)
def test_units_are_words_and_whole_characters(text: str) -> None:
    data = text.encode()
    starts = split(data, np.arange(1, len(data) + 1))
    assert starts[0] == 0 and starts[-1] == len(data) and (np.diff(starts) > 0).all()
    for a, b in itertools.pairwise(starts.tolist()):
        piece = data[a:b].decode()  # no character is cut
        assert len(piece) == 1 or economy.WORD.fullmatch(piece)


def test_units_by_tokens_of_several_bytes() -> None:
    codec = tiny_codec()
    text = "The tide, they said, turns — at six; 3.14 times."
    (tokens,) = codec.model.tokenizer.encode([text.encode()])
    starts = split(text.encode(), np.cumsum(codec.model.tokenizer.lengths[tokens]))
    units = [
        codec.model.tokenizer.decode(tokens[a:b].tolist()).decode() for a, b in itertools.pairwise(starts)
    ]
    assert "".join(units) == text
    assert [unit.strip() for unit in units if unit.strip(" ,;.—")] == [
        *("The", "tide", "they", "said", "turns", "at", "six", "3.14", "times")
    ]


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_the_choice_is_the_best_of_all(seed: int, longest: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        units = int(rng.integers(1, longest + 1))
        values = rng.integers(0, 40, (2, units)) / 4.0
        rights, kept = rng.integers(0, 3, units).astype(float), np.zeros(units, bool)
        starts = np.arange(units + 1)
        made.append(
            economy._Text(np.zeros(units), starts, values[0], rights, values[0], rights, values[1], kept)
        )

    def gain(text: economy._Text, kept: tuple[bool, ...]) -> float:
        total = sum(3.0 * r - b for r, b, k in zip(text.rights, text.bits, kept, strict=True) if k)
        ends = [i for i in range(1, len(kept)) if kept[i] and not kept[i - 1]]
        return total - float(text.gaps[ends].sum())

    economy._choose(made, 3.0)
    for text in made:
        best = max(gain(text, kept) for kept in itertools.product((False, True), repeat=len(text.kept)))
        assert gain(text, tuple(text.kept.tolist())) == best


def test_dear_words_go_and_gaps_are_counted() -> None:
    text = b"aa bb cc dd ee ff gg hh"
    tokens, lengths = byte_tokens(text)
    dear = {ord("c"): 9.0, ord("d"): 9.0, ord("g"): 4.0}

    def judge(texts: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        (left,) = texts
        return [(np.array([dear.get(t, 1.0) for t in left.tolist()]), np.ones(len(left), bool))]

    (left,) = economize([text], [tokens], lengths, 3.0, judge)
    # "cc dd" goes in one piece, the space inside with it; "gg" costs 2 bits too many, less than a gap does.
    assert bytes(left.astype(np.uint8)) == b"aa bb  ee ff gg hh"


def test_half_of_a_text_stays() -> None:
    text = b"aa bb cc dd ee ff gg hh"
    tokens, lengths = byte_tokens(text)

    def judge(texts: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.full(len(left), 50.0), np.ones(len(left), bool)) for left in texts]

    (left,) = economize([text], [tokens], lengths, 1.0, judge)
    assert len(left) >= len(tokens) / 2


def test_what_is_no_text_stays() -> None:
    tokens, lengths = byte_tokens(b"\xff\xfe!")

    def judge(texts: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.full(len(left), 50.0), np.zeros(len(left), bool)) for left in texts]

    nothing = np.zeros(0, np.int64)
    left = economize([b"\xff\xfe!", b""], [tokens, nothing], lengths, 1.0, judge)
    assert left[0].tolist() == tokens.tolist() and not len(left[1])


def test_gists_get_smaller_and_are_parts_of_the_text() -> None:
    codec = tiny_codec()
    sizes, shares = [], []
    for price in (None, 30.0, 12.0, 8.0):
        writer = codec if price is None else thrifty(price)
        (block,) = writer.encode_blocks([TEXTS], (GIST,))
        sizes.append(len(block.layers[GIST]))
        found = codec.gists(block)
        kept = total = 0
        for slot, whole in enumerate(codec.model.tokenizer.encode(TEXTS)):
            said = found[slot].tokens
            places = align(said, codec.model.cells.named(whole, 0))  # raises if it is no part of it
            assert (np.diff(places) > 0).all() and len(said) >= len(whole) / 2
            kept, total = kept + len(said), total + len(whole)
        shares.append(kept / total)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.95 * sizes[0]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1 > shares[-1]


def test_nothing_but_the_block_decides() -> None:
    """Not what else is in the call, nor the batch size."""
    blocks = [TEXTS[:5], TEXTS[5:6], [b"", FOREIGN, *TEXTS[6:]]]
    together = thrifty(10.0).encode_blocks(blocks, (SEARCH, GIST))
    assert together == [thrifty(10.0).encode_blocks([b], (SEARCH, GIST))[0] for b in blocks]
    assert together == thrifty(10.0, batch_size=3).encode_blocks(blocks, (SEARCH, GIST))


def test_search_codes_and_plain_parts_are_those_of_the_whole_text() -> None:
    parts = [b"", FOREIGN, *TEXTS]
    (whole,) = tiny_codec().encode_blocks([parts], (SEARCH, GIST))
    (cheap,) = thrifty(8.0).encode_blocks([parts], (SEARCH, GIST))
    assert cheap.layers[SEARCH] == whole.layers[SEARCH]
    assert len(cheap.layers[GIST]) < len(whole.layers[GIST])
    ((empty, foreign, *_),) = tiny_codec().read_gist([cheap])
    assert empty == "" and foreign == FOREIGN.decode("utf-8", "replace")


def test_in_an_archive(tmp_path: Path) -> None:
    records = [Record(text, f"r{n}") for n, text in enumerate(TEXTS)]
    Archive.pack(tmp_path / "a.cola", records, codec=thrifty(8.0), layers=(SEARCH, GIST))
    with Archive(tmp_path / "a.cola", tiny_codec()) as archive:
        archive.verify()
        assert archive.info()["abridged"] == archive.manifest.abridged == "price 8"
        with pytest.raises(UsageError, match="coded given its search codes"):
            archive.strip(["search"], tmp_path / "g.cola")
        archive.strip(["gist"], tmp_path / "s.cola")
        assert len(archive.gist("r3")) < len(TEXTS[3])
        with pytest.raises(MissingLayerError, match="no exact layer"):
            archive.get("r3")
        assert archive.search(TEXTS[3].decode(), 1)[0].text
        assert archive.fill("r3", missing=0.2)
        assert archive.manifest.conditional
    with Archive(tmp_path / "s.cola", tiny_codec()) as archive:
        assert archive.info()["abridged"] is None and not archive.manifest.conditional
    apart = Codec(tiny_model(), price=8.0, conditional=False)
    Archive.pack(tmp_path / "b.cola", records, codec=apart, layers=(SEARCH, GIST))
    with Archive(tmp_path / "b.cola", tiny_codec()) as archive:
        archive.strip(["search"], tmp_path / "g.cola")
    with Archive(tmp_path / "g.cola", tiny_codec()) as archive:
        assert archive.info()["abridged"] == "price 8"


@pytest.mark.parametrize("price", [0.0, 0.99, 101.0, float("nan"), float("inf"), -5.0])
def test_prices_that_are_none(price: float) -> None:
    with pytest.raises(UsageError, match="1 to 100"):
        thrifty(price)


def test_what_does_not_go_together() -> None:
    with pytest.raises(UsageError, match="give one"):
        thrifty(9.0, brief=0.5)
    with pytest.raises(UsageError, match="at a price leaves words out"):
        thrifty(9.0).encode_blocks([TEXTS], (GIST, EXACT))
    (block,) = thrifty(9.0).encode_blocks([TEXTS[:1]], (SEARCH,))  # no gist, nothing to leave out
    assert set(block.layers) == {SEARCH}
