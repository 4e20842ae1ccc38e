"""Records that a classical coder stores better than the model: raw bytes or a zstd frame, whichever is
smaller."""

from __future__ import annotations

import zstandard

from colazip.errors import FormatError

RAW, ZSTD = 0, 1
_LEVEL = 19


class ClassicalCoder:
    """Not safe to share between threads (a zstd context is not)."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(
            level=_LEVEL, write_checksum=False, write_content_size=True
        )
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, data: bytes) -> tuple[int, bytes]:
        """(RAW or ZSTD, bytes), the smaller of the two."""
        frame = self._compressor.compress(data) if len(data) > 16 else data
        return (ZSTD, frame) if len(frame) < len(data) else (RAW, data)

    def decode(self, kind: int, payload: bytes, limit: int) -> bytes:
        """At most `limit` bytes; FormatError on anything else."""
        if kind == RAW:
            data = payload
        elif kind == ZSTD:
            try:
                size = zstandard.frame_content_size(payload)
                if not 0 <= size <= limit:
                    raise FormatError(f"a zstd frame says it holds {size} bytes, at most {limit} can be")
                data = self._decompressor.decompress(payload, max_output_size=limit)
            except zstandard.ZstdError as e:
                raise FormatError(f"a zstd frame is damaged ({e})") from e
        else:
            raise FormatError(f"unknown kind {kind} of a plain record")
        if len(data) > limit:
            raise FormatError(f"a plain record of {len(data)} bytes, at most {limit} can be")
        return data
