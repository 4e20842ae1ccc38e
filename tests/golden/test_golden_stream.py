"""Streams of every released version are read by this one."""

from __future__ import annotations

import io
from pathlib import Path

from colazip.stream import decompress_stream


def test_version_1() -> None:
    """Four blobs, raw, so that no model has a part in it."""
    held, text = Path(__file__).with_name("stream-v1.cz").read_bytes(), io.BytesIO()
    assert decompress_stream(io.BytesIO(held), text) == (len(held), 771)
    assert text.getvalue() == bytes(range(256)) * 3 + b"end"
