"""The paper's table on a small file made here: both sides trained for three steps, then loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from benchmarks.paper import paper
from colazip.errors import InputError
from tests.tiny_model import passages, tiny_folder, write_corpus


def test_trains_then_loads(tmp_path: Path) -> None:
    data, _ = write_corpus(tmp_path)
    test = tmp_path / "test.parquet"
    pq.write_table(pa.table({"text": passages()[-6:]}), test)

    def run(widths: str) -> Result:
        arguments = [data, "--test", test, "-o", tmp_path / "out", "--model", tiny_folder()]
        arguments += ["--widths", widths, "--steps", 3, "--tokens", 256, "--json", tmp_path / "figures.json"]
        return CliRunner().invoke(paper, list(map(str, arguments)), catch_exceptions=False)

    first = run("32")
    assert first.exit_code == 0
    rows = {row[0]: row[1:] for row in json.loads((tmp_path / "figures.json").read_text())["table"]}
    # Hardly trained: about the 9 bits of 512 tokens each, of two bytes and more.
    assert 1.0 < float(rows["bits a byte"][1]) < 9.0
    assert rows["bits a byte"][0].startswith("<= ")
    assert all(float(cell) > 0 for cell in rows["ms a token, batch 32"][:2])
    assert all(cell.startswith("missing: ") for cell in rows["summaries, ROUGE-L"])
    metrics = (tmp_path / "out" / "cola-32-3x256" / "stage2" / "metrics.jsonl").stat().st_mtime_ns
    second = run("32")
    again = {row[0]: row[1:] for row in json.loads((tmp_path / "figures.json").read_text())["table"]}
    assert second.exit_code == 0 and again["bits a byte"] == rows["bits a byte"]
    assert (tmp_path / "out" / "cola-32-3x256" / "stage2" / "metrics.jsonl").stat().st_mtime_ns == metrics
    with pytest.raises(InputError, match="--widths"):
        run("32,x")
