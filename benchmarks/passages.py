"""How long a passage should be: long documents found by a sentence that was cut out of them.

python -m benchmarks.passages FILE.parquet [--model PATH]

Documents are runs of records of one source joined, about 8 kB each, beside as many short records. Queries are
the first sentences of their records, which the documents then lack.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq

from benchmarks.command import note, run_command
from colazip.codec import Codec
from colazip.errors import InputError
from colazip.evaluate.table import markdown
from colazip.layers import BLOCK_PARTS, SEARCH
from colazip.search import brute_force

SIZES = (None, 1024, 768, 640, 512, 384, 256, 128)
DEPTH = 10


def documents(path: Path, limit: int, long: int) -> tuple[list[bytes], list[str], np.ndarray]:
    """(documents, queries, the document of each query): `limit` long ones of at least `long` bytes."""
    table = pq.read_table(path, columns=["source", "text"]).to_pylist()
    table.sort(key=lambda row: row["source"])  # stable: records of a source keep their order
    texts: list[bytes] = []
    queries: list[str] = []
    owners: list[int] = []
    for _, rows in groupby(table, key=lambda row: row["source"]):
        joined, size = [], 0
        for row in rows:
            text = row["text"]
            if len(text) < 800:
                continue
            head, mark, rest = text.partition(". ")
            if mark and 40 <= len(head) <= 300:
                queries.append(head)
                owners.append(len(texts))
                text = rest
            joined.append(text)
            size += len(text)
            if size >= long:
                texts.append("\n\n".join(joined).encode())
                joined, size = [], 0
        while owners and owners[-1] == len(texts):  # of a run too short for a document
            owners.pop(), queries.pop()
    step = max(1, len(texts) // limit)
    kept = {old: new for new, old in enumerate(range(0, len(texts), step))}
    chosen = [(q, kept[o]) for q, o in zip(queries, owners, strict=True) if o in kept]
    short = [row["text"].encode() for row in table if len(row["text"]) < 800]
    found = [texts[i] for i in kept] + short[:: max(1, len(short) // limit)]
    return found, [q for q, _ in chosen], np.array([o for _, o in chosen])


def measure(codec: Codec, texts: list[bytes], queries: np.ndarray, owners: np.ndarray) -> list[float]:
    """[codes a document, MRR@10, recall@1, recall@10]. queries: float32 [Q, D]; owners: int64 [Q]."""
    blocks: list[list[bytes]] = []
    for text in texts:
        if not blocks or sum(map(len, blocks[-1])) + len(text) > 60_000 or len(blocks[-1]) >= BLOCK_PARTS:
            blocks.append([])
        blocks[-1].append(text)
    first, slots, codes = 0, [], []
    for parts, block in zip(blocks, codec.encode_blocks(blocks, (SEARCH,)), strict=True):
        at, found = codec.search_codes(block)
        slots.append(first + at)
        codes.append(found)
        first += len(parts)
    owner, code = np.concatenate(slots), np.concatenate(codes)
    ranks = []
    for query, target in zip(queries, owners, strict=True):
        positions, _ = brute_force(codec.codebook, code, owner, query, DEPTH)
        ranks.append(next((r for r, o in enumerate(owner[positions]) if o == target), None))
    hit = [rank for rank in ranks if rank is not None]
    total = len(ranks)
    return [
        len(code) / len(texts),
        sum(1 / (rank + 1) for rank in hit) / total,
        sum(rank == 0 for rank in hit) / total,
        len(hit) / total,
    ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option("--limit", default=100, show_default=True, help="Long documents, and about as many short ones.")
@click.option("--long", default=8000, show_default=True, help="Bytes of a long document, at least.")
def passages(file: Path, model: Path | None, limit: int, long: int) -> None:
    """Print codes a document, MRR@10 and recall for each passage size."""
    texts, queries, owners = documents(file, limit, long)
    if not queries:
        raise InputError(f"{file}: no source has {long} bytes in records of 800 and more; try --long")
    note(f"{len(texts)} documents, {sum(map(len, texts)) / 1e6:.2f} MB, {len(queries)} queries")
    rows = []
    for size in SIZES:
        codec = Codec.from_pretrained(model, passage_tokens=size, context=True)
        found = measure(codec, texts, codec.vectors(queries), owners)
        rows.append([str(size or "one code a document"), f"{found[0]:.2f}", *(f"{f:.3f}" for f in found[1:])])
        note(f"{rows[-1]}")
    head = ["tokens of a passage", "codes a document", "MRR@10", "recall@1", "recall@10"]
    click.echo(markdown([head, *rows]))


if __name__ == "__main__":
    run_command(passages, "benchmarks.passages")
