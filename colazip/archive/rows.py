"""The row table of a group: ids, parts and metadata of its records. What says nothing is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from itertools import chain
from typing import Any, cast

import numpy as np
import pyarrow as pa

from colazip.archive.format import Group
from colazip.archive.tables import dump_table, load_table, unsigned, unsigned_column
from colazip.errors import FormatError, InputError

_ID, _PARTS, _WHOLE, _PREFIX = "id", "parts", "metadata", "m:"

# Records with more keys than this between them keep their metadata as one JSON object each.
_MAX_COLUMNS = 256

# A column of one of these types is stored as such. None: the Arrow type is inferred (time zone, scale).
_NATIVE: dict[type, pa.DataType | None] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
    datetime: None,
    date: None,
    time: None,
    Decimal: None,
}

# Field metadata of a metadata column. Without either, a null means that the record lacks the key.
_AS_JSON = {b"as": b"json"}  # strings are JSON
_AS_NONE = {b"null": b"none"}  # a null is a None

_MISSING = object()


@dataclass(frozen=True)
class RowTable:
    """Rows of one group. starts: int64 [records + 1], first part of each record; None: record i is part i."""

    records: int
    ids: pa.Array | None
    starts: np.ndarray | None
    columns: tuple[tuple[pa.Field, pa.Array], ...]

    def parts(self, row: int) -> tuple[int, int]:
        """Half-open range of parts of one record, counted from the start of the group."""
        return (row, row + 1) if self.starts is None else (int(self.starts[row]), int(self.starts[row + 1]))

    def row_of(self, parts: np.ndarray) -> np.ndarray:
        """Rows of these parts. parts: int64 [n] -> int64 [n]."""
        return parts if self.starts is None else np.searchsorted(self.starts, parts, side="right") - 1

    def own_ids(self, start: int, stop: int) -> list[str | None]:
        """Ids as stored; None where a record goes by its ordinal."""
        return [None] * (stop - start) if self.ids is None else self.ids[start:stop].to_pylist()

    def keys(self) -> set[str]:
        """Metadata keys of the rows."""
        return set(self._keys())

    def types(self) -> Iterator[tuple[str, pa.DataType | None]]:
        """(key, type of its values) of each metadata key; None where Arrow has no type for them all."""
        for key in dict.fromkeys(self._keys()):
            values = self.column(key)
            try:
                yield key, (pa.array(values) if isinstance(values, list) else cast(pa.Array, values)).type
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                yield key, None

    def _keys(self) -> Iterator[str]:
        for field, _ in self.columns:
            key = _key(field)
            if key is not None:
                yield key
            else:
                yield from chain.from_iterable(self.metadata(0, self.records))

    def column(self, key: str) -> pa.Array | list[Any] | None:
        """Values of one metadata key, null where a row lacks it; None if no row has it.

        An array as it is stored, or a list of what its JSON stands for, which may be of any types.
        """
        for field, array in self.columns:
            if _key(field) == key and not _is_json(field):
                return array
            if _key(field) == key or _is_whole(field):
                alone = RowTable(self.records, None, None, ((field, array),))
                return [row.get(key) for row in alone.metadata(0, self.records)]
        return None

    def metadata(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Metadata of rows start to stop, as it was given."""
        try:
            columns = [(_key(field), _values(field, array[start:stop])) for field, array in self.columns]
        except (
            ValueError,
            TypeError,
            OverflowError,
            LookupError,
            RecursionError,
            pa.ArrowException,
        ) as error:
            raise FormatError("damaged: metadata can't be parsed") from error
        for row in range(stop - start):
            found: dict[str, Any] = {}
            for key, values in columns:
                if (value := values[row]) is not _MISSING:
                    if key is None:
                        found.update(value)
                    else:
                        found[key] = value
            yield found


def dump_rows(
    ids: Sequence[str | None], parts: Sequence[int], metadata: Sequence[Mapping[str, Any]]
) -> bytes | None:
    """The rows of a group as a section; None if there is nothing to say. All three have one item a record."""
    fields: list[pa.Field] = []
    columns: list[pa.Array] = []
    if any(id is not None for id in ids):
        fields.append(pa.field(_ID, pa.string()))
        columns.append(pa.array(ids, type=pa.string()))
    if any(count != 1 for count in parts):
        columns.append(unsigned(np.array(parts, dtype=np.int64)))
        fields.append(pa.field(_PARTS, columns[-1].type))
    if any(metadata):
        for field, column in _dump_metadata(metadata):
            fields.append(field)
            columns.append(column)
    return dump_table(fields, columns) if fields else None


