"""Text that no network codes: raw bytes or a zstd frame, whichever is smaller.

A model folder may hold a zstd dictionary trained on the model's own training text; frames that use it are a
kind of their own. Frames are stored without their magic number, four bytes that would be the same in each.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import zstandard

from colazip.errors import FormatError
from colazip.layers import BLOCK_BYTES, BLOCK_PARTS
from colazip.wire import Reader, varints

RAW, ZSTD, ZSTD_DICTIONARY = 0, 1, 2
BEST = 19  # level of zstd where size is all that counts

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class ClassicalCoder:
    """dictionary: a zstd dictionary, or None. Raises ValueError if it isn't one.

    Not safe to share between threads (a zstd context is not).
    """

    def __init__(self, dictionary: bytes | None = None) -> None:
        self._dictionary = None
        if dictionary is not None:
            self._dictionary = zstandard.ZstdCompressionDict(
                dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT
            )
            if not self._dictionary.dict_id():
                raise ValueError("not a zstd dictionary")
        self._compressors: dict[tuple[int, bool], zstandard.ZstdCompressor] = {}
        self._decompressor = zstandard.ZstdDecompressor()
        self._with_dictionary: zstandard.ZstdDecompressor | None = None
        if self._dictionary is not None:
            try:  # one that is damaged inside is refused here, not at the first text
                self._with_dictionary = zstandard.ZstdDecompressor(dict_data=self._dictionary)
                kind, frame = self.encode(b"a" * 64, 1)
                self.decode(kind, frame, 64)
            except (zstandard.ZstdError, FormatError) as e:
                raise ValueError(f"not a zstd dictionary ({e})") from e

    def encode(self, data: bytes, level: int = BEST, *, dictionary: bool = True) -> tuple[int, bytes]:
        """(kind, payload), RAW where zstd saves nothing. dictionary: use it if there is one."""
        used = dictionary and self._dictionary is not None
        if len(data) <= 8:  # a frame's header alone takes about as much
            return RAW, data
        frame = self._compressor(level, used).compress(data)[len(ZSTD_MAGIC) :]
        if len(frame) >= len(data):
            return RAW, data
        return (ZSTD_DICTIONARY if used else ZSTD), frame

    def decode(self, kind: int, payload: bytes, limit: int) -> bytes:
        """At most `limit` bytes; FormatError on anything else."""
        if kind == RAW:
            if len(payload) > limit:
                raise FormatError(f"plain text of {len(payload)} bytes, at most {limit} can be")
            return payload
        if kind not in (ZSTD, ZSTD_DICTIONARY):
            raise FormatError(f"unknown kind {kind} of plain text")
        decompressor = self._decompressor if kind == ZSTD else self._with_dictionary
        if decompressor is None:
            raise FormatError("plain text was coded with a dictionary, and this model has none")
        try:
            size = zstandard.frame_content_size(ZSTD_MAGIC + payload)
            if not 0 <= size <= limit:
                raise FormatError(f"a zstd frame says it holds {size} bytes, at most {limit} can be")
            data = self._decode_frame(payload, decompressor)
        except zstandard.ZstdError as e:
            raise FormatError(f"a zstd frame is damaged ({e})") from e
        return data

    def encode_parts(self, parts: Sequence[bytes], level: int = BEST) -> bytes:
        """Parts of one block as a PLAIN layer: one frame of all, so that each learns from the others."""
        joined = b"".join(parts)
        lengths = varints(map(len, parts))
        kind, payload = self.encode(joined, level)
        return _checksum(lengths + joined) + lengths + bytes([kind]) + payload

    def decode_parts(self, layer: bytes, count: int) -> list[bytes]:
        """The `count` parts of a PLAIN layer; FormatError if it is damaged or holds another number."""
        if not 0 <= count <= BLOCK_PARTS:
            raise FormatError(f"a block of {count} parts, at most {BLOCK_PARTS} can be")
        reader = Reader(layer, "plain layer")
        expected = reader.take(4)
        lengths = [reader.varint(BLOCK_BYTES) for _ in range(count)]
        kind, total = reader.take(1)[0], sum(lengths)
        if total > BLOCK_BYTES:
            raise FormatError("plain layer: more text than a block can hold")
        text = self.decode(kind, reader.rest(), total)
        if len(text) != total or _checksum(varints(lengths) + text) != expected:
            raise FormatError("plain layer: the text does not match its checksum")
        parts, at = [], 0
        for length in lengths:
            parts.append(text[at : at + length])
            at += length
        return parts

    def _compressor(self, level: int, dictionary: bool) -> zstandard.ZstdCompressor:
        found = self._compressors.get((level, dictionary))
        if found is None:
            found = zstandard.ZstdCompressor(
                level=level,
                dict_data=self._dictionary if dictionary else None,
                write_checksum=False,
                write_content_size=True,
                write_dict_id=False,
            )
            self._compressors[level, dictionary] = found
        return found

    @staticmethod
    def _decode_frame(payload: bytes, decompressor: zstandard.ZstdDecompressor) -> bytes:
        # The size that the header states was checked; zstd itself holds the content to it.
        return decompressor.decompress(ZSTD_MAGIC + payload, allow_extra_data=False)


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")
