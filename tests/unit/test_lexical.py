"""The index of words against BM25 written out, and damage."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from colazip.errors import SearchIndexError
from colazip.lexical import LexicalIndex, LexicalWriter, analyze

TEXTS = [
    "The boat lies in the harbour. The boats are blue.",
    "Bread needs flour, water and time.",
    "Running water runs; a runner ran.",
    "",
    "漢字かな交じり文 and ÉTÉ naïve",
]


def build(folder: Path, texts: list[bytes]) -> LexicalIndex:
    folder.mkdir()
    with LexicalWriter(folder) as writer:
        for part, text in enumerate(texts):
            writer.add(part, text)
    return LexicalIndex(folder, len(texts))


@pytest.fixture
def index(tmp_path: Path) -> LexicalIndex:
    return build(tmp_path / "w", [text.encode() for text in TEXTS])


def test_words() -> None:
    assert analyze("The 3 Running dogs' cafés, snake_case") == [
        "the",
        "3",
        "run",
        "dog",
        "cafe",
        "snake",
        "case",
    ]
    assert analyze("漢字カナ x2y สวัสดี हिन्दी") == [*"漢字カナ", "x2i", *"สวัสดี", "हिन्दी"]
    assert analyze("a" * 100 + " b") == ["b"]
    assert analyze("\x00 ... \ufffd") == []


def test_scores_are_bm25(index: LexicalIndex) -> None:
    documents = [analyze(text) for text in TEXTS]
    mean = sum(map(len, documents)) / len(documents)
    expected = {}
    for part, words in enumerate(documents):
        total = 0.0
        for word in analyze("running water"):
            having = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            count = Counter(words)[word]
            total += idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(words) / mean))
        if total:
            expected[part] = total
    parts, scores = index.search("running water", 10)
    assert dict(zip(parts.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected, rel=1e-3)
    assert parts.tolist() == [2, 1]
    assert index.search("running water", 1)[0].tolist() == [2]


def test_any_script_is_found(index: LexicalIndex) -> None:
    assert index.search("交字", 5)[0].tolist() == [4]
    assert index.search("ete NAIVE", 5)[0].tolist() == [4]


def test_nothing_to_find(index: LexicalIndex, tmp_path: Path) -> None:
    for query in ("", "...", "submarine", "\x00"):
        assert len(index.search(query, 5)[0]) == 0
    assert len(index.search("bread", 0)[0]) == 0
    assert len(index.search("bread " * 5000, 5)[0]) == 1
    empty = build(tmp_path / "e", [])
    assert len(empty) == 0 and len(empty.search("bread", 5)[0]) == 0


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    index = build(
        tmp_path / "w", [bytes(range(128, 256)) + b" word", b"word \xff among many others that are good"]
    )
    assert index.search("word", 5)[0].tolist() == [1]


def test_same_input_same_order(tmp_path: Path) -> None:
    texts = [f"word number{n % 7}".encode() for n in range(300)]
    found = [build(tmp_path / name, texts).search("word", 300)[0] for name in "ab"]
    np.testing.assert_array_equal(*found)
    assert sorted(found[0].tolist()) == list(range(300))


def test_a_failed_build_raises_what_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), LexicalWriter(tmp_path) as writer:
        writer.add(0, b"text")
        raise KeyError


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"\xff" * 1000])
def test_damage_is_an_error(tmp_path: Path, damage: bytes) -> None:
    build(tmp_path / "w", [b"some words"])
    for path in sorted((tmp_path / "w").iterdir()):
        whole = path.read_bytes()
        path.unlink()  # another file, not this one: a thread of tantivy may still have it in memory
        path.write_bytes(damage)
        try:
            LexicalIndex(tmp_path / "w", 1).search("words", 5)
        except SearchIndexError as error:
            assert "rebuild" in str(error)  # not every file matters to this search
        path.unlink()
        path.write_bytes(whole)
    with pytest.raises(SearchIndexError):
        LexicalIndex(tmp_path / "nowhere", 1)


def test_numbers_beyond_the_archive(tmp_path: Path) -> None:
    build(tmp_path / "w", [b"word", b"word"])
    with pytest.raises(SearchIndexError, match="parts that the archive"):
        LexicalIndex(tmp_path / "w", 1).search("word", 5)


def test_read_only_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "w", [b"some words"])
    # A copy: a thread of tantivy may still take and leave the locks of the index that was just written.
    media = shutil.copytree(tmp_path / "w", tmp_path / "media", ignore=shutil.ignore_patterns("*lock"))
    before = sorted(path.name for path in media.iterdir())
    monkeypatch.setattr("colazip.lexical.os.access", lambda path, mode: False)
    index = LexicalIndex(media, 1)
    assert index.search("words", 5)[0].tolist() == [0]
    assert sorted(path.name for path in media.iterdir()) == before
