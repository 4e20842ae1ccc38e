"""Archives merged: the same records in order, with their ids and metadata, or one clear refusal."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colazip.archive import Archive, Record
from colazip.archive.writer import GROUP_BLOCKS
from colazip.errors import FormatError, InputError, UsageError
from colazip.layers import BLOCK_BYTES
from tests.plain_codec import PlainCodec
from tests.tiny_model import passages, tiny_codec

CODEC = PlainCodec()


def pack(path: Path, records, **options) -> Path:
    Archive.pack(path, records, codec=options.pop("codec", CODEC), **options)
    return path


def merged(tmp_path: Path, *paths: Path, codec=CODEC, **options) -> Archive:
    Archive.merge(tmp_path / "all.cola", paths, **options)
    return Archive(tmp_path / "all.cola", codec)


def test_records_keep_ids_and_metadata(tmp_path: Path) -> None:
    first = [Record(f"first {i}".encode(), f"a/{i}", {"n": i, "tag": "x"}) for i in range(5)]
    # One record in several blocks and one without metadata; ids that are numbers, of other records too.
    second = [Record(b"y" * (3 * BLOCK_BYTES), "long"), Record(b"", "6", {"n": 2.5}), Record(b"z", "2")]
    third = [Record(b"one more", "9", {"when": "now"})]
    paths = [pack(tmp_path / f"{i}.cola", r) for i, r in enumerate((first, second, third))]
    summary = Archive.merge(tmp_path / "all.cola", paths)
    with Archive(tmp_path / "all.cola", CODEC) as archive:
        assert list(archive) == first + second + third
        assert [archive.metadata(r.id) for r in second] == [r.metadata for r in second]
        assert archive.get("6") == b"" and archive.get("2") == b"z" and archive.get("9") == b"one more"
        counts = archive.verify()
        assert (counts["records"], counts["text_bytes"]) == (9, summary.text_bytes)
        assert summary.file_bytes == (tmp_path / "all.cola").stat().st_size
        assert (summary.records, summary.parts, summary.blocks) == (9, counts["parts"], counts["blocks"])
        assert {hit.id for hit in archive.search("one more", 2)} >= {"9"}
        assert [hit.id for hit in archive.search("first", 9, where="n >= 2")] != []


def test_records_without_ids_are_numbered_on(tmp_path: Path) -> None:
    a, b = pack(tmp_path / "a.cola", ["one", "two"]), pack(tmp_path / "b.cola", ["three", "four", "five"])
    with merged(tmp_path, a, b) as archive:
        assert list(archive.ids()) == list("01234")
        assert archive.get("2") == b"three" and not any(group.named for group in archive.manifest.groups)


def test_ids_that_happen_to_be_numbers_are_kept(tmp_path: Path) -> None:
    """A table with a column of ids 0, 1, 2 stores none, as they say nothing there."""
    table = {"kind": "table", "format": "jsonl", "text_column": "text", "id_column": "id", "name": "a.jsonl"}
    a = pack(tmp_path / "a.cola", [Record(b"one", "x"), Record(b"two", "y")], source=table)
    b = pack(tmp_path / "b.cola", [Record(b"p", "0"), Record(b"q", "1")], source=table | {"name": "b.jsonl"})
    with merged(tmp_path, a, b) as archive:
        assert list(archive.ids()) == ["x", "y", "0", "1"] and archive.get("0") == b"p"
        assert archive.source == {k: v for k, v in table.items() if k != "name"}
    with merged(tmp_path, b, a, overwrite=True) as archive:
        assert list(archive.ids()) == ["0", "1", "x", "y"]
    with pytest.raises(InputError, match=r"b\.cola: record 2: another record has the id '0'"):
        Archive.merge(tmp_path / "twice.cola", [b, b])
    assert not (tmp_path / "twice.cola").exists()


def test_a_source_that_no_longer_holds_is_left_out(tmp_path: Path) -> None:
    kinds = [{"kind": "table", "format": "csv"}, {"kind": "table", "format": "jsonl"}, {"kind": "lines"}]
    paths = [pack(tmp_path / f"{i}.cola", [f"text {i}"], source=kind) for i, kind in enumerate(kinds)]
    for chosen in (paths[:2], [paths[2], paths[2]]):
        with merged(tmp_path, *chosen, overwrite=True) as archive:
            assert archive.source == {} and len(archive) == 2


def test_of_one_archive_it_is_a_copy(tmp_path: Path) -> None:
    records = [Record(bytes([65 + i % 26]) * (BLOCK_BYTES - 9), f"r{i}") for i in range(GROUP_BLOCKS + 5)]
    a = pack(tmp_path / "a.cola", records, source={"kind": "file", "name": "a"})
    with merged(tmp_path, a) as archive:
        assert len(archive.manifest.groups) > 1
    assert (tmp_path / "all.cola").read_bytes() == a.read_bytes()


def test_under_the_name_of_one_of_them(tmp_path: Path) -> None:
    a, b = pack(tmp_path / "a.cola", ["one"]), pack(tmp_path / "b.cola", ["two"])
    with pytest.raises(UsageError):
        Archive.merge(a, [a, b])
    totals: list[tuple[int, int]] = []
    Archive.merge(a, [a, b], overwrite=True, progress=lambda *done: totals.append(done))
    with Archive(a, CODEC) as archive:
        assert [record.data for record in archive] == [b"one", b"two"]
    assert [records for records, _ in totals] == [1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.cola", "b.cola"]


def test_what_was_not_packed_alike_is_refused(tmp_path: Path) -> None:
    def embed(texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 8)) + np.arange(8) * [[len(t)] for t in texts]

    stranger = PlainCodec()
    stranger.id = "f" * 32
    a = pack(tmp_path / "a.cola", ["one"])
    for number, (options, said) in enumerate(
        (
            ({"layers": ["search"]}, "another layers"),
            ({"codec": stranger}, "another model"),
            ({"embedder": embed}, "another codebook"),
        )
    ):
        other = pack(tmp_path / f"b{number}.cola", ["two"], **options)
        with pytest.raises(UsageError, match=said) as caught:
            Archive.merge(tmp_path / "all.cola", [a, other])
        assert str(caught.value).startswith(str(other)) and not (tmp_path / "all.cola").exists()
    for none in ([], str(a)):
        with pytest.raises(UsageError, match="list of archives"):
            Archive.merge(tmp_path / "all.cola", none)
    with pytest.raises(UsageError, match="older one"):
        Archive.merge(tmp_path / "all.cola", [Path(__file__).parents[1] / "golden" / "archive-v1.cola"])


def test_more_than_may_be_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    paths = [pack(tmp_path / f"{i}.cola", [f"text {i}"]) for i in range(40)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, hard))
    try:
        with merged(tmp_path, *paths) as archive:
            assert [record.data for record in archive] == [f"text {i}".encode() for i in range(40)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_damage_stops_it(tmp_path: Path) -> None:
    a, b = pack(tmp_path / "a.cola", ["one"] * 50), pack(tmp_path / "b.cola", ["two"] * 50)
    with Archive(b, CODEC) as archive:
        at = archive.manifest.groups[0].sections["gist"].offset
    data = bytearray(b.read_bytes())
    data[at] ^= 1
    b.write_bytes(data)
    with pytest.raises(FormatError, match=r"b\.cola: damaged"):
        Archive.merge(tmp_path / "all.cola", [a, b])
    assert not (tmp_path / "all.cola").exists()


IDS = st.one_of(st.none(), st.integers(0, 12).map(str), st.text(min_size=1, max_size=3))
RECORDS = st.lists(st.tuples(st.text(max_size=20), IDS), max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_any_archives(tmp_path: Path, lists: list[list[tuple[str, str | None]]]) -> None:
    """The ids are those of the archives, unless an archive has none of its own, or the merge is refused."""
    paths, expected, first = [], [], 0
    for number, texts in enumerate(lists):
        path = tmp_path / f"{number}.cola"
        try:
            pack(path, [Record(text.encode(), id) for text, id in texts], overwrite=True)
        except InputError:
            return  # an id twice in one
        with Archive(path, CODEC) as archive:
            own = any(group.named for group in archive.manifest.groups)
            expected += [
                (record.id if own else str(first + i), record.data) for i, record in enumerate(archive)
            ]
        paths.append(path)
        first += len(texts)
    if len({id for id, _ in expected}) < len(expected):
        with pytest.raises(InputError, match="another record has the id"):
            Archive.merge(tmp_path / "all.cola", paths, overwrite=True)
        return
    with merged(tmp_path, *paths, overwrite=True) as archive:
        assert [(record.id, record.data) for record in archive] == expected
        assert [archive.get(id) for id, _ in expected] == [data for _, data in expected]


def test_with_networks(tmp_path: Path) -> None:
    """Gists, search codes and exact layers of a real model, coded in archives of their own."""
    codec = tiny_codec()
    texts = [text.encode() for text in passages()]
    a, b = (pack(tmp_path / f"{i}.cola", texts[i::2], codec=codec) for i in range(2))
    with merged(tmp_path, a, b, codec=codec) as archive, Archive(a, codec) as one, Archive(b, codec) as two:
        assert [record.data for record in archive] == texts[::2] + texts[1::2]
        assert [reading for _, reading in archive.gists()] == [
            r for part in (one, two) for _, r in part.gists()
        ]
        hits = {hit.id: hit.score for hit in archive.search("messages", 5)}
        alone = {hit.id: hit.score for hit in one.search("messages", 5)}
        assert all(hits[id] == pytest.approx(alone[id], abs=1e-6) for id in hits.keys() & alone.keys())
        assert hits
