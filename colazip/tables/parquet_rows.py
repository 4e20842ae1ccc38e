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
from colazip.tables.arrow_plain import from_plain, has_nanoseconds, schema_from_text
from colazip.tables.arrow_rows import ArrowRows, nanosecond_columns
from colazip.tables.common import ColumnChoice, Input, TableLayout, row_groups

READ_ROWS = 256
GROUP_ROWS = 16 * 1024
GROUP_BYTES = 16 << 20  # of text


class ParquetReader:
    """Reads rows; columns whose types JSON does not know are kept by way of their plain type."""

    def __init__(self, source: Input, columns: ColumnChoice) -> None:
        self.source = source
        name = source.name
        with _as_input_error(name):
            self.file = pq.ParquetFile(source.file)
            schema = self.file.schema_arrow
        self.rows = ArrowRows(schema, columns, name)
        if fine := [column for column in nanosecond_columns(schema, columns.text) if self._is_finer(column)]:
            self.rows = ArrowRows(schema, columns, name, fine)

    def _is_finer(self, column: str) -> bool:
        with _as_input_error(self.source.name):
            return has_nanoseconds(batch.column(0) for batch in self.file.iter_batches(columns=[column]))

    def describe(self) -> dict[str, Any]:
        return self.rows.describe()

    def __iter__(self) -> Iterator[Record]:
        batches = self.file.iter_batches(batch_size=READ_ROWS)
        while True:
            with _as_input_error(self.source.name):
                batch = next(batches, None)
                records = None if batch is None else list(self.rows.records(batch))
            if records is None:
                return
            yield from records

    def fraction(self) -> float | None:
        return self.rows.done / max(int(self.file.metadata.num_rows), 1)


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
