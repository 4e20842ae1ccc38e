"""Archives written and read back; failures of the writing side happen for real, in processes of their own."""

from __future__ import annotations

import datetime
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colazip.archive import Archive, Record, open_archive
from colazip.archive.blocks import BLOCK_PARTS
from colazip.archive.output import AtomicFile
from colazip.archive.writer import GROUP_BLOCKS, MAX_ROW_BYTES
from colazip.errors import (
    FormatError,
    InputError,
    LockedError,
    MissingLayerError,
    ModelMismatchError,
    RecordNotFoundError,
    UsageError,
)
from colazip.layers import BLOCK_BYTES, EXACT, GIST, LAYERS, PLAIN, SEARCH, Block, in_batches
from colazip.presets import BALANCED, FAST
from tests.plain_codec import PlainCodec

CODEC = PlainCodec()
ROOT = Path(__file__).parents[2]

TEXTS = [
    "the cat sat on the mat",
    "",
    "naïve café, 猫, 🐈‍⬛, \x00\x1b[31m\r\n",
    "stock markets fell sharply on monday",
    "x" * 200_000,
]
RAW = [b"\xff\xfe\x00binary", bytes(range(256)) * 400]


def pack(path: Path, records, **options):
    return Archive.pack(path, records, codec=CODEC, **options)


def read(path: Path) -> list[Record]:
    with Archive(path, CODEC) as archive:
        return list(archive)


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    given = [*TEXTS, *RAW]
    expected = [text.encode() if isinstance(text, str) else text for text in given]
    summary = pack(path, given)
    assert summary.records == len(given)
    assert summary.text_bytes == sum(map(len, expected))
    assert summary.file_bytes == path.stat().st_size
    with open_archive(path, CODEC) as archive:
        assert len(archive) == len(given)
        assert [record.data for record in archive] == expected
        assert [record.id for record in archive] == list(archive.ids()) == [str(i) for i in range(len(given))]
        assert [archive.get(str(i)) for i in range(len(given))] == expected
        assert archive.verify()["decoded"] == [SEARCH, GIST, EXACT]
        assert archive.info()["parts"] == summary.parts > len(given)
        assert (archive.layers, archive.model_id, archive.source) == (LAYERS, CODEC.id, {})
    assert os.listdir(tmp_path) == ["a.cola"]


