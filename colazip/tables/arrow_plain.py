"""Arrow columns <-> JSON-like Python values, so that an archive gives any column back in its type."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from colazip.errors import FormatError, InputError

SCHEMA_TEXT_LIMIT = 1 << 24


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can be the text of records."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return is_string(kind) or is_bytes(kind)


def is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def plain_type(kind: pa.DataType, where: str, nested: bool = False) -> pa.DataType:
    """The type to which `kind` casts without loss and whose Python values the metadata of a record can hold.

    Inside lists and structs (`nested`) only what JSON knows; bytes are then spelled in base64 by `to_plain`.
    Raises InputError, beginning with `where`, for a type that has none (maps, unions, extensions).
    """
    types = pa.types
    if types.is_dictionary(kind):
        return plain_type(kind.value_type, where, nested)
    if is_string(kind):
        return pa.large_string()
    if is_bytes(kind):
        return pa.large_binary()
    if types.is_float16(kind):
        return pa.float32()
    if types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        return kind
    if types.is_decimal(kind):
        return pa.large_string() if nested else kind
    if types.is_timestamp(kind) and not nested:
        # The same instants, down to the microsecond, as far as Python's times go (`has_nanoseconds`).
        return pa.timestamp("us" if kind.unit == "ns" else kind.unit, kind.tz and "UTC")
    if types.is_temporal(kind) and not types.is_interval(kind):
        return kind if not nested and _is_native(kind) else _ticks(kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.large_list(plain_type(kind.value_type, where, nested=True))
    if types.is_struct(kind):
        fields = [kind.field(at) for at in range(kind.num_fields)]
        return pa.struct(
            [pa.field(field.name, plain_type(field.type, where, nested=True)) for field in fields]
        )
    raise InputError(f"{where} is of type {kind}, which can't be kept; write the file without that column")


def _is_native(kind: pa.DataType) -> bool:
    """Whether Python's dates and times, which count microseconds, hold every value without a zone table."""
    if pa.types.is_date(kind):
        return True
    return pa.types.is_time(kind) and getattr(kind, "unit", "") != "ns"


def _ticks(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64()


def to_plain(column: pa.Array, plain: pa.DataType) -> list[Any]:
    """Values of `column` by way of its plain type."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[Any] = column.cast(plain).to_pylist()
    return [_spell_bytes(value) for value in values] if pa.types.is_nested(plain) else values


def text_bytes(column: pa.Array) -> list[bytes | None]:
    """The bytes of a text column, None for null."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values


def from_plain(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The column of type `kind` that `to_plain` or `text_bytes` read; times may be ticks. Raises as
    `pa.array` does."""
    if pa.types.is_dictionary(kind):
        encoded = from_plain(values, kind.value_type).dictionary_encode()
        return encoded.cast(kind)
    plain = plain_type(kind, "column")
    if pa.types.is_timestamp(kind) and any(isinstance(value, int) for value in values):
        values = [_in_ticks(value, kind) for value in values]
        plain = pa.int64()
    if is_string(kind) and any(isinstance(value, bytes) for value in values):
        plain = pa.large_binary()
    if pa.types.is_nested(plain):
        values = [_read_bytes(value, plain) for value in values]
    return pa.array(values, type=plain).cast(kind)


def is_nanoseconds(kind: pa.DataType) -> bool:
    """Of a timestamp that may be finer than Python's."""
    return bool(pa.types.is_timestamp(kind) and kind.unit == "ns")


def has_nanoseconds(columns: Iterable[pa.Array]) -> bool:
    """Whether times of such columns are no whole microseconds: they are then kept as ticks, int64."""
    return any((pc.max(pc.nanosecond(column)).as_py() or 0) > 0 for column in columns)


def _in_ticks(value: Any, kind: pa.DataType) -> Any:
    """A time, or its ticks, as the ticks of a timestamp type."""
    return pa.scalar(value, kind).cast(pa.int64()).as_py() if isinstance(value, datetime) else value


def _spell_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [_spell_bytes(item) for item in value]
    if isinstance(value, dict):
        return {name: _spell_bytes(item) for name, item in value.items()}
    return value


def _read_bytes(value: Any, plain: pa.DataType) -> Any:
    if isinstance(value, str) and is_bytes(plain):
        return base64.b64decode(value, validate=True)
    if isinstance(value, list) and pa.types.is_large_list(plain):
        return [_read_bytes(item, plain.value_type) for item in value]
    if isinstance(value, dict) and pa.types.is_struct(plain):
        return {
            name: _read_bytes(item, plain.field(name).type) if plain.get_field_index(name) >= 0 else item
            for name, item in value.items()
        }
    return value


def schema_to_text(schema: pa.Schema) -> str:
    """A schema as text for a JSON manifest."""
    return base64.b64encode(schema.serialize()).decode()


def schema_from_text(text: str) -> pa.Schema:
    """The schema that `schema_to_text` spelled. Raises FormatError."""
    try:
        if len(text) > SCHEMA_TEXT_LIMIT:
            raise ValueError("too long")
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
    except (ValueError, OSError, binascii.Error, pa.ArrowException) as error:
        raise FormatError(
            f"the manifest's table schema is damaged ({error}); unpack to JSONL instead"
        ) from None
