"""Reads TensorBoard's event files, as far as scalars go: the other side of colazip/train/tensorboard.py."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from colazip.train.tensorboard import masked_crc


def read_events(data: bytes) -> Iterator[tuple[int, str, float]]:
    """(step, tag, value) of every scalar; AssertionError on a wrong CRC."""
    while data:
        length, crc = struct.unpack_from("<QI", data)
        event = data[12 : 12 + length]
        assert crc == masked_crc(data[:8])
        assert struct.unpack_from("<I", data, 12 + length) == (masked_crc(event),)
        data = data[16 + length :]
        fields = dict(_fields(event))
        for _, value in _fields(fields.get(5, b"")):
            inner = dict(_fields(value))
            yield fields.get(2, 0), inner[1].decode(), inner[2]


def _fields(data: bytes) -> Iterator[tuple[int, object]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
        elif kind == 2:
            size = varint()
            yield key >> 3, data[at : at + size]
            at += size
        else:
            form, size = ("<d", 8) if kind == 1 else ("<f", 4)
            yield key >> 3, struct.unpack_from(form, data, at)[0]
            at += size
