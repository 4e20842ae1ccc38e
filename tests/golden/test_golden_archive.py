"""Archives of every released format version are read by this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from colazip.archive import Archive, Record
from colazip.errors import ModelMismatchError
from tests.golden import make_archive_v2 as v2
from tests.golden.make_archive_v1 import RECORDS, SOURCE
from tests.plain_codec import PlainCodec

V1 = Path(__file__).with_name("archive-v1.cola")
V2, V2_EMBEDDER = V1.with_name("archive-v2.cola"), V1.with_name("embedder-v2.cola")


def test_version_1() -> None:
    with Archive(V1, PlainCodec("golden")) as archive:
        assert list(archive) == [Record(r.data, r.id or str(i), r.metadata) for i, r in enumerate(RECORDS)]
        assert archive.get("long") == RECORDS[4].data
        assert archive.gist("second") == RECORDS[1].data.decode()
        assert archive.metadata("first") == {"n": 1, "tags": ["a", "b"]}
        assert archive.source == SOURCE
        assert archive.info()["format"] == 1
        assert archive.search("The first record of the first format.", k=1)[0].id == "first"
        assert archive.verify()["records"] == len(RECORDS)


def test_version_1_is_stripped_to_version_1(tmp_path: Path) -> None:
    """Its tables say less than those of version 2, so what is copied stays what it is."""
    with Archive(V1, PlainCodec("golden")) as archive:
        archive.strip(["gist", "exact"], tmp_path / "s.cola")
        archive.strip(["search"], tmp_path / "t.cola")
        records = list(archive)
    with Archive(tmp_path / "s.cola", PlainCodec("golden")) as archive:
        assert archive.info()["format"] == 1
        assert archive.search("The first record of the first format.", k=1)[0].id == "first"
    with Archive(tmp_path / "t.cola", PlainCodec("golden")) as archive:
        assert list(archive) == records and archive.verify()["records"] == len(records)


def test_version_2() -> None:
    with Archive(V2, v2.CODEC) as archive:
        assert [r.data for r in archive] == [r.data for r in v2.RECORDS]
        hit = archive.search("the lighthouse is dark.", 1)[0]
        assert (hit.id, archive.info()["format"]) == ("story", 2)
        assert hit.span is not None and v2.STORY[slice(*hit.span)].decode() == hit.text
        assert "lighthouse" in hit.text and len(archive.search("story", 99, group=False)) > len(v2.RECORDS)
        archive.verify()


def test_version_2_with_an_embedder() -> None:
    with Archive(V2_EMBEDDER, v2.CODEC, embedder=v2.letters) as archive:
        assert archive.info()["embedder"] == {"name": "letters", "width": 8, "kind": "int8"}
        assert archive.search("Ünïcödé, 猫 and 🐈", 1)[0].score > 0.99
        assert archive.verify()["records"] == len(v2.RECORDS)
    with pytest.raises(ModelMismatchError, match="letters"):
        Archive(V2_EMBEDDER, v2.CODEC, embedder=max)


def test_version_1_is_still_written_so(tmp_path: Path) -> None:
    """Apart from the compression, which may differ with the version of zstd, and the writer's name."""
    Archive.pack(tmp_path / "a.cola", RECORDS, codec=PlainCodec("golden"), source=SOURCE)
    with Archive(V1) as old, Archive(tmp_path / "a.cola") as new:
        counts = [(g.records, g.parts, g.blocks, g.named, list(g.sections)) for g in old.manifest.groups]
        assert counts == [
            (g.records, g.parts, g.blocks, g.named, list(g.sections)) for g in new.manifest.groups
        ]
