"""A model, an archive and a blob of stream version 1: read and written the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from colazip import Archive
from colazip.codec import Codec
from colazip.layers import LAYERS
from colazip.nn import exact
from tests.golden.make_model_v1 import ARCHIVE, BLOB, MODEL, blob_text, records


@contextmanager
def as_is() -> Iterator[None]:
    yield


@contextmanager
def without_the_int8_kernel() -> Iterator[None]:
    """Products in float32, as on a processor without int8 instructions."""
    kept = exact._int8_kernel_wins
    exact._int8_kernel_wins = lambda: False  # type: ignore[assignment]
    try:
        yield
    finally:
        exact._int8_kernel_wins = kept


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
    kept = exact.integer_matmul

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy((a.numpy().astype("int64") @ b.numpy().astype("int64").T).astype("float32"))

    exact.integer_matmul = product
    try:
        yield
    finally:
        exact.integer_matmul = kept


@pytest.mark.parametrize(
    "arithmetic", [as_is, without_the_int8_kernel, with_reduced_precision, with_numpy_products]
)
def test_the_same_bytes_and_the_same_text(arithmetic: Callable, tmp_path: Path) -> None:
    with arithmetic():
        codec = Codec.from_pretrained(MODEL)
        with Archive(ARCHIVE, codec) as archive:
            assert list(archive) == records()
        assert codec.decode([BLOB.read_bytes()]) == [blob_text().encode()]
        Archive.pack(tmp_path / "again.cola", records(), codec=codec)
        assert codec.encode([blob_text()]) == [BLOB.read_bytes()]
    assert model_layers(tmp_path / "again.cola") == model_layers(ARCHIVE)


def model_layers(path: Path) -> list[dict[str, bytes]]:
    """The layers that the model decides; zstd frames may differ between releases of zstd."""
    with Archive(path, Codec.from_pretrained(MODEL)) as archive:
        (group,) = archive.manifest.groups
        return [dict(archive._store.block(0, b, LAYERS).layers) for b in range(group.blocks)]
