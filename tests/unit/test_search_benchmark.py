"""The search benchmark on a set of a few passages, with the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from benchmarks import retrieval, scan
from benchmarks.search import panels, search, tables
from tests.tiny_model import passages, tiny_codec, tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose queries are the first words of its passages."""
    folder = tmp_path_factory.mktemp("retrieval") / "tiny-set"
    folder.mkdir()
    texts = passages()[:40]
    ids = [f"d{n}" for n in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": texts}), folder / "corpus.parquet")
    queries = {"id": ["q0", "q1"], "text": [" ".join(text.split()[:8]) for text in texts[:2]]}
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    qrels = {"query_id": ["q0", "q1"], "doc_id": ["d0", "d1"], "score": [1, 1]}
    pq.write_table(pa.table(qrels), folder / "qrels.parquet")
    return folder


def test_command(folder: Path, tmp_path: Path) -> None:
    pairs, figures, plot = tmp_path / "pairs.parquet", tmp_path / "f.json", tmp_path / "p.svg"
    sentences = {"sentence1": passages()[:6], "sentence2": passages()[1:7], "score": [0.0, 1, 2, 3, 4, 5]}
    pq.write_table(pa.table(sentences), pairs)
    options = ["--only", "colazip", "--similarity", pairs, "--json", figures, "--plot", plot]
    arguments = [folder, "--model", tiny_folder(), *options]
    done = CliRunner().invoke(search, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    result = json.loads(figures.read_text())
    methods = {row["method"]: row for row in result["retrieval"]}
    assert list(methods) == [
        "colazip float32 vectors",
        "colazip float32 vectors, 4 dimensions",
        "colazip float32 vectors, 8 dimensions",
        "colazip semantic",
        "colazip lexical",
        "colazip hybrid",
        "colazip semantic, refined",
        "colazip hybrid, refined",
        "colazip semantic, refined by the gist",
    ]
    assert methods["colazip semantic, refined"]["size"] == methods["colazip semantic"]["size"] + 8
    assert methods["colazip lexical"]["ndcg"] == 1.0  # the words are the passages' own
    assert methods["colazip hybrid"]["size"] > methods["colazip lexical"]["size"] > 0
    (storage,) = result["storage"]
    archive, with_words, with_vectors = storage["stores"].values()
    assert 0 < archive < with_vectors < with_words
    assert len(result["similarity"]) == 2
    assert "colazip hybrid" in done.output and "nDCG@10" in done.output
    ElementTree.fromstring(plot.read_text())


def test_peer_rows(folder: Path, tmp_path: Path) -> None:
    """The peer's side with another embedder: that of MiniLM is not at hand everywhere."""
    data = retrieval.read_set(folder)
    data = retrieval.RetrievalSet("many", data.texts * 7, data.queries, data.relevant)
    codec = tiny_codec()

    def embed(texts: list[str]) -> np.ndarray:
        vectors = np.tile(codec.vectors(texts), 9)[:, :96]
        return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    rows, storage = retrieval.peer_rows(data, embed, tmp_path)
    assert [row.size for row in rows] == [384, 16, 32, 48]
    flat, coded = storage.stores.values()
    assert flat - coded >= len(data.texts) * (384 - 48)


def test_spearman() -> None:
    values = np.array([1.0, 2.0, 2.0, 5.0])
    assert retrieval.spearman(values, values * 3) == pytest.approx(1)
    assert retrieval.spearman(values, -values) == pytest.approx(-1)
    assert retrieval.spearman(np.array([1, 2, 3.0]), np.array([1, 3, 2.0])) == pytest.approx(0.5)


def test_latency_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "SCANNED_CODES", 2_500)
    rows = scan.measure(tiny_codec(), [1_000, 3_000])
    assert [(row.codes, row.used) for row in rows] == [
        (1_000, scan.YES),
        (1_000, scan.REFINED),
        (3_000, scan.NO),
        (3_000, scan.YES),
        (3_000, scan.REFINED),
    ]
    assert all(row.milliseconds > 0 for row in rows) and rows[3].recall > 0.5
    assert rows[4].recall > 0.2  # the tiny model's codes tell little
    assert len(tables([], [], [], [], rows)[0]) == 6
    assert panels([], rows)[0][0] > 0
