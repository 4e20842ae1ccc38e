"""Spearman's correlation and the command that reports it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from benchmarks.similarity import ranks, similarity, spearman
from tests.tiny_model import passages, tiny_folder


def test_equal_values_share_their_rank() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert np.isclose(spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 8.0, 27.0])), 1.0)
    assert np.isclose(spearman(np.array([1.0, 2.0, 3.0]), np.array([5.0, 4.0, 1.0])), -1.0)


def test_command(tmp_path: Path) -> None:
    texts = passages()[:6]
    pairs = {
        "sentence1": texts,
        "sentence2": texts[:3] + texts[:2:-1],
        "score": [5.0, 4.5, 4.0, 1.0, 2.0, 0.0],
    }
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    model = str(tiny_folder())
    done = CliRunner().invoke(similarity, [str(tmp_path / "pairs.parquet"), "--model", model])
    assert done.exit_code == 0, done.output
    assert "pairs" in done.output and "codes" in done.output
    failed = CliRunner().invoke(similarity, [str(tmp_path / "none.parquet"), "--model", model])
    assert failed.exit_code == 1 and "none.parquet" in failed.output
