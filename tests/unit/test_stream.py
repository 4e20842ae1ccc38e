"""Long input in frames: round trips, bounded memory, and streams that are cut, changed or joined."""

from __future__ import annotations

import io
import os
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import colazip
from colazip import stream
from colazip.errors import ColazipError, FormatError, VersionError
from colazip.presets import FAST
from colazip.stream import compress_stream, decompress_stream

TEXT = b"".join(b"Line %d of a long report about boats and tides.\n" % n for n in range(4000))


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "FRAME_BYTES", 5000)


def packed(data: bytes) -> bytes:
    sink = io.BytesIO()
    assert compress_stream(io.BytesIO(data), sink, FAST) == (len(data), len(sink.getvalue()))
    return sink.getvalue()


def unpacked(blob: bytes) -> bytes:
    sink = io.BytesIO()
    assert decompress_stream(io.BytesIO(blob), sink) == (len(blob), len(sink.getvalue()))
    return sink.getvalue()


@pytest.mark.usefixtures("small_frames")
def test_round_trip_in_frames() -> None:
    blob = packed(TEXT)
    assert blob.startswith(b"\xc0\x1b\x01") and len(blob) < len(TEXT) / 3
    assert unpacked(blob) == TEXT
    seen: list[int] = []
    compress_stream(io.BytesIO(TEXT), io.BytesIO(), FAST, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == len(TEXT) and len(seen) >= len(TEXT) // 5000
    pieces = [data for data, _ in stream._frames(io.BytesIO(TEXT))]
    assert all(len(p) <= 5000 and p.endswith(b"\n") for p in pieces) and b"".join(pieces) == TEXT


def test_short_input_is_one_blob() -> None:
    for data in (b"", b"short", TEXT):
        assert packed(data) == colazip.compress(data, FAST)
        assert unpacked(packed(data)) == data


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 60), st.integers(1, 80))
def test_any_bytes_in_any_pieces(data: bytes, frame: int, piece: int) -> None:
    class Pipe(io.RawIOBase):
        """Gives what there is in small pieces."""

        def __init__(self, held: bytes) -> None:
            self.left = held

        def read(self, size: int = -1) -> bytes:
            count = len(self.left) if size < 0 else min(size, piece)
            given, self.left = self.left[:count], self.left[count:]
            return given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "FRAME_BYTES", frame)
        sink, back = io.BytesIO(), io.BytesIO()
        compress_stream(Pipe(data), sink, FAST)  # type: ignore[arg-type]
        decompress_stream(Pipe(sink.getvalue()), back)  # type: ignore[arg-type]
    assert back.getvalue() == data


@pytest.mark.usefixtures("small_frames")
def test_damaged_streams() -> None:
    blob = packed(TEXT[:20_000])
    for cut in {*range(60), *range(60, len(blob), 97), len(blob) - 1}:
        with pytest.raises(ColazipError):
            unpacked(blob[:cut])
    for at in (3, 10, len(blob) // 2, len(blob) - 16, len(blob) - 1):
        changed = bytearray(blob)
        changed[at] ^= 1
        with pytest.raises(ColazipError):
            unpacked(bytes(changed))
    with pytest.raises(FormatError, match="behind its end"):
        unpacked(blob + b"x")
    with pytest.raises(FormatError, match="at most"):
        unpacked(blob[:3] + struct.pack("<I", 1 << 31) + blob[7:])
    with pytest.raises(VersionError, match="upgrade"):
        unpacked(b"\xc0\x1b\x07" + blob[3:])
    (length,) = struct.unpack("<I", blob[3:7])
    first, rest = blob[3 : 7 + length], blob[7 + length :]
    for other in (blob[:3] + rest, blob[:3] + first + first + rest):  # a frame lost, a frame twice
        with pytest.raises(FormatError, match="add up"):
            unpacked(other)


@pytest.mark.usefixtures("small_frames")
def test_what_is_done_goes_on_at_once() -> None:
    """A frame that is complete comes out of the other end while the sender still holds the pipe open."""
    to_packer, packer_in = os.pipe()
    to_reader, packer_out = os.pipe()
    with open(to_packer, "rb") as source, open(packer_out, "wb") as sink:
        thread = threading.Thread(target=lambda: (compress_stream(source, sink, FAST), sink.close()))
        thread.start()
        with open(packer_in, "wb", buffering=0) as sender, open(to_reader, "rb") as receiver:
            sender.write(TEXT[:12_000])
            got = io.BytesIO()
            head = receiver.read(3)
            (length,) = struct.unpack("<I", receiver.read(4))
            got.write(colazip.decompress(receiver.read(length)))
            assert head == b"\xc0\x1b\x01" and TEXT.startswith(got.getvalue()) and got.tell() > 2000
            sender.close()
            receiver.read()
        thread.join()


def test_frames_of_the_usual_size_in_bounded_memory(tmp_path) -> None:
    """24 MiB through a reader that remembers how much was ever asked for at once."""
    asked: list[int] = []

    class Long(io.RawIOBase):
        left = 24 << 20

        def read(self, size: int = -1) -> bytes:
            asked.append(size)
            count = min(size, self.left, 1 << 20)
            self.left -= count
            return (b"abcdefg\n" * (count // 8 + 1))[:count]

    with open(tmp_path / "s", "wb") as sink:
        read, _ = compress_stream(Long(), sink, FAST)  # type: ignore[arg-type]
    assert read == 24 << 20 and max(asked) <= stream.FRAME_BYTES + 1
    with open(tmp_path / "s", "rb") as source, open(tmp_path / "t", "wb") as sink:
        assert decompress_stream(source, sink)[1] == read
