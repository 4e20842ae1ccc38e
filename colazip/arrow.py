"""Records of an archive as Arrow record batches of one schema, for whatever reads Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from colazip.archive.record import Record
from colazip.errors import FormatError, InputError, UsageError
from colazip.layers import EXACT, GIST
from colazip.tables.arrow_plain import from_plain, is_bytes, is_string, schema_from_text
from colazip.tables.common import TableLayout, json_text, row_groups

if TYPE_CHECKING:
    from colazip.archive.reader import Archive

BATCH_BYTES = 16 << 20  # of text, about
VECTOR = "vector"
_ID = "id"
_OF_SEARCH = {b"colazip": b"search"}  # marks the column of vectors: metadata may have one of its name


@dataclass(frozen=True)
class Columns:
    """Which columns a batch has. layout: how a record becomes a row. json: names of those whose values share
    no type of Arrow's; they are strings of JSON."""

    schema: pa.Schema
    layout: TableLayout
    json: frozenset[str]

    @property
    def reads_text(self) -> bool:
        return self.layout.text in self.schema.names

    @property
    def reads_vectors(self) -> bool:
        field = self.schema.field(VECTOR) if VECTOR in self.schema.names else None
        return field is not None and (field.metadata or {}) == _OF_SEARCH

    def with_vectors(self, width: int) -> Columns:
        """The same and a column of vectors, unless there is one of its name."""
        if VECTOR in self.schema.names:
            return self
        field = pa.field(VECTOR, pa.list_(pa.float32(), width), metadata=_OF_SEARCH)
        return replace(self, schema=self.schema.append(field))

    def only(self, names: Sequence[str], where: str) -> Columns:
        """Some of them, in this order. Raises UsageError for one that is not there. where: what lacks it."""
        for name in names:
            if name not in self.schema.names:
                have = ", ".join(map(repr, self.schema.names))
                raise UsageError(f"{where}: has no column {name!r}; it has {have}")
        schema = pa.schema([self.schema.field(name) for name in names])
        return Columns(schema, self.layout, self.json & set(names))


def columns_of(archive: Archive, names: Sequence[str] | None = None, *, binary: bool = False) -> Columns:
    """Those that `colazip unpack` writes to a table, and the ids as `id`, unless the table had a column of
    that name. Where the archive was packed from Parquet they have the types that they had there
    (dictionaries those of their values), else those of the metadata; the row tables of all groups are read
    for that.

    names: only these, in this order. binary: the text as bytes. Raises UsageError for a name that is no
    column.
    """
    if names is not None and not names:
        raise UsageError(f"{archive.path}: no columns are named; name some, or None for all")
    layout = TableLayout.from_source(archive.source)
    if layout.schema is not None:
        # Batches would each have a dictionary of their own, which few that read them expect.
        fields = {
            field.name: field.with_type(field.type.value_type)
            if pa.types.is_dictionary(field.type)
            else field
            for field in schema_from_text(layout.schema)
        }
        json: frozenset[str] = frozenset()
    else:
        fields, json = _inferred(archive, layout)
    if layout.id is None and _ID not in fields:
        layout = replace(layout, id=_ID, integer_ids=False, columns=(_ID, *layout.columns))
        fields = {_ID: pa.field(_ID, pa.string()), **fields}
    if layout.text not in fields:
        raise FormatError(f"{archive.path}: damaged: its table lacks the column {layout.text!r}, its text")
    if binary and not is_bytes(fields[layout.text].type):
        fields[layout.text] = fields[layout.text].with_type(pa.binary())
    columns = Columns(pa.schema(list(fields.values())), layout, json)
    if names is not None and VECTOR in names and VECTOR not in fields:
        columns = columns.with_vectors(archive.vector_width)
    return columns if names is None else columns.only(names, archive.path)


def batches(
    archive: Archive,
    columns: Columns,
    *,
    start: int = 0,
    stop: int | None = None,
    where: str | None = None,
    layer: str = EXACT,
    rows: int,
) -> Iterator[pa.RecordBatch]:
    """Records as `Archive.records` has them, `rows` in a batch or fewer where they are long. Nothing is
    decoded where `columns` has no text. Raises InputError for a text that is not UTF-8 where the column is of
    strings, and as `Archive.records` does."""
    if rows < 1:
        raise UsageError(f"{rows} rows a batch; give 1 or more")
    records = records_for(archive, columns, start=start, stop=stop, where=where, layer=layer)
    yield from batches_of(records, columns, layer=layer, rows=rows, text_bytes=BATCH_BYTES)