@given(
    st.lists(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)), max_size=40),
    st.sampled_from([1, 7, 64]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_come_back(tmp_path: Path, data: list[bytes], batch: int) -> None:
    path = tmp_path / "a.cola"
    pack(path, data, overwrite=True, batch_blocks=batch)
    assert [record.data for record in read(path)] == data


def test_empty_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    assert pack(path, []).records == 0
    with Archive(path, CODEC) as archive:
        assert (len(archive), list(archive), list(archive.gists()), archive.search("x")) == (0, [], [], [])
        assert archive.info()["ratio"] == 0
        assert "0" not in archive
        archive.verify()
        archive.strip([EXACT], tmp_path / "b.cola")
    assert len(Archive(tmp_path / "b.cola")) == 0


def many(count: int, size: int) -> list[Record]:
    return [Record((f"record {i} " * size)[:size].encode(), f"id-{i}", {"n": i}) for i in range(count)]


def test_many_groups(tmp_path: Path) -> None:
    records = many(260, 60_000)
    path = tmp_path / "a.cola"
    pack(path, iter(records))
    with Archive(path, CODEC) as archive:
        assert len(archive.manifest.groups) > 3
        assert list(archive) == records
        for i in (0, 63, 64, 65, 199, 259):
            assert archive.get(f"id-{i}") == records[i].data
            assert archive.metadata(f"id-{i}") == {"n": i}
        assert [id for id, _ in archive.gists()] == [record.id for record in records]
        assert archive.search("record 130", k=3)[0].metadata.keys() == {"n"}
        archive.verify()


@pytest.mark.parametrize("together", [1, 2, 3, 1000])
def test_blocks_of_several_groups_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr("colazip.archive.writer.GROUP_BLOCKS", 2)
    records = [*many(7, 40_000), Record(b"q" * 150_000, "long"), Record(b"", "none")]
    path = tmp_path / "a.cola"
    pack(path, iter(records))
    codec = PlainCodec()
    codec.read_batch = together
    with Archive(path, codec) as archive:
        assert len(archive.manifest.groups) > 2
        assert list(archive) == records
        assert [id for id, _ in archive.gists()] == [record.id for record in records]
        assert archive.get("long") == b"q" * 150_000


class CountingCodec(PlainCodec):
    """Counts the blocks that it decodes."""

    decoded = 0

    def decode_blocks(self, blocks: Sequence[Block]) -> list[list[bytes]]:
        self.decoded += len(blocks)
        return super().decode_blocks(blocks)


@given(
    st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 2)), max_size=30),
    st.integers(-35, 35),
    st.one_of(st.none(), st.integers(-35, 35)),
    st.booleans(),
    st.integers(1, 9),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_range_of_records(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[tuple[int, int]],
    start: int,
    stop: int | None,
    filtered: bool,
    together: int,
) -> None:
    monkeypatch.setattr("colazip.archive.writer.GROUP_BLOCKS", 3)
    records = [
        Record((f"record {i} " * size)[:size].encode(), f"id-{i}", {"n": i, "rest": rest})
        for i, (size, rest) in enumerate(sizes)
    ]
    path = tmp_path / "a.cola"
    pack(path, iter(records), overwrite=True)
    codec = CountingCodec()
    codec.read_batch = together
    wanted = records[start:stop]
    condition = None
    if filtered and records:
        wanted, condition = [record for record in wanted if record.metadata["rest"] == 0], "rest = 0"
    with Archive(path, codec) as archive:
        assert list(archive.records(start, stop, where=condition)) == wanted
        needed = {
            (group, block)
            for record in wanted
            for group, row in [archive._locate(str(record.id))]
            for block in archive._slots(group, row)[1]
        }
        assert codec.decoded == len(needed)
        read = archive.records(start, stop, where=condition, layer=GIST)
        assert [record.id for record in read] == [record.id for record in wanted]


@pytest.mark.parametrize("mode", ["semantic", "lexical", "hybrid"])
def test_many_queries_find_what_each_finds(tmp_path: Path, mode: str) -> None:
    records = [
        Record(f"record {i} of words {i % 7} {i % 11}".encode(), f"id-{i}", {"n": i}) for i in range(300)
    ]
    path = tmp_path / "a.cola"
    pack(path, records)
    with Archive(path, CODEC) as archive:
        archive.build_index()
        queries = [f"words {i % 9} record {i}" for i in range(70)]
        queries[3] = " "
        for options in ({}, {"where": "n < 40"}, {"snippets": False}):
            many = list(archive.search_many(iter(queries), 5, mode, **options))
            assert many == [archive.search(query, 5, mode, **options) for query in queries]
            assert many[3] == [] and all(len(hits) == 5 for at, hits in enumerate(many) if at != 3)
        assert list(archive.search_many([])) == []
        with pytest.raises(UsageError, match="a query is a text, not int"):
            list(archive.search_many(["x", 3]))
        with pytest.raises(UsageError, match="a list of texts, not one text"):
            archive.search_many("tax law")
        with pytest.raises(UsageError, match="k must be"):
            archive.search_many(["x"], 0)


def test_records_on_both_sides_of_blocks_that_are_passed_over(tmp_path: Path) -> None:
    records = [Record(data, str(i), {"n": i}) for i, data in enumerate([b"", b"r", b"x" * 65_537, b"", b"s"])]
    pack(tmp_path / "a.cola", records)
    for together in (1, 16):
        codec = PlainCodec()
        codec.read_batch = together
        with Archive(tmp_path / "a.cola", codec) as archive:
            assert list(archive.records(where="n = 1 or n > 2")) == [records[1], *records[3:]]


def test_records_of_a_layer_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    pack(path, ["one", "two"], layers=[SEARCH, GIST])
    with Archive(path, CODEC) as archive:
        assert [record.data for record in archive.records(1, layer=GIST)] == [b"two"]
        with pytest.raises(MissingLayerError, match="no exact layer"):
            archive.records()
        with pytest.raises(UsageError, match="choose exact or gist"):
            archive.records(layer=SEARCH)
        with pytest.raises(UsageError, match="names column 'year'"):
            list(archive.records(layer=GIST, where="year = 1"))


