"""Small pieces of the byte format: variable-length integers and a bounded reader."""

from __future__ import annotations

from collections.abc import Iterable

from colazip.errors import FormatError


def varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, low ones first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varints(values: Iterable[int]) -> bytes:
    return b"".join(map(varint, values))


class Reader:
    """Reads a byte string front to back; every read is bounded by what is there, else FormatError."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data) - self._at:
            raise FormatError(f"{self._what}: truncated or damaged")
        self._at += count
        return self._data[self._at - count : self._at]

    def varint(self, limit: int) -> int:
        """One integer of at most `limit`."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                raise FormatError(f"{self._what}: a length of more than 63 bits")
        if value > limit:
            raise FormatError(f"{self._what}: a length of {value}, at most {limit} can be")
        return value

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise FormatError(f"{self._what}: {len(self._data) - self._at} bytes too many")
