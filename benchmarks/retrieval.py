"""Retrieval sets, the figures of a ranking, and both sides of the search benchmark on one set."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colazip.archive import Archive, Record
from colazip.codec import Codec
from colazip.errors import InputError
from colazip.vectors import assign_codes, shorten

DEPTH = 10
PEER_CODE_BYTES = (16, 32, 48)
ARCHIVE = "colazip archive"
PARQUET_LEVEL = 19  # of zstd: the peer's text store at its smallest

Ranking = list[list[int]]  # for each query, documents by index, best first
Vectors = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class RetrievalSet:
    """relevant: for each query, the gain of documents by index."""

    name: str
    texts: list[str]
    queries: list[str]
    relevant: list[dict[int, float]]


@dataclass(frozen=True)
class Row:
    """One way to search one set. size: bytes a passage; milliseconds: a query, NaN where not timed."""

    set: str
    method: str
    size: float
    ndcg: float
    recall: float
    milliseconds: float


@dataclass(frozen=True)
class Storage:
    """Bytes of everything that is kept for one set, by what keeps it. raw_bytes: of the texts."""

    set: str
    raw_bytes: int
    stores: dict[str, int]


def read(folder: Path, name: str, columns: tuple[str, ...]) -> list[list]:
    """Columns of one file of a folder, as lists. Raises InputError."""
    path = folder / f"{name}.parquet"
    try:
        table = pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowInvalid) as e:
        raise InputError(f"{path}: not a Parquet file with {', '.join(columns)}") from e
    return [table.column(c).to_pylist() for c in columns]


def read_set(folder: Path) -> RetrievalSet:
    """A BEIR-style folder: corpus (id, text), queries (id, text), qrels (query_id, doc_id, score)."""
    ids, texts = read(folder, "corpus", ("id", "text"))
    query_ids, queries = read(folder, "queries", ("id", "text"))
    place = {d: i for i, d in enumerate(ids)}
    relevant: dict[str, dict[int, float]] = {q: {} for q in query_ids}
    for q, d, gain in zip(*read(folder, "qrels", ("query_id", "doc_id", "score")), strict=True):
        relevant[q][place[d]] = float(gain)
    return RetrievalSet(folder.name, texts, queries, [relevant[q] for q in query_ids])


def figures(ranking: Ranking, relevant: Sequence[dict[int, float]]) -> tuple[float, float]:
    """Mean (nDCG@10, recall@10)."""
    gains, found = [], []
    for best, wanted in zip(ranking, relevant, strict=True):
        discount = 1.0 / np.log2(np.arange(2, DEPTH + 2))
        ideal = np.sort(list(wanted.values()))[::-1][:DEPTH]
        own = np.array([wanted.get(d, 0.0) for d in best[:DEPTH]])
        gains.append((own * discount[: len(own)]).sum() / (ideal * discount[: len(ideal)]).sum())
        found.append(np.count_nonzero(own) / len(wanted))
    return float(np.mean(gains)), float(np.mean(found))


def rank(queries: np.ndarray, passages: np.ndarray) -> Ranking:
    """The DEPTH nearest passages of each query, by inner product. float32 [Q, D], [N, D]."""
    best = np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :DEPTH]
    return [list(map(int, row)) for row in best]


def colazip_rows(data: RetrievalSet, codec: Codec, folder: Path) -> tuple[list[Row], Storage]:
    """Search in a real archive with all layers, through the library, in every mode, refined and not; and what
    it takes."""
    path, gist = folder / f"{data.name}.cola", folder / f"{data.name}-gist.cola"
    Archive.pack(path, [Record(text.encode()) for text in data.texts], codec=codec)
    asked, passages = codec.vectors(data.queries), codec.vectors(data.texts)
    rows = [_row(data, "colazip float32 vectors", passages[0].nbytes, rank(asked, passages))]
    if (axes := codec.model.axes) is not None:
        for width in (passages.shape[1] // 4, passages.shape[1] // 2):
            short = shorten(passages, axes[:width])
            ranking = rank(shorten(asked, axes[:width]), short)
            rows.append(_row(data, f"colazip float32 vectors, {width} dimensions", short[0].nbytes, ranking))
    with Archive(path, codec) as archive:
        facts: dict[str, Any] = archive.info()
        codes = facts["bytes"]["search"]
        index = archive.build_index()
        rows.append(_searched(data, archive, "semantic", codes))
        rows.append(_searched(data, archive, "lexical", index["words"]))
        rows.append(_searched(data, archive, "hybrid", codes + index["words"]))
        finer = archive.build_index(overwrite=True, refine=True)["refine"]
        rows.append(_searched(data, archive, "semantic", codes + finer, ", refined"))
        rows.append(_searched(data, archive, "hybrid", codes + index["words"] + finer, ", refined"))
        archive.strip(["exact"], gist)
    with Archive(gist, codec) as archive:
        archive.build_index(refine=True)
        rows.append(_searched(data, archive, "semantic", codes + finer, ", refined by the gist"))
    stores = {
        ARCHIVE: facts["file_bytes"],
        f"{ARCHIVE} + index of words": facts["file_bytes"] + sum(index.values()),
        f"{ARCHIVE} + finer vectors": facts["file_bytes"] + finer,
    }
    return rows, Storage(data.name, sum(len(text.encode()) for text in data.texts), stores)


def _searched(data: RetrievalSet, archive: Archive, mode: str, size: int, note: str = "") -> Row:
    """Every query, timed one after another. size: bytes of what the search reads, of all passages."""
    archive.search(data.queries[0], DEPTH, mode, snippets=False)  # reads the index
    start = time.perf_counter()
    ranking = [
        [int(hit.id) for hit in archive.search(query, DEPTH, mode, snippets=False)] for query in data.queries
    ]
    milliseconds = 1000 * (time.perf_counter() - start) / len(data.queries)
    return _row(data, f"colazip {mode}{note}", size / len(data.texts), ranking, milliseconds)


def peer_rows(data: RetrievalSet, embed: Vectors, folder: Path) -> tuple[list[Row], Storage]:
    """A float embedder, and its vectors in a product quantizer that is trained on the passages themselves.

    The codes are counted without their codebook, which favours the peer.
    """
    import faiss

    asked, passages = embed(data.queries), embed(data.texts)
    rows = [_row(data, "MiniLM float32", passages[0].nbytes, rank(asked, passages))]
    for size in PEER_CODE_BYTES:
        quantizer = faiss.ProductQuantizer(passages.shape[1], size, 8)
        quantizer.train(passages)
        decoded = quantizer.decode(quantizer.compute_codes(passages))
        rows.append(_row(data, f"MiniLM PQ{size}", size, rank(asked, _unit(decoded))))
    flat, text = folder / "flat.faiss", folder / "text.parquet"
    index = faiss.IndexFlatIP(passages.shape[1])
    index.add(passages)
    faiss.write_index(index, str(flat))
    table = pa.table({"id": [str(n) for n in range(len(data.texts))], "text": data.texts})
    pq.write_table(table, text, compression="zstd", compression_level=PARQUET_LEVEL)
    kept = text.stat().st_size
    stores = {
        "Parquet zstd + Faiss flat MiniLM": kept + flat.stat().st_size,
        "Parquet zstd + MiniLM PQ48": kept + 48 * len(data.texts),
    }
    return rows, Storage(data.name, sum(len(text.encode()) for text in data.texts), stores)


def stored_vectors(codec: Codec, vectors: np.ndarray) -> np.ndarray:
    """What an archive keeps of these vectors, at unit length."""
    book, codes = codec.codebook, assign_codes(vectors, codec.codebook)
    return _unit(np.concatenate([book[m][codes[:, m]] for m in range(len(book))], axis=1))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def similarity_rows(path: Path, sides: dict[str, Vectors]) -> list[tuple[str, float]]:
    """(name, Spearman) over pairs of sentences: cosine against people's scores. sides: by name."""
    first, second, wanted = read(path.parent, path.stem, ("sentence1", "sentence2", "score"))
    rows = []
    for name, embed in sides.items():
        cosine = np.einsum("nd,nd->n", embed(first), embed(second))
        rows.append((name, spearman(cosine, np.array(wanted, dtype=np.float64))))
    return rows


def _row(data: RetrievalSet, method: str, size: float, ranking: Ranking, ms: float = float("nan")) -> Row:
    return Row(data.name, method, size, *figures(ranking, data.relevant), ms)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[place]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
