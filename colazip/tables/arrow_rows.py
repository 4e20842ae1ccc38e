"""Rows of Arrow record batches -> records. What JSON doesn't know is kept by way of its plain type."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa

from colazip.archive.record import Record
from colazip.errors import InputError
from colazip.tables.arrow_plain import (
    is_nanoseconds,
    is_text,
    plain_type,
    schema_to_text,
    text_bytes,
    to_plain,
)
from colazip.tables.common import ColumnChoice


class ArrowRows:
    """Reads batches of one schema. done: rows read so far. ticks: columns of times to the nanosecond that are
    finer than Python's, and kept as int64.

    name: what the rows come from, for messages. Raises InputError for a schema without the columns, or with
    one that can't be kept.
    """

    def __init__(
        self, schema: pa.Schema, columns: ColumnChoice, name: str, ticks: Collection[str] = ()
    ) -> None:
        self.schema = schema.remove_metadata()
        self.columns = columns
        self.name = name
        self.done = 0
        names = schema.names
        if len(set(names)) < len(names):
            raise InputError(f"{name}: two columns share a name; rename one")
        columns.check(names, name)
        kind = schema.field(columns.text).type
        if pa.types.is_null(kind):
            raise columns.refuse_text(None, name)
        if not is_text(kind):
            raise InputError(
                f"{name}: column {columns.text!r} is {kind}, not text; choose with {columns.called[0]}"
            )
        self._plain = {
            field.name: pa.int64()
            if field.name in ticks
            else plain_type(field.type, f"{name}: column {field.name!r}")
            for field in schema
            if field.name != columns.text
        }
        if columns.id is not None:
            kind = schema.field(columns.id).type
            if not is_text(kind) and not pa.types.is_integer(kind):
                raise InputError(f"{name}: id column {columns.id!r} is {kind}; ids are text or integers")

    def describe(self) -> dict[str, Any]:
        """As `TableReader.describe`: written again as Parquet, which has all of Arrow's types."""
        described = {"format": "parquet", "columns": self.schema.names, "schema": schema_to_text(self.schema)}
        if self.columns.id is not None and pa.types.is_integer(self.schema.field(self.columns.id).type):
            described["id_type"] = "int"
        return described

    def records(self, batch: pa.RecordBatch) -> Iterator[Record]:
        """Raises InputError naming the row, or as `pa.Array.cast` does."""
        cells = {self.columns.text: text_bytes(batch.column(self.columns.text))}
        cells |= {name: to_plain(batch.column(name), plain) for name, plain in self._plain.items()}
        for row in zip(*cells.values(), strict=True):
            self.done += 1
            yield self._record(dict(zip(cells, row, strict=True)))

    def _record(self, cells: dict[str, Any]) -> Record:
        where = f"{self.name}: row {self.done}"
        data = cells.pop(self.columns.text)
        if data is None:
            raise self.columns.refuse_text(None, where)
        if self.columns.id is None:
            return Record(data, None, cells)
        key = cells.pop(self.columns.id)
        if key is None:
            raise InputError(f"{where}: id column {self.columns.id!r} is null; give every row an id")
        return Record(data, str(key), cells)


def nanosecond_columns(schema: pa.Schema, text: str) -> list[str]:
    """Names of the columns, but for that of the text, that may need ticks."""
    return [field.name for field in schema if field.name != text and is_nanoseconds(field.type)]
