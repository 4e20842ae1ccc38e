"""Scalars as TensorBoard reads them, written without TensorFlow or TensorBoard.

An event file is a row of TFRecords (length, CRC, bytes, CRC), each a protocol-buffer `Event` with a
`Summary` of values; of both only the few fields that scalars need are written here.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecords carry it: rotated and shifted, or a CRC of data with CRCs would be weak."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class EventFile:
    """A new event file in `folder`; several of one folder are shown as one run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.colazip"
        self._append(_double(1, now) + _bytes(3, b"brain.Event:2"))

    def write(self, entry: dict[str, Any]) -> None:
        """The numbers of an entry of `Metrics` at its step; those of a validation under `validation/`."""
        prefix = "validation/" if "validation" in entry else ""
        values = b"".join(
            _bytes(1, _bytes(1, (prefix + name).encode()) + struct.pack("<Bf", 2 << 3 | 5, value))
            for name, value in entry.items()
            if isinstance(value, float)
        )
        if values:
            self._append(
                _double(1, time.time()) + _varint(2 << 3) + _varint(entry["step"]) + _bytes(5, values)
            )

    def _append(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        with self.path.open("ab") as out:
            out.write(length + struct.pack("<I", masked_crc(length)) + event)
            out.write(struct.pack("<I", masked_crc(event)))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _double(field: int, value: float) -> bytes:
    return struct.pack("<Bd", field << 3 | 1, value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
