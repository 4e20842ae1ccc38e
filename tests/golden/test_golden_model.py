"""A model, an archive and blobs of stream version 3: read and written the same on every machine. Those of
versions 1 and 2 are refused in plain words."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import zstandard

from colazip import Archive
from colazip.codec import Codec
from colazip.errors import FormatError, ModelMismatchError
from colazip.layers import GIST, LAYERS, PLAIN, SEARCH
from colazip.nn import exact, loading
from colazip.nn.loading import operation_by_operation
from tests.golden.make_model_v3 import (
    ARCHIVE,
    BLOBS,
    BRIEF,
    HERE,
    MODEL,
    PASSAGE_TOKENS,
    SHARE,
    blob_text,
    brief_text,
    records,
)

OLD = pytest.mark.parametrize("version, model", [(1, "85930d7e"), (2, "7952d55e")])


@contextmanager
def as_is() -> Iterator[None]:
    yield


@contextmanager
def compiled() -> Iterator[None]:
    """In loops for the CPU at hand, as if there had been much work before."""
    before, loading._expected = loading._expected, 1 << 20
    try:
        assert exact.exact_kernels(torch.device("cpu")) is not None and loading.compiled_loops() is not None
        yield
    finally:
        loading._expected = before


@contextmanager
def without_the_int8_kernel() -> Iterator[None]:
    """Products in float32, as on a processor without int8 instructions."""
    kept = exact.int8_kernel_wins
    exact.int8_kernel_wins = lambda: False  # type: ignore[assignment]
    try:
        yield
    finally:
        exact.int8_kernel_wins = kept


@contextmanager
def with_reduced_precision() -> Iterator[None]:
    """torch may multiply float32 matrices through bfloat16: the integers fit, so nothing may change."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with without_the_int8_kernel():
            yield
    finally:
        torch.set_float32_matmul_precision(kept)


@contextmanager
def with_numpy_products() -> Iterator[None]:
    """NumPy's 64-bit integers as a second implementation of the exact product."""
    kept = exact.integer_product

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy((a.numpy().astype("int64") @ b.numpy().astype("int64").T).astype("float32"))

    exact.integer_product = product
    try:
        with operation_by_operation():
            yield
    finally:
        exact.integer_product = kept


IN_ANY_ARITHMETIC = pytest.mark.parametrize(
    "arithmetic",
    [
        as_is,
        compiled,
        operation_by_operation,
        without_the_int8_kernel,
        with_reduced_precision,
        with_numpy_products,
    ],
)


@IN_ANY_ARITHMETIC
def test_the_same_bytes_and_the_same_text(arithmetic: Callable, tmp_path: Path) -> None:
    with arithmetic():
        codec = Codec.from_pretrained(MODEL)
        with Archive(ARCHIVE, codec) as archive:
            assert list(archive) == records()
        blobs = [path.read_bytes() for path in BLOBS]
        assert codec.decode(blobs) == [blob_text().encode()] * len(blobs)
        again = Codec(codec.model, passage_tokens=PASSAGE_TOKENS)
        Archive.pack(tmp_path / "again.cola", records(), codec=again)
        for detail, blob in enumerate(blobs):
            assert Codec(codec.model, detail=detail).encode([blob_text()]) == [blob]
    assert model_layers(tmp_path / "again.cola") == model_layers(ARCHIVE)


def test_a_brief_is_read_and_written_the_same() -> None:
    blob = BRIEF.read_bytes()
    for implementation in ("numpy", "torch"):
        codec = Codec.from_pretrained(MODEL, implementation=implementation)
        (words,) = codec.read([blob])
        assert (
            words == "of one in at that can is for and be by is can at so that of be its is is can a in of be"
        )
        assert Codec(codec.model, brief=SHARE).encode([brief_text()], (SEARCH, GIST)) == [blob]


def model_layers(path: Path) -> list[dict[str, bytes]]:
    """The layers that the model decides; zstd frames may differ between releases of zstd."""
    with Archive(path, Codec.from_pretrained(MODEL)) as archive:
        (group,) = archive.manifest.groups
        return [dict(archive._store.block(0, b, LAYERS).layers) for b in range(group.blocks)]


def test_the_golden_archive_has_text_and_plain_parts_in_one_block() -> None:
    """Or it would say nothing of how they meet."""
    with Archive(ARCHIVE, Codec.from_pretrained(MODEL)) as archive:
        block = archive._store.block(0, 0, (*LAYERS, PLAIN))
    assert set(block.layers) == {*LAYERS, PLAIN}
    plain = Codec.from_pretrained(MODEL).plain_slots(block).tolist()
    # Noise is plain, and so is the text said twenty times over; the same text after it is not.
    assert {13, 16} <= set(plain) and {3, 17, 18}.isdisjoint(plain)


def test_both_implementations_read_them() -> None:
    one, other = (Codec.from_pretrained(MODEL, implementation=name) for name in ("numpy", "torch"))
    blobs = [path.read_bytes() for path in BLOBS]
    assert all(blob[2] & 1 for blob in blobs)  # coded by the model
    for codec in (one, other):
        assert codec.decode(blobs) == [blob_text().encode()] * len(blobs)
        with Archive(ARCHIVE, codec) as archive:
            assert list(archive) == records()
    assert one.read(blobs) == other.read(blobs)


@pytest.mark.parametrize("version", [1, 2])
def test_plain_blobs_of_older_versions_are_read(version: int) -> None:
    codec = Codec.from_pretrained(MODEL)
    text = b"said again and again; " * 20
    frame = zstandard.ZstdCompressor(level=19, write_checksum=False).compress(text)
    # Version 1 kept the magic number of frames, and left the byte that names it out of the checksum.
    for kind, payload, record in ((0, b"short", b"short"), (1, frame if version == 1 else frame[4:], text)):
        first = bytes([version << 4 | kind << 1])
        checksum = zlib.crc32((b"" if version == 1 else first) + payload).to_bytes(4, "little")
        blob = b"\xc0\x1a" + first + checksum + payload
        assert codec.decode([blob]) == [record] and codec.read([blob]) == [record.decode()]
        with pytest.raises(FormatError, match="damaged"):
            codec.decode([blob[:-1] + bytes([blob[-1] ^ 1])])


@OLD
def test_older_blobs_are_refused(version: int, model: str) -> None:
    codec = Codec.from_pretrained(MODEL)
    blob = (HERE / f"model-v{version}.blob").read_bytes()
    for call in (codec.decode, codec.read):
        with pytest.raises(
            ModelMismatchError, match=f"model {model}….*this one is " + codec.id[:8]
        ) as caught:
            call([blob])
        assert "\n" not in str(caught.value)


@OLD
def test_older_archives_are_refused(version: int, model: str) -> None:
    codec = Codec.from_pretrained(MODEL)
    with pytest.raises(ModelMismatchError, match="model") as caught:
        Archive(HERE / f"model-v{version}.cola", codec)
    message = str(caught.value)
    assert model in message and codec.id[:8] in message and "\n" not in message


@OLD
def test_older_archives_still_show_what_needs_no_model(version: int, model: str) -> None:
    with Archive(HERE / f"model-v{version}.cola") as archive:
        assert list(archive.ids())[:16] == [r.id for r in records()[:16]]
        assert archive.metadata("r3") == records()[3].metadata
        assert archive.model_id.startswith(model)
