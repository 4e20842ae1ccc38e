"""Arrow tables to bytes and back: one IPC stream of one record batch, compressed by zstd as a whole.

The stream's own body compression isn't used, so that all sizes are bounded before Arrow parses anything.

Arrow keeps 4 bytes of offset a string, which rise and don't compress: on short records that is 1 % of an
archive for each column of strings. So a column of strings is kept as the length of each, and the characters
of all follow the stream; or, if few are distinct, as the number of each in a list in the field's metadata.
"""

from __future__ import annotations

import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from colazip.archive.format import MAX_TABLE_BYTES
from colazip.errors import FormatError, InputError

# A table of an archive without metadata is a few kB, and there every byte counts.
_SMALL_TABLE_BYTES = 1 << 20
_SMALL_LEVEL, _LARGE_LEVEL = 19, 9

_PARSE_ERRORS = (
    pa.ArrowException,
    zstandard.ZstdError,
    struct.error,
    ValueError,
    LookupError,
    OSError,
    MemoryError,
    RecursionError,
)

_STREAM_LENGTH = struct.Struct("<I")

# Field metadata of a column of strings: lengths (the characters follow the stream), or numbers of a list.
_LENGTHS, _VALUES = b"lengths", b"values"
_MAX_VALUES = 256

_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())


def unsigned(values: np.ndarray, present: np.ndarray | None = None) -> pa.Array:
    """Integers >= 0 as the smallest unsigned Arrow type that holds them. present: false where one is null."""
    largest = int(values.max(initial=0))
    kind = next(kind for kind in _UNSIGNED if largest < 1 << kind.bit_width)
    mask = None if present is None or present.all() else ~present
    return pa.array(values, type=kind, mask=mask)


def dump_table(fields: list[pa.Field], columns: list[pa.Array]) -> bytes:
    """Columns of one length as a section. Raises InputError for a table too large to be read back."""
    fields, columns, tails = list(fields), list(columns), []
    for at, (field, column) in enumerate(zip(fields, columns, strict=True)):
        if pa.types.is_string(field.type):
            fields[at], columns[at], tail = _dump_strings(field, column)
            tails.append(tail)
    schema = pa.schema(fields)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    body = sink.getvalue().to_pybytes()
    raw = b"".join([_STREAM_LENGTH.pack(len(body)), body, *tails])
    if len(raw) > MAX_TABLE_BYTES:
        raise InputError(
            f"ids and metadata of one group of records take {len(raw)} bytes; {MAX_TABLE_BYTES} fit"
        )
    level = _SMALL_LEVEL if len(raw) <= _SMALL_TABLE_BYTES else _LARGE_LEVEL
    return zstandard.ZstdCompressor(level=level, write_checksum=False).compress(raw)


def load_table(section: bytes, rows: int) -> pa.RecordBatch:
    """Parse a section written by `dump_table`; raises FormatError unless it is sane and has `rows` rows."""
    try:
        raw = memoryview(_decompress(section))
        (length,) = _STREAM_LENGTH.unpack_from(raw)
        if _STREAM_LENGTH.size + length > len(raw):
            raise FormatError("damaged: a table is cut off")
        tail = raw[_STREAM_LENGTH.size + length :]
        stream = raw[_STREAM_LENGTH.size : _STREAM_LENGTH.size + length]
        messages = list(pa.ipc.MessageReader.open_stream(pa.py_buffer(stream)))
        if [message.type for message in messages] != ["schema", "record batch"]:
            raise FormatError("damaged: a table isn't one Arrow record batch")
        schema = pa.ipc.read_schema(messages[0])
        if len(set(schema.names)) != len(schema.names) or not all(map(_is_allowed, schema.types)):
            raise FormatError("damaged: a table has columns of unknown types or repeated names")
        if _has_compressed_body(messages[1].metadata.to_pybytes()):
            raise FormatError("damaged: a table is compressed twice")
        batch = pa.ipc.read_record_batch(messages[1], schema)
        # Arrow trusts offsets and UTF-8 inside its buffers until it is asked not to.
        batch.validate(full=True)
        if batch.num_rows != rows:
            raise FormatError("damaged: a table has another number of rows than the manifest says")
        return _load_strings(batch, tail)
    except _PARSE_ERRORS as error:
        raise FormatError("damaged: a table can't be parsed") from error