def records_for(
    archive: Archive, columns: Columns, *, start: int, stop: int | None, where: str | None, layer: str
) -> Iterator[Record]:
    """The records that `batches` puts into batches; their text is empty where `columns` has none."""
    records: Iterable[Record]
    if columns.reads_text:
        records = archive.records(start, stop, where=where, layer=layer)
    else:
        records = (Record(b"", name, values) for name, values in archive.rows(where, start, stop))
    if not columns.reads_vectors:
        return iter(records)
    vectors = (vector for _, some in archive.vectors(start, stop, where=where) for vector in some)
    return (
        Record(record.data, record.id, {**record.metadata, VECTOR: vector})
        for record, vector in zip(records, vectors, strict=True)
    )


def batches_of(
    records: Iterable[Record], columns: Columns, *, layer: str, rows: int, text_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Records in batches of at most `rows`, and of about `text_bytes` of text where they are long."""
    for group in row_groups(records, columns.layout, rows, text_bytes):
        yield _batch(columns, group, layer)


def _batch(columns: Columns, group: list[dict[str, Any]], layer: str) -> pa.RecordBatch:
    arrays = []
    for field in columns.schema:
        values = [row.get(field.name) for row in group]
        if field.name == VECTOR and columns.reads_vectors:
            arrays.append(_vectors(np.stack([row[VECTOR] for row in group]), field.type))
            continue
        if field.name in columns.json:
            values = [None if value is None else json_text(value).decode() for value in values]
        is_text = field.name == columns.layout.text
        if is_text and layer == GIST:  # a reading may have half a surrogate pair, which Arrow doesn't
            values = [
                row[field.name].decode("utf-8", "surrogatepass").encode("utf-8", "replace") for row in group
            ]
        try:
            arrays.append(from_plain(values, field.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            if is_text and is_string(field.type):
                raise _not_utf8(columns, group) from None
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"column {field.name!r} is no {field.type}: {reason}; leave it out") from None
    return pa.RecordBatch.from_arrays(arrays, schema=columns.schema)


def _vectors(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """float32 [n, D] as a column, null where a row is NaN."""
    lacking = pa.array(np.isnan(values[:, 0]))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind, mask=lacking)


def _not_utf8(columns: Columns, group: list[dict[str, Any]]) -> InputError:
    for row in group:
        try:
            row[columns.layout.text].decode()
        except UnicodeDecodeError:
            which = f"record {row.get(columns.layout.id or '')!r}" if columns.layout.id else "a record"
            return InputError(f"{which} is not UTF-8 text; read the text as bytes (binary=True)")
    return InputError("a record is not UTF-8 text; read the text as bytes (binary=True)")


def _inferred(archive: Archive, layout: TableLayout) -> tuple[dict[str, pa.Field], frozenset[str]]:
    """Fields by name, and the names of those of JSON, from the metadata of all groups."""
    kinds: dict[str, pa.DataType | None] = {}  # None: JSON
    for key, kind in archive.metadata_types():
        kinds[key] = _together(kinds[key], kind) if key in kinds else kind
    own = {layout.text: pa.string()}
    if layout.id is not None:
        own[layout.id] = pa.int64() if layout.integer_ids else pa.string()
    for name in own:
        if name in kinds:
            raise UsageError(
                f"{archive.path}: metadata column {name!r} has the name of the text or id; read it with "
                "Archive.records"
            )
    known = own | {key: pa.string() if kind is None else kind for key, kind in kinds.items()}
    order = dict.fromkeys([*(name for name in layout.columns if name in known), *known])
    json = frozenset(key for key, kind in kinds.items() if kind is None)
    return {name: pa.field(name, known[name]) for name in order}, json


def _together(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    """The type that holds the values of both, None if none does."""
    if one is None or other is None:
        return None
    try:
        schemas = [pa.schema([("", one)]), pa.schema([("", other)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None