@given(st.integers(0, 200), st.integers(1, 40))
def test_batches_take_in_a_short_tail(count: int, most: int) -> None:
    batches = list(in_batches(iter(range(count)), most))
    assert [item for batch in batches for item in batch] == list(range(count))
    assert all(len(batch) == most for batch in batches[:-1])
    assert not batches or 1 <= len(batches[-1]) <= most + most // 4
    assert len(batches) < 2 or len(batches[-1]) > most // 4 or most < 4


class Counting(PlainCodec):
    """Notes how many blocks each call has."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def encode_blocks(self, blocks: Sequence[Sequence[bytes]], *arguments: Any) -> list[Block]:
        self.calls.append(len(blocks))
        return super().encode_blocks(blocks, *arguments)


def test_blocks_of_several_groups_are_coded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colazip.archive.writer.GROUP_BLOCKS", 2)
    records = many(30, 40_000)  # a block each
    for name, batch, calls in (
        ("one", 1, [1] * 30),
        ("some", 8, [8, 8, 8, 6]),
        ("last", 14, [14, 16]),
        ("all", 99, [30]),
    ):
        codec = Counting()
        Archive.pack(tmp_path / name, iter(records), codec=codec, batch_blocks=batch)
        assert codec.calls == calls
        assert (tmp_path / name).read_bytes() == (tmp_path / "one").read_bytes()
    with Archive(tmp_path / "all", CODEC) as archive:
        assert len(archive.manifest.groups) == 15 and list(archive) == records


def test_rows_do_not_pile_up_behind_blocks_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colazip.archive.writer.GROUP_ROW_BYTES", 10_000)
    monkeypatch.setattr("colazip.archive.writer._HELD_ROW_BYTES", 30_000)
    codec, records = Counting(), [Record(b"x", None, {"n": "y" * 4000}) for _ in range(60)]
    Archive.pack(tmp_path / "a.cola", iter(records), codec=codec, batch_blocks=1000)
    assert len(codec.calls) > 4 and max(codec.calls) < 5
    with Archive(tmp_path / "a.cola", CODEC) as archive:
        assert [record.metadata for record in archive] == [record.metadata for record in records]


def test_a_record_is_in_one_group(tmp_path: Path) -> None:
    long = b"z" * (3 * GROUP_BLOCKS * BLOCK_BYTES)
    path = tmp_path / "a.cola"
    pack(path, [b"a", long, b"b"])
    with Archive(path, CODEC) as archive:
        assert [record.data for record in archive] == [b"a", long, b"b"]
        assert archive.get("1") == long
        assert archive.get("2") == b"b"
        assert archive.gist("0") == "a"
        archive.verify()


def test_groups_end_without_short_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    summary = pack(path, [b"y" * 1000] * 10_000)
    assert summary.blocks == -(-10_000 // (BLOCK_BYTES // 1000))


def test_empty_records_fill_blocks_too(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    assert pack(path, [b""] * (BLOCK_PARTS + 1)).blocks == 2
    assert len(read(path)) == BLOCK_PARTS + 1


def test_same_records_same_bytes(tmp_path: Path) -> None:
    records = many(300, 3_000)
    script = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from tests.unit.test_archive import many, pack
        pack(Path(sys.argv[1]), many(300, 3_000), batch_blocks=int(sys.argv[2]), source={{"b": 1, "a": 2}})
    """
    pack(tmp_path / "0.cola", records, source={"b": 1, "a": 2})
    for name, batch, seed in (("1.cola", "1", "1"), ("7.cola", "7", "2"), ("64.cola", "64", "3")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), tmp_path / name, batch],
            check=True,
            env=environment,
        )
        assert (tmp_path / name).read_bytes() == (tmp_path / "0.cola").read_bytes()


