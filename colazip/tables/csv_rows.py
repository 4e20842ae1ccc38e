"""CSV and TSV: a header line, then rows of as many fields. Values are text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from io import TextIOWrapper
from typing import Any, BinaryIO

from colazip.archive.record import Record
from colazip.errors import InputError, UsageError
from colazip.tables.common import ColumnChoice, Input, TableLayout, json_text

FIELD_CHARS = 1 << 28  # a quote that never closes would otherwise take in the rest of the file


class CsvReader:
    """Reads rows one by one. Bytes of the text column that are not UTF-8 pass through unchanged."""

    def __init__(self, source: Input, columns: ColumnChoice, delimiter: str) -> None:
        self.source = source
        self.columns = columns
        self.delimiter = delimiter
        # The csv module has one limit for the process, so it is only ever raised.
        csv.field_size_limit(max(csv.field_size_limit(), FIELD_CHARS))
        self.lines = TextIOWrapper(source.file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self.reader = csv.reader(self.lines, delimiter=delimiter, strict=True)
        self.header = next(self._rows(), [])
        if self.header:
            repeated = sorted({name for name in self.header if self.header.count(name) > 1})
            if repeated:
                raise InputError(f"{source.name}: two columns are named {repeated[0]!r}; rename one")
            columns.check(self.header, source.name)
            self._check_utf8(self.header)

    def describe(self) -> dict[str, Any]:
        return {"format": "csv", "columns": self.header, "delimiter": self.delimiter}

    def __iter__(self) -> Iterator[Record]:
        for row in self._rows():
            if len(row) != len(self.header):
                raise self._error(
                    f"{len(row)} fields, but the header has {len(self.header)}; check the quotes"
                )
            cells = dict(zip(self.header, row, strict=True))
            data = cells.pop(self.columns.text).encode("utf-8", "surrogateescape")
            self._check_utf8(cells.values())
            yield Record(data, None if self.columns.id is None else cells.pop(self.columns.id), cells)

    def fraction(self) -> float | None:
        return self.source.fraction()

    def _rows(self) -> Iterator[list[str]]:
        while True:
            try:
                row = next(self.reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._error(f"bad CSV: {error}; check the quotes") from None
            if any("\0" in cell for cell in row):
                raise self._error("a NUL character: UTF-16 or binary? Convert the file to UTF-8")
            if row:
                yield row

    def _check_utf8(self, cells: Iterable[str]) -> None:
        try:
            "".join(cells).encode()
        except UnicodeEncodeError:
            raise self._error("invalid UTF-8 outside the text column; convert the file to UTF-8") from None

    def _error(self, message: str) -> InputError:
        return InputError(f"{self.source.name}: line {self.reader.line_num}: {message}")


def write_csv(file: BinaryIO, records: Iterable[Record], layout: TableLayout) -> None:
    """A header, then one row a record. The columns are those of the layout and of the first record.

    Raises UsageError for a later record with more columns, or with a NUL, which CSV can't carry.
    """
    names: list[str] = []
    for record in records:
        row = layout.row(record)
        if not names:
            names = list(dict.fromkeys([*layout.columns, *row]))
            file.write(_line(names, layout.delimiter))
        if not row.keys() <= set(names):
            extra = next(name for name in row if name not in names)
            raise UsageError(
                f"record {record.id!r} has a column {extra!r} that the first has not; unpack to JSONL"
            )
        row[layout.text] = record.data.decode("utf-8", "surrogateescape")
        line = _line([_cell(row.get(name)) for name in names], layout.delimiter)
        if b"\0" in line:
            raise UsageError(
                f"record {record.id!r} holds a NUL, which CSV can't carry; unpack to JSONL or Parquet"
            )
        file.write(line)
    if not names:
        file.write(_line(layout.columns, layout.delimiter))


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    text = json_text(value).decode()
    # What JSON spells as text needs no quotes in a cell.
    return json.loads(text) if text.startswith('"') else text


def _line(cells: Sequence[str], delimiter: str) -> bytes:
    # Not csv.writer: which line ends inside a cell it quotes depends on the version of Python.
    special = (delimiter, '"', "\r", "\n")
    quoted = [
        '"' + cell.replace('"', '""') + '"' if any(mark in cell for mark in special) else cell
        for cell in cells
    ]
    line = delimiter.join(quoted) if any(quoted) or len(quoted) > 1 else '""'
    return (line + "\n").encode("utf-8", "surrogateescape")
