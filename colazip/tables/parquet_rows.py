"""Parquet: read by row groups, a few rows at a time; written in row groups of bounded size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from colazip.archive.record import Record
from colazip.errors import InputError, UsageError
from colazip.tables.arrow_plain import (
    from_plain,
    has_nanoseconds,
    is_nanoseconds,
    is_text,
    plain_type,
    schema_from_text,
    schema_to_text,
    text_bytes,
    to_plain,
)
from colazip.tables.common import ColumnChoice, Input, TableLayout, row_groups

READ_ROWS = 256
GROUP_ROWS = 16 * 1024
GROUP_BYTES = 16 << 20  # of text


class ParquetReader:
    """Reads rows; columns whose types JSON does not know are kept by way of their plain type."""

    def __init__(self, source: Input, columns: ColumnChoice) -> None:
        self.source = source
        self.columns = columns
        self.done = 0
        name = source.name
        with _as_input_error(name):
            self.file = pq.ParquetFile(source.file)
            self.schema = self.file.schema_arrow.remove_metadata()
        names = self.schema.names
        if len(set(names)) < len(names):
            raise InputError(f"{name}: two columns share a name; rename one")
        columns.check(names, name)
        kind = self.schema.field(columns.text).type
        if not is_text(kind):
            raise InputError(
                f"{name}: column {columns.text!r} is {kind}, not text; choose with --text-column"
            )
        self.plain = {
            field.name: plain_type(field.type, f"{name}: column {field.name!r}")
            for field in self.schema
            if field.name != columns.text
        }
        for field in self.schema:
            if field.name in self.plain and is_nanoseconds(field.type):
                with _as_input_error(name):
                    batches = self.file.iter_batches(columns=[field.name])
                    if has_nanoseconds(batch.column(0) for batch in batches):
                        self.plain[field.name] = pa.int64()
        if columns.id is not None:
            kind = self.schema.field(columns.id).type
            if not is_text(kind) and not pa.types.is_integer(kind):
                raise InputError(f"{name}: id column {columns.id!r} is {kind}; ids are text or integers")

    def describe(self) -> dict[str, Any]:
        described = {"format": "parquet", "columns": self.schema.names, "schema": schema_to_text(self.schema)}
        if self.columns.id is not None and pa.types.is_integer(self.schema.field(self.columns.id).type):
            described["id_type"] = "int"
        return described

    def __iter__(self) -> Iterator[Record]:
        batches = self.file.iter_batches(batch_size=READ_ROWS)
        while True:
            with _as_input_error(self.source.name):
                batch = next(batches, None)
                cells = None if batch is None else self._cells(batch)
            if cells is None:
                return
            for row in zip(*cells.values(), strict=True):
                self.done += 1
                yield self._record(dict(zip(cells, row, strict=True)))

    def fraction(self) -> float | None:
        return self.done / max(int(self.file.metadata.num_rows), 1)

    def _cells(self, batch: pa.RecordBatch) -> dict[str, list[Any]]:
        cells = {name: to_plain(batch.column(name), plain) for name, plain in self.plain.items()}
        return {self.columns.text: text_bytes(batch.column(self.columns.text))} | cells

    def _record(self, cells: dict[str, Any]) -> Record:
        where = f"{self.source.name}: row {self.done}"
        data = cells.pop(self.columns.text)
        if data is None:
            raise self.columns.refuse_text(None, where)
        if self.columns.id is None:
            return Record(data, None, cells)
        key = cells.pop(self.columns.id)
        if key is None:
            raise InputError(f"{where}: id column {self.columns.id!r} is null; give every row an id")
        return Record(data, str(key), cells)


def write_parquet(file: BinaryIO, records: Iterable[Record], layout: TableLayout) -> None:
    """With the schema of the source, if that was Parquet; else with the types that the values have.

    Raises UsageError if one column holds values of types that don't go together.
    """
    if layout.schema is not None:
        _write_known(file, records, layout, schema_from_text(layout.schema))
    else:
        _write_inferred(file, records, layout)


def _write_known(file: BinaryIO, records: Iterable[Record], layout: TableLayout, schema: pa.Schema) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd") as out:
        for rows in row_groups(records, layout, GROUP_ROWS, GROUP_BYTES):
            columns = []
            for field in schema:
                values = [row.get(field.name) for row in rows]
                with _as_usage_error(field.name):
                    columns.append(from_plain(values, field.type))
            out.write_table(pa.Table.from_arrays(columns, schema=schema))


def _write_inferred(file: BinaryIO, records: Iterable[Record], layout: TableLayout) -> None:
    """The types are known only after the last row, so the row groups wait in a temporary file."""
    schema = pa.schema([])
    with tempfile.TemporaryFile() as spool:
        count = 0
        for rows in row_groups(records, layout, GROUP_ROWS, GROUP_BYTES, text=True):
            names = dict.fromkeys(name for row in rows for name in row)
            columns = {}
            for name in names:
                with _as_usage_error(name):
                    columns[name] = pa.array([row.get(name) for row in rows])
            group = pa.table(columns)
            with _as_usage_error(None):
                schema = pa.unify_schemas([schema, group.schema], promote_options="permissive")
            with pa.ipc.new_stream(spool, group.schema) as stream:
                stream.write_table(group)
            count += 1
        spool.seek(0)
        order = dict.fromkeys([name for name in layout.columns if name in schema.names] + schema.names)
        schema = pa.schema([schema.field(name) for name in order]) if count else _empty_schema(layout)
        with pq.ParquetWriter(file, schema, compression="zstd") as out:
            for _ in range(count):
                group = pa.ipc.open_stream(spool).read_all()
                for name in schema.names:
                    if name not in group.schema.names:
                        group = group.append_column(name, pa.nulls(group.num_rows))
                with _as_usage_error(None):
                    out.write_table(group.select(schema.names).cast(schema))


def _empty_schema(layout: TableLayout) -> pa.Schema:
    return pa.schema([pa.field(name, pa.string()) for name in layout.columns])


@contextmanager
def _as_input_error(name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name}: can't be read as Parquet: {reason}; check the file or --format") from None


@contextmanager
def _as_usage_error(column: str | None) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        what = "the columns" if column is None else f"column {column!r}"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{what} can't be written as Parquet: {reason}; unpack to JSONL instead") from None