def test_container_is_small(tmp_path: Path) -> None:
    """Everything but the layers: below 3 kB for 4 MB of short records; categories cost bytes, not strings."""
    records = [(f"{i} " * 80)[:300].encode() for i in range(14_000)]
    pack(tmp_path / "a.cola", records)
    sizes = Archive(tmp_path / "a.cola").info()["bytes"]
    assert sizes["container"] + sizes["rows"] < 3_000
    kinds = ("news", "mail", "chat")
    pack(tmp_path / "b.cola", [Record(r, metadata={"kind": kinds[i % 3]}) for i, r in enumerate(records)])
    assert Archive(tmp_path / "b.cola").info()["bytes"]["rows"] < 2_000


# -- ids


def test_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    pack(path, [Record(b"a", "x"), b"b", Record(b"c", "2"), Record(b"d", "007"), Record(b"e", "")])
    with Archive(path, CODEC) as archive:
        assert list(archive.ids()) == ["x", "1", "2", "007", ""]
        assert [archive.get(id) for id in archive.ids()] == [b"a", b"b", b"c", b"d", b"e"]
        assert "x" in archive and "0" not in archive and "7" not in archive and 1 not in archive
        for missing in ("0", "y", "-1", "99", "²", "1" * 5000):
            with pytest.raises(RecordNotFoundError):
                archive.get(missing)


def test_ordinals_cost_nothing(tmp_path: Path) -> None:
    pack(tmp_path / "a.cola", [b"a", b"b"])
    pack(tmp_path / "b.cola", [Record(b"a", "0"), Record(b"b", "1")])
    assert (tmp_path / "a.cola").read_bytes() == (tmp_path / "b.cola").read_bytes()
    assert Archive(tmp_path / "a.cola").info()["bytes"]["rows"] == 0


@pytest.mark.parametrize(
    "records",
    [
        [Record(b"a", "x"), Record(b"b", "x")],
        [Record(b"a"), Record(b"b", "0")],
        [Record(b"a", "1"), Record(b"b")],
        [*many(130, 60_000), Record(b"again", "id-3")],
        [*([b"z" * 60_000] * 130), Record(b"again", "64")],
    ],
)
def test_duplicate_ids(tmp_path: Path, records: list) -> None:
    with pytest.raises(InputError, match="another record has the id"):
        pack(tmp_path / "a.cola", records)
    assert os.listdir(tmp_path) == []


# -- metadata

VALUES = {
    "text": ["a", "ü", ""],
    "number": [1, -5, 2**40],
    "float": [0.5, -1.0, float("inf")],
    "flag": [True, False, True],
    "bytes": [b"\xff", b"", b"a"],
    "mixed": [1, "1", 1.0],
    "int and float": [1, 2.5, True],
    "huge": [2**70, -(2**64), 0],
    "nested": [{"a": [1, None]}, [], {}],
    "surrogate": ["\ud800", "a", "b"],
    "none": [None, None, None],
    "some none": [None, 3, 4],
    "date": [datetime.date(2024, 2, 29), None, datetime.date(1, 1, 1)],
    "time": [datetime.datetime(2024, 1, 1, 12, 0, 0, 123), datetime.datetime(1970, 1, 1), None],
    "zone": [datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)] * 3,
    "decimal": [Decimal("1.50"), Decimal("-3.25"), None],
}


@pytest.mark.parametrize("name", VALUES)
def test_metadata_comes_back(tmp_path: Path, name: str) -> None:
    values = VALUES[name]
    given = [{name: value} for value in values]
    if name not in ("date", "time", "decimal"):  # beyond JSON, a column has None or lacks keys, not both
        given.append({})
    path = tmp_path / "a.cola"
    pack(path, [Record(b"x", metadata=item) for item in given])
    back = [dict(record.metadata) for record in read(path)]
    assert back == given
    assert [type(item[name]) for item in back[:3]] == [type(value) for value in values]
    with Archive(path, CODEC) as archive:
        assert [archive.metadata(str(i)) for i in range(len(given))] == given


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(st.dictionaries(st.sampled_from(["a", "b", "c", "\udcff", ""]), JSON, max_size=4), max_size=8)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_metadata_comes_back(tmp_path: Path, metadata: list[dict]) -> None:
    path = tmp_path / "a.cola"
    pack(path, [Record(b"x", metadata=item) for item in metadata], overwrite=True)
    back = [record.metadata for record in read(path)]
    assert back == metadata and repr(back) == repr(
        [dict(zip(b, map(m.get, b), strict=True)) for b, m in zip(back, metadata, strict=True)]
    )