def unsigned_column(batch: pa.RecordBatch, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(values int64, present bool) of a column of unsigned integers; nulls have the value 0."""
    index = batch.schema.get_field_index(name)
    if index < 0 or batch.schema.field(index).type not in _UNSIGNED:
        raise FormatError(f"damaged: column {name!r} of a table is missing or malformed")
    column = batch.column(index)
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    if len(values) and int(values.max()) >= 1 << 62:
        raise FormatError(f"damaged: column {name!r} of a table is out of range")
    present = column.is_valid().to_numpy(zero_copy_only=False)
    return values.astype(np.int64), present


def _dump_strings(field: pa.Field, column: pa.Array) -> tuple[pa.Field, pa.Array, bytes]:
    """A column of strings as integers, and the bytes that go after the stream."""
    coded = column.dictionary_encode()
    notes = dict(field.metadata or {})
    tail = b""
    if len(coded.dictionary) <= min(_MAX_VALUES, len(column) // 4):
        packed = coded.indices.cast(pa.uint8())
        notes[_VALUES] = json.dumps(coded.dictionary.to_pylist(), separators=(",", ":")).encode()
    else:
        present = column.is_valid().to_numpy(zero_copy_only=False)
        packed = unsigned(pc.binary_length(column).fill_null(0).to_numpy(), present)
        notes[_LENGTHS] = b""
        tail = _characters(column)
    return pa.field(field.name, packed.type, metadata=notes), packed, tail


def _characters(column: pa.Array) -> bytes:
    """All strings of a column, joined; a null has none."""
    offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)[
        column.offset : column.offset + len(column) + 1
    ]
    data = column.buffers()[2]
    return data[int(offsets[0]) : int(offsets[-1])].to_pybytes() if data is not None else b""


def _load_strings(batch: pa.RecordBatch, tail: memoryview) -> pa.RecordBatch:
    """The batch with its columns of strings as such. tail: the bytes after the stream; all are used."""
    fields, columns = list(batch.schema), list(batch.columns)
    for at, field in enumerate(fields):
        notes = dict(field.metadata or {})
        if (values := notes.pop(_VALUES, None)) is not None:
            columns[at] = _from_values(columns[at], values)
        elif notes.pop(_LENGTHS, None) is not None:
            lengths, _ = unsigned_column(batch, field.name)
            if lengths.max(initial=0) > len(tail) or (total := int(lengths.sum())) > len(tail):
                raise FormatError("damaged: strings of a table are cut off")
            columns[at] = _from_lengths(columns[at], lengths, tail[:total])
            tail = tail[total:]
        else:
            continue
        fields[at] = pa.field(field.name, pa.string(), metadata=notes or None)
    if len(tail):
        raise FormatError("damaged: a table has bytes that belong to no column")
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _from_values(numbers: pa.Array, values: bytes) -> pa.Array:
    distinct = json.loads(values)
    if not isinstance(distinct, list) or not all(isinstance(value, str) for value in distinct):
        raise FormatError("damaged: the distinct strings of a table aren't a list of strings")
    if numbers.type != pa.uint8():
        raise FormatError("damaged: a column of distinct strings is malformed")
    array = pa.array(distinct, type=pa.string())
    # A short list of long strings could make any amount of text.
    if (pc.sum(pc.binary_length(array).take(numbers)).as_py() or 0) > MAX_TABLE_BYTES:
        raise FormatError("damaged: the strings of a table are too long")
    return array.take(numbers)


def _from_lengths(column: pa.Array, lengths: np.ndarray, characters: memoryview) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    bitmap = column.buffers()[0] if column.null_count else None
    buffers = [bitmap, pa.py_buffer(offsets), pa.py_buffer(characters)]
    array = pa.Array.from_buffers(pa.string(), len(column), buffers, column.null_count)
    array.validate(full=True)
    return array


def _is_allowed(kind: pa.DataType) -> bool:
    """Flat types only: what `dump_table` is given, and nothing that refers to more than its own buffers."""
    types = pa.types
    return (
        kind in _UNSIGNED
        or types.is_null(kind)
        or types.is_boolean(kind)
        or types.is_int64(kind)
        or types.is_float64(kind)
        or types.is_binary(kind)
        or types.is_date32(kind)
        or types.is_time64(kind)
        or types.is_timestamp(kind)
        or types.is_decimal128(kind)
        or types.is_decimal256(kind)
    )


def _decompress(section: bytes) -> bytes:
    size = zstandard.get_frame_parameters(section).content_size
    if size == zstandard.CONTENTSIZE_UNKNOWN or size > MAX_TABLE_BYTES:
        raise FormatError("damaged: a table doesn't state its size, or is too large")
    return zstandard.ZstdDecompressor().decompress(
        section, max_output_size=max(size, 1), allow_extra_data=False
    )


def _has_compressed_body(metadata: bytes) -> bool:
    """Whether a record-batch message declares body compression: a field that pyarrow doesn't show.

    metadata: the flatbuffer `Message` of Arrow's IPC format; Arrow has not verified it yet, so neither do we
    trust it: an offset outside raises struct.error.
    """

    def u16(at: int) -> int:
        return int(struct.unpack_from("<H", metadata, at)[0])

    def i32(at: int) -> int:
        return int(struct.unpack_from("<i", metadata, at)[0])

    def field(table: int, index: int) -> int:
        """Position of a table's field, 0 if it is absent."""
        vtable = table - i32(table)
        if vtable < 0:
            raise struct.error("vtable before the buffer")
        slot = 4 + 2 * index
        offset = u16(vtable + slot) if slot + 2 <= u16(vtable) else 0
        return table + offset if offset else 0

    message = i32(0)
    header = field(message, 2)  # Message: version, header_type, header, ...
    if not header:
        raise struct.error("message without a header")
    batch = header + i32(header)
    return field(batch, 3) != 0  # RecordBatch: length, nodes, buffers, compression, ...
