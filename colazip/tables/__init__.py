"""Tables with a text column: JSON lines, CSV and Parquet, read and written row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import BinaryIO

from colazip.archive.record import Record
from colazip.tables.common import ColumnChoice, Input, TableLayout, TableReader

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
FORMATS = ("jsonl", "csv", "parquet")

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "ColumnChoice",
    "Input",
    "TableLayout",
    "TableReader",
    "open_table",
    "writer",
]


def delimiter_of(name: str) -> str:
    """The field separator that a file name implies."""
    return "\t" if PurePath(name).suffix.lower() == ".tsv" else ","


def open_table(format: str, source: Input, columns: ColumnChoice) -> TableReader:
    """A reader of one of FORMATS. Raises InputError if the start of `source` shows that it can't be read."""
    if format == "jsonl":
        from colazip.tables.json_lines import JsonLinesReader

        return JsonLinesReader(source, columns)
    if format == "csv":
        from colazip.tables.csv_rows import CsvReader

        return CsvReader(source, columns, delimiter_of(source.name))
    from colazip.tables.parquet_rows import ParquetReader

    return ParquetReader(source, columns)


def writer(format: str) -> Callable[[BinaryIO, Iterable[Record], TableLayout], None]:
    """The function that writes one of FORMATS."""
    if format == "jsonl":
        from colazip.tables.json_lines import write_json_lines

        return write_json_lines
    if format == "csv":
        from colazip.tables.csv_rows import write_csv

        return write_csv
    from colazip.tables.parquet_rows import write_parquet

    return write_parquet
