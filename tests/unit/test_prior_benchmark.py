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
    holes = "detail 2, every other patch missing"
    names = ["detail 0", "detail 1", "detail 2", holes, f"{holes}; coder for prior"]
    assert [row[0] for row in tables["denoise"][1:]] == names
    read, helped = ([float(row[i].rstrip("%")) for row in tables["denoise"][1:]] for i in (1, 2))
    assert read == sorted(read, reverse=True) and read[3] == read[4]
    assert helped[0] > helped[1] > helped[2] > helped[3] > 0
    assert [row[0] for row in tables["fill"][1:]] == ["10%", "30%", "50%"]
    assert float(tables["strength"][1][2]) >= float(tables["strength"][-1][2])
    assert tables["strength"][1][1] == tables["denoise"][1][1]
    assert tables["continue"][1][0] == "what stands there" and len(tables["continue"]) == 7
    assert tables["score"][1][1] == "6"
    assert len(report.samples) == 6 and report.text().count("| ---") > 5