def test_as_many_keys_as_records(tmp_path: Path) -> None:
    metadata = [{f"key {i}": i, "shared": "s"} for i in range(400)]
    pack(tmp_path / "a.cola", [Record(b"x", metadata=item) for item in metadata])
    assert [record.metadata for record in read(tmp_path / "a.cola")] == metadata


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, [object()], 10**5000], ids=["object", "set", "list", "int"]
)
def test_unfit_metadata(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match="'k'"):
        pack(tmp_path / "a.cola", [Record(b"x", metadata={"k": value})])


def test_unfit_records(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    for record, error in [
        (3, UsageError),
        (Record("text"), UsageError),  # type: ignore[arg-type]
        (Record(b"", 3), UsageError),  # type: ignore[arg-type]
        (Record(b"", "\ud800"), InputError),
        ("\ud800", InputError),
        (Record(b"", metadata={1: 2}), InputError),  # type: ignore[dict-item]
        (Record(b"", metadata=[1]), UsageError),  # type: ignore[arg-type]
        (Record(b"", metadata={"a": "b" * MAX_ROW_BYTES}), InputError),
    ]:
        with pytest.raises(error):
            pack(path, [b"fine", record])
    assert os.listdir(tmp_path) == []


# -- layers and models


def test_layers(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    pack(path, [*TEXTS[:4], RAW[0]], layers=(GIST, SEARCH))
    with Archive(path, CODEC) as archive:
        assert archive.layers == (SEARCH, GIST)
        assert archive.gist("3") == TEXTS[3][:40]
        assert next(archive.gists()) == ("0", TEXTS[0])
        assert archive.search("cat")[0].snippet == TEXTS[0]
        for call in (lambda: archive.get("0"), lambda: next(iter(archive))):
            with pytest.raises(MissingLayerError):
                call()
        assert archive.verify()["decoded"] == [SEARCH, GIST]
    pack(path, TEXTS, layers=[SEARCH], overwrite=True)
    with Archive(path, CODEC) as archive:
        assert archive.search("cat")[0].snippet == ""
        with pytest.raises(MissingLayerError):
            archive.gist("0")
    for layers in ([], [EXACT], [SEARCH, EXACT], [PLAIN], [GIST, PLAIN], ["nonsense"], "gist"):
        with pytest.raises(UsageError):
            pack(path, [], layers=layers, overwrite=True)


def test_strip(tmp_path: Path) -> None:
    records = [*many(200, 30_000), Record(RAW[0], "raw")]
    path = tmp_path / "a.cola"
    pack(path, records, source={"from": "here"})
    pack(tmp_path / "gist.cola", records, source={"from": "here"}, layers=[SEARCH, GIST])
    with Archive(path, CODEC) as archive:
        archive.strip([EXACT], tmp_path / "b.cola")
        archive.strip([SEARCH], tmp_path / "c.cola")
        with pytest.raises(UsageError, match="gist"):
            archive.strip([GIST], tmp_path / "d.cola")
        for layers in ([], ["plain"], LAYERS, "exact"):
            with pytest.raises(UsageError):
                archive.strip(layers, tmp_path / "d.cola")
        with pytest.raises(UsageError, match="exists"):
            archive.strip([EXACT], path)
        archive.strip([EXACT], path, overwrite=True)  # onto itself, while it is open
        assert list(archive) == records
    assert (tmp_path / "b.cola").read_bytes() == (tmp_path / "gist.cola").read_bytes() == path.read_bytes()
    with Archive(path, CODEC) as archive, pytest.raises(MissingLayerError):
        archive.strip([EXACT], tmp_path / "d.cola")
    assert read(tmp_path / "c.cola") == records
    assert not (tmp_path / "d.cola").exists()


@pytest.mark.parametrize("preset", [FAST, BALANCED])
def test_a_preset_without_gist(tmp_path: Path, preset: str) -> None:
    records = [*many(60, 3_000), Record(RAW[0], "raw"), Record(b"", "empty")]
    path = tmp_path / "a.cola"
    pack(path, records, preset=preset)
    with Archive(path, CODEC) as archive:
        assert archive.layers == (SEARCH, PLAIN) and archive.holds_text
        assert list(archive) == records
        assert archive.get("raw") == RAW[0]
        info = archive.info()
        assert info["layers"] == [SEARCH, PLAIN]
        assert info["bytes"][PLAIN] > 0 == info["bytes"][GIST] == info["bytes"][EXACT]
        assert archive.verify()["decoded"] == [SEARCH, PLAIN]
        assert archive.search(records[3].data.decode(), 1)[0].snippet
        for call in (archive.gist, archive.regenerate, lambda _: next(archive.gists())):
            with pytest.raises(MissingLayerError, match="search, plain"):
                call("raw")
        with pytest.raises(MissingLayerError):
            archive.strip([EXACT], tmp_path / "b.cola")
        archive.strip([SEARCH], tmp_path / "text.cola")
        archive.strip([PLAIN], tmp_path / "search.cola")
        with pytest.raises(UsageError):
            archive.strip([SEARCH, PLAIN], tmp_path / "b.cola")
    pack(tmp_path / "text2.cola", records, preset=preset, layers=[PLAIN])
    assert (tmp_path / "text.cola").read_bytes() == (tmp_path / "text2.cola").read_bytes()
    assert read(tmp_path / "text.cola") == records
    with Archive(tmp_path / "search.cola", CODEC) as archive:
        assert archive.layers == (SEARCH,) and not archive.holds_text
        assert archive.search("the", 1)[0].snippet == ""
        with pytest.raises(MissingLayerError):
            archive.get("raw")


def test_presets_and_layers_that_do_not_go_together(tmp_path: Path) -> None:
    for preset, layers in ((FAST, [GIST]), (BALANCED, LAYERS), ("small", [SEARCH, PLAIN]), ("best", None)):
        with pytest.raises(UsageError):
            pack(tmp_path / "a.cola", TEXTS, preset=preset, layers=layers)
    assert not list(tmp_path.iterdir())


def test_other_model(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    pack(path, TEXTS)
    other = PlainCodec("other")
    with pytest.raises(ModelMismatchError) as error:
        Archive(path, other)
    assert CODEC.id[:16] in str(error.value) and other.id[:16] in str(error.value)


def test_search(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    long = "f" * BLOCK_BYTES + "the submarine dived \x1b[31m under the ice " * 30
    pack(path, [Record(TEXTS[0].encode(), "cat", {"k": 1}), TEXTS[3], Record(long.encode(), "sub"), RAW[0]])
    with Archive(path, CODEC) as archive:
        hits = archive.search("a cat on a mat", k=100)
        assert [hit.id for hit in hits].count("sub") == 1 and len(hits) == 3
        assert (hits[0].id, hits[0].metadata, hits[0].snippet) == ("cat", {"k": 1}, TEXTS[0])
        assert hits[0].score >= hits[1].score >= hits[2].score
        sub = archive.search("the submarine dived under the ice", k=1)[0]
        assert sub.id == "sub" and sub.snippet.isprintable() and len(sub.snippet) <= 160
        assert archive.search(" ") == [] and archive.search("\ud800")
        with pytest.raises(UsageError):
            archive.search("cat", k=0)


def test_similar_records(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    tales = [
        f"the {animal} sat on the {place}" for animal in ("cat", "dog", "owl") for place in ("mat", "bed")
    ]
    others = [f"stock markets fell by {n} points on monday" for n in range(6)]
    long = " ".join(["the cat sat on the mat."] * 9000)
    records = [Record(t.encode(), f"r{i}", {"n": i}) for i, t in enumerate(tales + others)]
    pack(path, [*records, Record(long.encode(), "long"), Record(RAW[0], "raw")])
    with Archive(path, CODEC) as archive:
        hits = archive.similar("r0", 6)
        assert {hit.id for hit in hits} == {"long", *(f"r{i}" for i in range(1, 6))}
        assert hits[0].score >= hits[-1].score and hits[0].snippet.split()[0] == "the"
        assert {hit.id for hit in archive.similar("long", 6)} == {f"r{i}" for i in range(6)}
        assert all(hit.metadata["n"] >= 6 for hit in archive.similar("r6", 9, where="n >= 6", snippets=False))
        assert len(archive.similar("r6", 9, where="n >= 6")) == 5
        assert len(archive.similar("r0", 1000)) == len(records)  # all others that have a code
        with pytest.raises(UsageError, match="no search code"):
            archive.similar("raw")
        with pytest.raises(RecordNotFoundError):
            archive.similar("r99")
        with pytest.raises(UsageError, match="k must be"):
            archive.similar("r0", 0)
    pack(path, ["no codes"], layers=[GIST], overwrite=True)
    with Archive(path, CODEC) as archive, pytest.raises(MissingLayerError):
        archive.similar("0")


def test_source(tmp_path: Path) -> None:
    source = {"files": ["a", "b"], "n": 1.5, "none": None, "deep": {"ü": [True]}}
    pack(tmp_path / "a.cola", [], source=source)
    assert Archive(tmp_path / "a.cola").source == source
    for bad in ({"a": {1, 2}}, {"a": 2**70}, {"a": "\ud800"}, {"a": float("nan")}, {"a": "x" * (1 << 20)}):
        with pytest.raises(UsageError, match="source"):
            pack(tmp_path / "b.cola", [], source=bad)


def test_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack(tmp_path / "a.cola", many(100, 10_000), progress=lambda *totals: seen.append(totals), batch_blocks=2)
    assert seen == sorted(seen) and len(seen) > 3 and seen[-1] == (100, 1_000_000)


def test_get_reads_one_block(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    generator = iter(range(10**9))
    pack(path, [" ".join(str(next(generator) * 7919 % 65537) for _ in range(2_000)) for _ in range(300)])
    with Archive(path, CODEC) as archive:
        counted = []
        read_bytes = archive._store.read
        archive._store.read = lambda *a: counted.append(a[1]) or read_bytes(*a)  # type: ignore[method-assign]
        archive.get("150")
        assert sum(counted) < path.stat().st_size / 20


# -- the writing side under stress


def test_failures_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"

    def broken(error: BaseException):
        yield from many(100, 10_000)
        raise error

    for error in (KeyboardInterrupt(), InputError("unreadable"), RuntimeError("bug")):
        with pytest.raises(type(error)):
            pack(path, broken(error))
        assert os.listdir(tmp_path) == []
    pack(path, [b"old"])
    with pytest.raises(KeyboardInterrupt):
        pack(path, broken(KeyboardInterrupt()), overwrite=True)
    assert [record.data for record in read(path)] == [b"old"]
    assert os.listdir(tmp_path) == ["a.cola"]


def test_no_overwrite_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    pack(path, [b"old"])

    def never():
        raise AssertionError("records were read before the refusal")
        yield b""

    with pytest.raises(UsageError, match="exists"):
        pack(path, never())

    def slow():
        (tmp_path / "b.cola").write_bytes(b"somebody else's")
        yield b"new"

    with pytest.raises(UsageError, match="exists"):
        pack(tmp_path / "b.cola", slow())
    assert (tmp_path / "b.cola").read_bytes() == b"somebody else's"
    path.chmod(0o600)
    pack(path, [b"new"], overwrite=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [record.data for record in read(path)] == [b"new"]


def test_an_archive_can_be_packed_onto_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    pack(path, many(20, 1000))
    with Archive(path, CODEC) as archive:
        pack(path, (Record(record.data + b"!", record.id) for record in archive), overwrite=True)
    assert read(path)[3].data.endswith(b"!")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    pack(tmp_path / "real" / "a.cola", [b"old"])
    (tmp_path / "link.cola").symlink_to(tmp_path / "real" / "a.cola")
    pack(tmp_path / "link.cola", [b"new"], overwrite=True)
    assert (tmp_path / "link.cola").is_symlink()
    assert [record.data for record in read(tmp_path / "real" / "a.cola")] == [b"new"]


def test_unfit_places(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "a.cola", Path("/dev/null"), Path("/dev/full/a.cola")):
        with pytest.raises(InputError):
            pack(path, [b"x"], overwrite=True)
    for path in (tmp_path, tmp_path / "missing.cola"):
        with pytest.raises(InputError):
            Archive(path)


def test_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    with AtomicFile(path) as first:
        first.write(b"first")
        with pytest.raises(LockedError):
            pack(path, [b"x"])
        with pytest.raises(LockedError):
            Archive.pack(path, [b"x"], codec=CODEC, overwrite=True)
        first.commit()
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.cola"]


def run(script: str, path: Path) -> subprocess.Popen[str]:
    preamble = f"""
        import os, resource, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from colazip.errors import ColazipError
        from tests.unit.test_archive import many, pack
        path = Path({str(path)!r})
    """
    command = [sys.executable, "-c", textwrap.dedent(preamble) + textwrap.dedent(script)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_disk_full(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    pack(path, [b"old"])
    process = run(
        """
        noise = (os.urandom(50_000) for _ in range(400))
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
        try:
            pack(path, noise, overwrite=True)
        except ColazipError as error:
            print(type(error).__name__, error)
        """,
        path,
    )
    out, err = process.communicate(timeout=600)
    assert out.startswith("InputError") and "can't be written" in out and out.count("\n") == 1, err
    assert [record.data for record in read(path)] == [b"old"]
    assert os.listdir(tmp_path) == ["a.cola"]


def test_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    pack(path, [b"old"])
    process = run(
        """
        def records():
            yield from many(200, 60_000)
            print("written", flush=True)
            time.sleep(600)
        pack(path, records(), overwrite=True)
        """,
        path,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "written\n"
    assert (tmp_path / "a.cola.partial").stat().st_size > 0
    with pytest.raises(LockedError):
        pack(path, [b"new"], overwrite=True)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=600)
    process.stdout.close()
    process.stderr.close()
    assert [record.data for record in read(path)] == [b"old"]
    pack(path, [b"new"], overwrite=True)
    assert [record.data for record in read(path)] == [b"new"]
    assert os.listdir(tmp_path) == ["a.cola"]


def test_decoding_other_text_is_an_error(tmp_path: Path) -> None:
    """A codec that claims the same id but decodes to other text, as a float model does on another machine."""

    class Drifting(PlainCodec):
        def decode_blocks(self, blocks):
            return [
                [part.replace(b"cat", b"dog") for part in parts] for parts in super().decode_blocks(blocks)
            ]

    class Shifting(PlainCodec):
        def decode_blocks(self, blocks):
            return [_shift(parts) for parts in super().decode_blocks(blocks)]

    def _shift(parts):
        return [parts[0][:-1], *parts[1:-1], parts[0][-1:] + parts[-1]] if len(parts) > 1 else parts

    path = tmp_path / "a.cola"
    pack(path, TEXTS)
    for codec in (Drifting(), Shifting()):
        with Archive(path, codec) as archive:
            for call in (lambda a=archive: a.get("0"), lambda a=archive: list(a), archive.verify):
                with pytest.raises(FormatError, match=r"block 0 \(records '0' to '3'\).*other text"):
                    call()


def test_closed_archive(tmp_path: Path) -> None:
    pack(tmp_path / "a.cola", TEXTS)
    archive = Archive(tmp_path / "a.cola", CODEC)
    archive.close()
    with pytest.raises(InputError, match="closed"):
        archive.get("0")


def test_rows_and_ids_by_metadata(tmp_path: Path) -> None:
    records = [Record(b"x", str(n), {"n": n}) for n in range(9)]
    Archive.pack(tmp_path / "a.cola", records, codec=PlainCodec())
    with Archive(tmp_path / "a.cola", PlainCodec()) as archive:
        assert list(archive.rows()) == [(str(n), {"n": n}) for n in range(9)]
        assert list(archive.rows("n > 6")) == [("7", {"n": 7}), ("8", {"n": 8})]
        assert list(archive.ids("n in (2, 4)")) == ["2", "4"]
        for call in (
            lambda: archive.get(1),
            lambda: archive.search(None),
            lambda: archive.search("x", k="3"),
            lambda: archive.search("x", where={}),
        ):
            with pytest.raises(UsageError):
                call()