def load_rows(section: bytes | None, group: Group) -> RowTable:
    """Parse and check the rows of a group. section: None if the group has none."""
    if section is None:
        if group.records != group.parts or group.named:
            raise FormatError("damaged: a group lacks its rows")
        return RowTable(group.records, None, None, ())
    batch = load_table(section, group.records)
    names = batch.schema.names
    ids = starts = None
    if _ID in names:
        ids = batch.column(_ID)
        if not pa.types.is_string(ids.type):
            raise FormatError("damaged: ids of a group aren't strings")
    if group.named != (ids is not None):
        raise FormatError("damaged: manifest and rows of a group differ on whether it has ids")
    if _PARTS in names:
        counts, present = unsigned_column(batch, _PARTS)
        if not present.all() or counts.min(initial=1) < 1 or counts.max(initial=1) > group.parts:
            raise FormatError("damaged: a record has an impossible number of parts")
        starts = np.concatenate([[0], np.cumsum(counts)])
    if (group.records if starts is None else int(starts[-1])) != group.parts:
        raise FormatError("damaged: the records of a group don't add up to its number of parts")
    columns = tuple((batch.schema.field(n), batch.column(n)) for n in names if n not in (_ID, _PARTS))
    if not all(field.name.startswith(_PREFIX) or _is_whole(field) for field, _ in columns):
        raise FormatError("damaged: the rows of a group have an unknown column")
    if any(_is_json(field) and not pa.types.is_string(field.type) for field, _ in columns):
        raise FormatError("damaged: a column of JSON isn't of strings")
    return RowTable(group.records, ids, starts, columns)


def with_ids(section: bytes | None, records: int, ids: Sequence[str | None] | None) -> bytes | None:
    """A section of rows with other ids, one a record, or without any; None if there is nothing to say."""
    fields: list[pa.Field] = []
    columns: list[pa.Array] = []
    if ids is not None:
        fields.append(pa.field(_ID, pa.string()))
        columns.append(pa.array(ids, type=pa.string()))
    if section is not None:
        batch = load_table(section, records)
        for field in batch.schema:
            if field.name != _ID:
                fields.append(field)
                columns.append(batch.column(field.name))
    return dump_table(fields, columns) if fields else None


def _dump_metadata(metadata: Sequence[Mapping[str, Any]]) -> Iterator[tuple[pa.Field, pa.Array]]:
    names = list(dict.fromkeys(chain.from_iterable(metadata)))
    if not all(isinstance(name, str) for name in names):
        raise InputError("metadata keys must be strings")
    if len(names) > _MAX_COLUMNS or not all(map(_is_utf8, names)):
        column = _json_array(_WHOLE, [dict(values) if values else _MISSING for values in metadata])
        yield pa.field(_WHOLE, pa.string(), metadata=_AS_JSON), column
        return
    for name in names:
        values = [item.get(name, _MISSING) for item in metadata]
        array, notes = _dump_column(name, values)
        yield pa.field(_PREFIX + name, array.type, metadata=notes), array


def _dump_column(name: str, values: list[Any]) -> tuple[pa.Array, dict[bytes, bytes] | None]:
    """One column and its field metadata: as an Arrow type if that gives every value back as it was."""
    kinds = set(map(type, values))
    lacks, nones = type(_MISSING) in kinds, type(None) in kinds
    kinds -= {type(_MISSING), type(None)}
    if not (lacks and nones) and len(kinds) <= 1 and kinds <= _NATIVE.keys():
        given = [None if value is _MISSING else value for value in values]
        kind = _NATIVE[next(iter(kinds))] if kinds else pa.null()
        try:
            array = pa.array(given, type=kind)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            pass  # 2**64, a lone surrogate: JSON holds them
        else:
            if kind is not None or array.to_pylist() == given:
                return array, _AS_NONE if nones else None
    return _json_array(name, values), _AS_JSON


def _json_array(name: str, values: list[Any]) -> pa.Array:
    try:
        texts = [
            None if value is _MISSING else json.dumps(value, separators=(",", ":"), check_circular=True)
            for value in values
        ]
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"metadata {name!r} has a value that can't be kept as JSON: {error}") from error
    return pa.array(texts, type=pa.string())


def _values(field: pa.Field, array: pa.Array) -> list[Any]:
    values = array.to_pylist()
    if _is_json(field):
        values = [_MISSING if value is None else json.loads(value) for value in values]
        if _is_whole(field) and not all(value is _MISSING or isinstance(value, dict) for value in values):
            raise ValueError("metadata isn't an object")
        return values
    if (field.metadata or {}).get(b"null") == b"none":
        return values
    return [_MISSING if value is None else value for value in values]


def _key(field: pa.Field) -> str | None:
    """Metadata key of a column, None for the column that holds whole objects."""
    return None if _is_whole(field) else field.name[len(_PREFIX) :]


def _is_whole(field: pa.Field) -> bool:
    return bool(field.name == _WHOLE) and _is_json(field)


def _is_json(field: pa.Field) -> bool:
    return bool((field.metadata or {}).get(b"as") == b"json")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
