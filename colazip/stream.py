"""Long input and output, a blob for every few MiB: `colazip compress` and `decompress` in bounded memory.

Input that fits into one frame is one blob, as `colazip.compress` writes it. docs/FORMAT.md has the bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import BinaryIO

from colazip.errors import FormatError, VersionError
from colazip.oneshot import compress, decompress
from colazip.presets import SMALL

FRAME_BYTES = 8 << 20  # of input, at most
MAGIC = b"\xc0\x1b"
_VERSION = 1
_HEADER = MAGIC + bytes([_VERSION])
_LENGTH = struct.Struct("<I")  # of a blob; 0: behind the last one
_END = struct.Struct("<QI")  # bytes of all text, their CRC-32
_MOST_BYTES = 64 << 20  # of a blob that is read

Progress = Callable[[int], None]


def compress_stream(
    source: BinaryIO,
    sink: BinaryIO,
    preset: str = SMALL,
    *,
    detail: int = 0,
    model: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """All bytes of `source` to `sink`, so that `decompress_stream` gives them back; returns how many were
    read and written. Memory stays bounded however many there are; up to 8 MiB make one blob.

    preset, detail, model: as of `compress`. progress: called with the bytes read so far. Raises as
    `compress` does.
    """

    def coded(data: bytes) -> bytes:
        return compress(data, preset, detail=detail, model=model)

    frames = _frames(source)
    first, last = next(frames)
    if last:
        blob = coded(first)
        sink.write(blob)
        return len(first), len(blob)
    crc, read, written = 0, 0, len(_HEADER) + _LENGTH.size + _END.size
    sink.write(_HEADER)
    for data in chain([first], (data for data, _ in frames)):
        blob = coded(data)
        sink.write(_LENGTH.pack(len(blob)) + blob)
        sink.flush()
        written += _LENGTH.size + len(blob)
        read, crc = read + len(data), zlib.crc32(data, crc)
        if progress is not None:
            progress(read)
    sink.write(_LENGTH.pack(0) + _END.pack(read, crc))
    return read, written


def decompress_stream(
    source: BinaryIO,
    sink: BinaryIO,
    *,
    model: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """What `compress_stream` or `compress` wrote, back; returns how many bytes were read and written.

    What was written when an error shows is the beginning of the text. progress: called with the bytes
    written so far. Raises FormatError, VersionError, ModelMismatchError or ModelError.
    """
    head = _take(source, len(_HEADER))
    if head[: len(MAGIC)] != MAGIC:
        blob = head + source.read()
        data = decompress(blob, model=model)
        sink.write(data)
        return len(blob), len(data)
    if len(head) < len(_HEADER):
        raise FormatError("stream: ends within its header: truncated")
    if head[-1] != _VERSION:
        raise VersionError(f"stream of format {head[-1]}: this release reads {_VERSION}; upgrade colazip")
    read, written, crc = len(head), 0, 0
    for blob in _blobs(source):
        data = decompress(blob, model=model)
        sink.write(data)
        sink.flush()
        written, crc = written + len(data), zlib.crc32(data, crc)
        read += _LENGTH.size + len(blob)
        if progress is not None:
            progress(written)
    if (written, crc) != _END.unpack(_need(source, _END.size)):
        raise FormatError("stream: damaged, its parts don't add up to the text that was compressed")
    if source.read(1):
        raise FormatError("stream: damaged, there are bytes behind its end")
    return read + _LENGTH.size + _END.size, written


def _frames(source: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """The input in pieces, cut behind a line end or a space where there is one, and whether each is the
    last; one at least."""
    data = b""
    while True:
        data += _take(source, FRAME_BYTES + 1 - len(data))
        if len(data) <= FRAME_BYTES:
            yield data, True
            return
        window = data[:FRAME_BYTES]
        cut = window.rfind(b"\n", FRAME_BYTES // 2) + 1 or window.rfind(b" ", FRAME_BYTES // 2) + 1
        cut = cut or FRAME_BYTES
        yield data[:cut], False
        data = data[cut:]


def _blobs(source: BinaryIO) -> Iterator[bytes]:
    while length := _LENGTH.unpack(_need(source, _LENGTH.size))[0]:
        if length > _MOST_BYTES:
            raise FormatError(f"stream: damaged, a part of {length} bytes; at most {_MOST_BYTES} can be")
        yield _need(source, length)


def _take(source: BinaryIO, count: int) -> bytes:
    """So many bytes, or what is left: a pipe gives them in pieces."""
    pieces = []
    while count and (piece := source.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _need(source: BinaryIO, count: int) -> bytes:
    data = _take(source, count)
    if len(data) < count:
        raise FormatError("stream: ends before its end mark: truncated")
    return data
