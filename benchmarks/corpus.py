"""Reading benchmark text out of Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colazip.errors import InputError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 4096


@dataclass(frozen=True)
class Corpus:
    """records: the texts as bytes. sources: one name a record, or None if the file has no such column."""

    records: list[bytes]
    sources: list[str] | None

    @property
    def raw_bytes(self) -> int:
        return sum(map(len, self.records))

    def by_source(self) -> dict[str, list[bytes]]:
        """Records of each source, sources in order of first appearance; empty without the column."""
        groups: dict[str, list[bytes]] = {}
        for source, record in zip(self.sources or (), self.records, strict=False):
            groups.setdefault(source, []).append(record)
        return groups


def read_corpus(path: Path, column: str, sample: int | None) -> Corpus:
    """All records of the text column, or `sample` of them evenly spaced. Raises InputError."""
    file = _open(path, column)
    names = [name for name in (column, "source") if name in file.schema_arrow.names]
    table = file.read(columns=names)
    if not table.num_rows:
        raise InputError(f"{path}: no records")
    if sample is not None and sample < table.num_rows:
        table = table.take([index * table.num_rows // sample for index in range(sample)])
    sources = table.column("source").to_pylist() if "source" in names else None
    return Corpus([_bytes(value) for value in table.column(column).to_pylist()], sources)


def evenly_spaced(paths: Sequence[Path], column: str, limit_bytes: int) -> list[bytes]:
    """About `limit_bytes` of text from files too large to hold, every n-th record. Raises InputError."""
    files = [_open(path, column) for path in paths]
    total = sum(_column_bytes(file, column) for file in files)
    every = max(1, round(total / limit_bytes))
    samples: list[bytes] = []
    seen = 0
    for file in files:
        for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
            first = -seen % every
            samples.extend(_bytes(value) for value in batch.column(0).to_pylist()[first::every])
            seen += batch.num_rows
    return samples


def _open(path: Path, column: str) -> ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: can't be read as Parquet: {error}") from error
    if column not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise InputError(f"{path}: no column {column!r}; it has: {names}; name one with --text-column")
    return file


def _column_bytes(file: ParquetFile, column: str) -> int:
    index = file.schema_arrow.names.index(column)
    metadata = file.metadata
    return sum(
        metadata.row_group(group).column(index).total_uncompressed_size
        for group in range(metadata.num_row_groups)
    )


def _bytes(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""
