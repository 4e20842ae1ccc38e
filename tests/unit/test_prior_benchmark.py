"""The benchmark of the prior runs on the tiny model, with a stand-in for the judge of meaning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.prior import Sample, measure
from colazip.sampling import Sampling
from tests.tiny_model import passages, tiny_codec


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of letter counts."""
    counts = np.array([[text.lower().count(chr(97 + i)) + 1e-3 for i in range(26)] for text in texts])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_all_tables() -> None:
    records = [text.encode() for text in passages()[:6]]
    sample = Sample(tiny_codec(), records, embed)
    report = measure(sample, [t.encode() for t in passages()[6:30]], Sampling(1, "euler"), tokens=8, draws=2)
    tables = report.tables
    names = [f"gist of detail {d}" for d in range(3)]
    names += [f"every {which} patch missing" for which in ("fourth", "other")]
    assert [row[0] for row in tables["denoise"][1:]] == names
    kept, read, helped = ([float(row[i].rstrip("%")) for row in tables["denoise"][1:]] for i in (1, 2, 3))
    assert all(figures == sorted(figures, reverse=True) for figures in (kept, read, helped))
    assert kept[2] * 0.4 < kept[4] < kept[2] * 0.65
    assert all((row[4] == "-") == row[0].startswith("gist") for row in tables["denoise"][1:])
    assert [row[0] for row in tables["fill"][1:]] == ["10%", "30%", "50%"]
    assert float(tables["strength"][1][2]) >= float(tables["strength"][-1][2])
    assert tables["strength"][1][1] == tables["denoise"][1][2]
    assert tables["continue"][1][0] == "what stands there" and len(tables["continue"]) == 7
    assert tables["score"][1][1] == "6"
    assert len(report.samples) == 6 and report.text().count("| ---") > 5
