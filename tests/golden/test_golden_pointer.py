"""A model whose tokens point at others, an archive and a blob: read and written the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from colazip import Archive
from colazip.codec import Codec
from colazip.layers import LAYERS
from tests.golden.make_model_pointer import ARCHIVE, BLOB, MODEL
from tests.golden.make_model_v3 import blob_text, records
from tests.golden.test_golden_conditional import both_read, layers_of
from tests.golden.test_golden_model import IN_ANY_ARITHMETIC


@IN_ANY_ARITHMETIC
def test_the_same_bytes_and_the_same_text(arithmetic: Callable, tmp_path: Path) -> None:
    with arithmetic():
        codec = Codec.from_pretrained(MODEL)
        with Archive(ARCHIVE, codec) as archive:
            assert set(archive.manifest.layers) == set(LAYERS) and list(archive) == records()
        assert codec.decode([BLOB.read_bytes()]) == [blob_text().encode()]
        Archive.pack(tmp_path / "again.cola", records(), codec=codec)
        assert codec.encode([blob_text()]) == [BLOB.read_bytes()]
    assert layers_of(tmp_path / "again.cola", MODEL) == layers_of(ARCHIVE, MODEL)


def test_both_implementations_read_them() -> None:
    both_read(MODEL, ARCHIVE, [BLOB])
