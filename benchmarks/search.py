"""Retrieval quality of the search layer on BEIR-style folders: nDCG@10 and recall@10.

python -m benchmarks.search FOLDER... [--model PATH]

A folder holds corpus.parquet (id, text), queries.parquet (id, text) and qrels.parquet (query_id, doc_id,
score). Documents are ranked by the float vectors, and by the codes that an archive stores.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colazip.errors import ColazipError, InputError
from colazip.evaluate.table import markdown

DEPTH = 10


def read(folder: Path, name: str, columns: tuple[str, ...]) -> list[list]:
    """Columns of one file of a folder, as lists."""
    path = folder / f"{name}.parquet"
    try:
        table = pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowInvalid) as e:
        raise InputError(f"{path}: not a Parquet file with {', '.join(columns)}") from e
    return [table.column(c).to_pylist() for c in columns]


def figures(scores: np.ndarray, relevant: list[dict[int, float]]) -> tuple[float, float]:
    """Mean (nDCG@10, recall@10). scores: float [queries, documents]; relevant: gain of documents by index."""
    gains, found = [], []
    for row, wanted in zip(scores, relevant, strict=True):
        best = np.argsort(-row, kind="stable")[:DEPTH]
        discount = 1.0 / np.log2(np.arange(2, DEPTH + 2))
        ideal = np.sort(list(wanted.values()))[::-1][:DEPTH]
        own = np.array([wanted.get(int(d), 0.0) for d in best])
        gains.append((own * discount[: len(own)]).sum() / (ideal * discount[: len(ideal)]).sum())
        found.append(np.count_nonzero(own) / len(wanted))
    return float(np.mean(gains)), float(np.mean(found))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
def search(folders: tuple[Path, ...], model: Path | None) -> None:
    """Print a table of nDCG@10 and recall@10 for each FOLDER."""
    from colazip.codec import Codec
    from colazip.vectors import assign_codes

    try:
        codec = Codec.from_pretrained(model)
        book = codec.codebook
        rows = [("set", "vectors", "bytes a passage", "nDCG@10", "recall@10")]
        for folder in folders:
            ids, texts = read(folder, "corpus", ("id", "text"))
            query_ids, queries = read(folder, "queries", ("id", "text"))
            place = {d: i for i, d in enumerate(ids)}
            relevant: dict[str, dict[int, float]] = {q: {} for q in query_ids}
            for q, d, gain in zip(*read(folder, "qrels", ("query_id", "doc_id", "score")), strict=True):
                relevant[q][place[d]] = float(gain)
            asked, passages = codec.vectors(queries), codec.vectors(texts)
            codes = assign_codes(passages, book)
            stored = np.concatenate([book[m][codes[:, m]] for m in range(len(book))], axis=1)
            stored /= np.maximum(np.linalg.norm(stored, axis=1, keepdims=True), 1e-12)
            for name, size, vectors in (
                ("float32", passages[0].nbytes, passages),
                ("codes", codes.shape[1], stored),
            ):
                ndcg, recall = figures(asked @ vectors.T, [relevant[q] for q in query_ids])
                rows.append((folder.name, name, f"{size:,}", f"{ndcg:.3f}", f"{recall:.3f}"))
    except ColazipError as e:
        raise click.ClickException(str(e)) from e
    click.echo(markdown(rows))


if __name__ == "__main__":
    search()
