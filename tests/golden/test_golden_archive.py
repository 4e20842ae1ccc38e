"""Archives of every released format version are read by this one."""

from __future__ import annotations

from pathlib import Path

from colazip.archive import Archive, Record
from tests.golden.make_archive_v1 import RECORDS, SOURCE
from tests.plain_codec import PlainCodec

V1 = Path(__file__).with_name("archive-v1.cola")


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


def test_version_1_is_still_written_so(tmp_path: Path) -> None:
    """Apart from the compression, which may differ with the version of zstd, and the writer's name."""
    Archive.pack(tmp_path / "a.cola", RECORDS, codec=PlainCodec("golden"), source=SOURCE)
    with Archive(V1) as old, Archive(tmp_path / "a.cola") as new:
        counts = [(g.records, g.parts, g.blocks, g.named, list(g.sections)) for g in old.manifest.groups]
        assert counts == [
            (g.records, g.parts, g.blocks, g.named, list(g.sections)) for g in new.manifest.groups
        ]
