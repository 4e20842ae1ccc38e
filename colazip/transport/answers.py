"""What answers look like that are no records: bytes of a file, and hits of a search as one batch and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from colazip.archive.record import Hit
from colazip.errors import InputError
from colazip.tables.common import json_text

FILE_BYTES = pa.schema([pa.field("data", pa.binary(), nullable=False)])
# start, stop: of the passage in the bytes of its record. metadata: a JSON object.
HITS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("cosine", pa.float64()),
        pa.field("bm25", pa.float64()),
        pa.field("snippet", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("start", pa.int64()),
        pa.field("stop", pa.int64()),
        pa.field("metadata", pa.string(), nullable=False),
    ]
)
_SCORES = ("cosine", "bm25")


def to_batch(hits: Sequence[Hit]) -> pa.RecordBatch:
    """A row a hit, in their order, of the schema HITS."""
    return pa.RecordBatch.from_pylist([_row(hit) for hit in hits], schema=HITS)


def _row(hit: Hit) -> dict[str, Any]:
    start, stop = (None, None) if hit.span is None else hit.span
    return {
        "id": hit.id,
        "score": hit.score,
        **{name: hit.scores.get(name) for name in _SCORES},
        "snippet": _whole(hit.snippet),
        "text": _whole(hit.text),
        "start": start,
        "stop": stop,
        "metadata": json_text(hit.metadata).decode(),
    }


def from_batch(batch: pa.RecordBatch) -> list[Hit]:
    """The hits of a valid batch of the schema HITS. Metadata are what JSON has: dates, decimals and bytes are
    texts. Raises InputError where the metadata are no JSON object, or nothing stands where something must."""
    return [_hit(row) for row in batch.to_pylist()]


def _hit(row: dict[str, Any]) -> Hit:
    if any(row[field.name] is None for field in HITS if not field.nullable):
        raise InputError("a hit lacks a value that every hit has")
    try:
        metadata = json.loads(row["metadata"])
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise InputError("the metadata of a hit are no JSON object")
    span = None if row["start"] is None or row["stop"] is None else (row["start"], row["stop"])
    scores = {name: row[name] for name in _SCORES if row[name] is not None}
    return Hit(row["id"], row["score"], metadata, row["snippet"], row["text"], span, scores)


def _whole(text: str) -> str:
    """A gist's reading may have half a surrogate pair, which Arrow doesn't."""
    return text.encode("utf-8", "replace").decode()
