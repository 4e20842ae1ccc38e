"""Ranges of an archive's records for tasks that read side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colazip.archive import Archive, Record
from colazip.errors import UsageError
from colazip.layers import EXACT
from tests.plain_codec import PlainCodec

CODEC = PlainCodec()
SIZES = st.sampled_from([0, 300, 20_000, 40_000, 65_536, 70_000, 200_000])


def packed(path: Path, sizes: list[int]) -> Archive:
    records = [Record(bytes([97 + i % 26]) * size) for i, size in enumerate(sizes)]
    Archive.pack(path, records, codec=CODEC, overwrite=True)
    return Archive(path, CODEC)


def decoded_blocks(archive: Archive, monkeypatch: pytest.MonkeyPatch, start: int, stop: int) -> int:
    """How many blocks are decoded for these records."""
    places: list[object] = []
    whole = archive._decode

    def counted(some: object, layers: object) -> object:
        places.extend(some)  # type: ignore[call-overload]
        return whole(some, layers)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(archive, "_decode", counted)
        assert len(list(archive.records(start, stop))) == stop - start
    return len(places)


@given(sizes=st.lists(SIZES, max_size=40), count=st.integers(1, 12), group_blocks=st.sampled_from([1, 3, 64]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranges_are_all_records_and_share_no_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], count: int, group_blocks: int
) -> None:
    monkeypatch.setattr("colazip.archive.writer.GROUP_BLOCKS", group_blocks)
    with packed(tmp_path / "a.cola", sizes) as archive:
        found = archive.ranges(count)
        assert len(found) <= min(count, archive.manifest.blocks)
        assert [i for start, stop in found for i in range(start, stop)] == list(range(len(sizes)))
        assert all(start < stop for start, stop in found)
        decoded = sum(decoded_blocks(archive, monkeypatch, *bounds) for bounds in found)
        if archive.manifest.blocks < 8 * count:  # wider ones may share a block
            assert decoded == archive.manifest.blocks
        assert decoded <= archive.manifest.blocks + len(found)


def test_short_records_break_evenly(tmp_path: Path) -> None:
    with packed(tmp_path / "a.cola", [900] * 2000) as archive:
        assert archive.manifest.blocks == 28
        sizes = [stop - start for start, stop in archive.ranges(4)]
        assert len(sizes) == 4 and max(sizes) < 1.1 * min(sizes)
        assert len(archive.ranges(1000)) == 28
        assert archive.ranges(1) == [(0, 2000)]


def test_records_that_never_begin_with_a_block_are_cut_within_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each block after the first holds the end of one record and the begin of the next.
    monkeypatch.setattr(
        PlainCodec, "split", lambda self, data: [data[i : i + 999] for i in range(0, len(data), 999)]
    )
    with packed(tmp_path / "a.cola", [66_000] * 40) as archive:
        assert archive.manifest.blocks >= 39
        assert len(archive.ranges(4)) == 4
        decoded = [decoded_blocks(archive, monkeypatch, *bounds) for bounds in archive.ranges(4)]
        assert archive.manifest.blocks < sum(decoded) <= archive.manifest.blocks + 3
        assert len(archive.ranges(40)) == 1


def test_an_empty_archive_and_a_wrong_count(tmp_path: Path) -> None:
    with packed(tmp_path / "a.cola", []) as archive:
        assert archive.ranges(3) == []
        with pytest.raises(UsageError, match="0 ranges; ask for 1 or more"):
            archive.ranges(0)


def test_a_filter_reads_the_tables_of_its_range_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colazip.archive.writer.GROUP_BLOCKS", 1)
    records = [Record(b"x" * 65_536, None, {"n": i, **({"late": 1} if i == 9 else {})}) for i in range(10)]
    Archive.pack(tmp_path / "a.cola", records, codec=CODEC)
    with Archive(tmp_path / "a.cola", CODEC) as archive:
        read: set[int] = set()
        tables = archive._store.tables
        monkeypatch.setattr(archive._store, "tables", lambda group: read.add(group) or tables(group))
        assert list(archive.ids("n > 2", 2, 5)) == ["3", "4"]
        assert read == {2, 3, 4}
        assert list(archive.ids("late = 1", 2, 5)) == []
        assert list(archive.ids("late = 1", -1)) == ["9"]
        with pytest.raises(UsageError, match="names column 'never'; the archive has late, n"):
            list(archive.ids("never = 1", 2, 5))
        assert [r.metadata["n"] for r in archive.records(3, 8, where="n < 5", layer=EXACT)] == [3, 4]
