"""A conditional model, an archive and blobs: read and written the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from colazip import Archive
from colazip.codec import Codec
from colazip.layers import GIST, LAYERS, SEARCH
from tests.golden.make_model_conditional import (
    ARCHIVE,
    BLOB,
    BRIEF,
    CODE_BYTES,
    MODEL,
    PASSAGE_TOKENS,
    SHARE,
)
from tests.golden.make_model_v3 import blob_text, brief_text, records
from tests.golden.test_golden_model import IN_ANY_ARITHMETIC


@IN_ANY_ARITHMETIC
def test_the_same_bytes_and_the_same_text(arithmetic: Callable, tmp_path: Path) -> None:
    with arithmetic():
        codec = Codec.from_pretrained(MODEL)
        with Archive(ARCHIVE, codec) as archive:
            assert archive.manifest.conditional and list(archive) == records()
        assert codec.decode([BLOB.read_bytes()]) == [blob_text().encode()]
        again = Codec(codec.model, passage_tokens=PASSAGE_TOKENS)
        Archive.pack(tmp_path / "again.cola", records(), codec=again)
        assert Codec(codec.model, code_bytes=CODE_BYTES).encode([blob_text()]) == [BLOB.read_bytes()]
        assert Codec(codec.model, brief=SHARE).encode([brief_text()], (SEARCH, GIST)) == [BRIEF.read_bytes()]
    assert layers_of(tmp_path / "again.cola") == layers_of(ARCHIVE)


def test_both_implementations_read_them() -> None:
    both_read(MODEL, ARCHIVE, [BLOB, BRIEF])


def both_read(model: Path, path: Path, blobs: list[Path]) -> None:
    """NumPy and torch: the archive of `records`, its gists and the readings of blobs."""
    read = []
    for implementation in ("numpy", "torch"):
        codec = Codec.from_pretrained(model, implementation=implementation)
        with Archive(path, codec) as archive:
            assert list(archive) == records()
            read.append([*codec.read([blob.read_bytes() for blob in blobs]), *archive.gists()])
    assert read[0] == read[1]


def layers_of(path: Path, model: Path = MODEL) -> list[dict[str, bytes]]:
    """The layers that the model decides."""
    with Archive(path, Codec.from_pretrained(model)) as archive:
        (group,) = archive.manifest.groups
        return [dict(archive._store.block(0, b, LAYERS).layers) for b in range(group.blocks)]
