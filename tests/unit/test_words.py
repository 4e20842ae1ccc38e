"""Words by the hash of their letters, and rows in 4 bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colazip.tokenizer import Tokenizer
from colazip.vectors import RowSums, pack_rows, unpack_nibbles
from colazip.words import WordHash

_TABLE = [
    b"",
    *(bytes([b]) for b in range(256)),
    b" War",
    b"War",
    b"saw",
    b" wa",
    b"rs",
    b"aw",
    "\u201cW".encode(),
]
_TOKEN = {t: i for i, t in enumerate(_TABLE)}


def _hashes(*tokens: bytes) -> list[int]:
    return WordHash(_TABLE).words(np.array([_TOKEN[t] for t in tokens], np.int64))[0].tolist()


def test_a_word_has_one_hash_however_it_is_cut() -> None:
    cuts = ((b" War", b"saw"), (b"War", b"saw"), (b" wa", b"rs", b"aw"), (_TABLE[-1], b"a", b"rs", b"aw"))
    found = [_hashes(*cut) for cut in cuts]
    assert all(len(f) == 1 for f in found) and len({f[0] for f in found}) == 1
    assert _hashes(b"saw", b"War") != found[0]


def test_what_is_one_word() -> None:
    assert _hashes(b"War", b" War") == []  # two words of one token each have no hash
    assert len(_hashes(b" War", b"saw", b".", b" War", b"saw")) == 2
    assert len(_hashes(b"1", b"9", b"9", b"8")) == 1
    assert len(_hashes(b"\xc3", b"\xa9", b"t")) == 1


@given(st.lists(st.integers(0, len(_TABLE) - 1), max_size=60))
def test_words_are_what_a_loop_finds(tokens: list[int]) -> None:
    hashes, first, length = WordHash(_TABLE).words(np.array(tokens, np.int64))
    assert len(hashes) == len(first) == len(length)
    covered = {f + i for f, n in zip(first.tolist(), length.tolist(), strict=True) for i in range(1, n)}
    for i in range(1, len(tokens)):
        left, right = _TABLE[tokens[i - 1]], _TABLE[tokens[i]]
        marks = any(left.endswith(m.encode()) for m in "\u2018\u2019\u201c\u201d")
        joined = bool(left) and bool(right) and _letter(left[-1]) and _letter(right[0]) and not marks
        if right[:2] != b"\xe2\x80":
            assert (i in covered) == joined


def _letter(byte: int) -> bool:
    return byte > 127 or bytes([byte]).isalnum()


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 10))
def test_packed_rows_come_back_within_half_a_step(seed: int, rows: int, half: int) -> None:
    values = np.random.default_rng(seed).standard_normal((rows, 2 * half)).astype(np.float32)
    values[0] = 0.0
    packed, scale = pack_rows(values)
    assert packed.dtype == np.uint8 and packed.shape == (rows, half)
    back = unpack_nibbles(packed) * scale
    assert (np.abs(back - values) <= scale * 0.5001).all()
    again, steps = pack_rows(back.astype(np.float32))
    assert np.allclose(unpack_nibbles(again) * steps, back, rtol=1e-6)


def test_sums_do_not_depend_on_order_nor_on_patches(tiny_tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(1)
    size = tiny_tokenizer.size
    packed, scale = pack_rows(rng.standard_normal((size + 32, 8)).astype(np.float32) * 30)
    rows = RowSums(packed, scale, tiny_tokenizer.table, 32)
    words = [
        np.asarray(w, np.int64) for w in tiny_tokenizer.encode([b" one two", b" three", b" four five six"])
    ]
    forward, backward = np.concatenate(words), np.concatenate(words[::-1])
    total = rows.patches(forward, 4).sum(0)
    assert rows.patches(forward, 4).shape == (-(-len(forward) // 4), 8)
    assert np.array_equal(total, rows.patches(backward, 4).sum(0))
    assert np.array_equal(total, sum(rows.patches(w, 3).sum(0) for w in words))
    assert rows.patches(forward[:0], 4).shape == (0, 8)
    # A word counts in the patch that it begins in.
    apart = [rows.patches(forward[:n], 1) for n in (2, len(forward))]
    assert len(apart[0]) == 2 and len(apart[1]) == len(forward)
