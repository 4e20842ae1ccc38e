"""Archives as Arrow record batches."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colazip.archive import Archive, Record
from colazip.errors import ColazipError, FormatError, InputError, UsageError
from colazip.ingest import open_sources
from colazip.layers import GIST, SEARCH
from colazip.tables import ColumnChoice
from tests.plain_codec import PlainCodec

CODEC = PlainCodec()


def packed(path: Path, records: Any, **options: Any) -> Archive:
    Archive.pack(path, records, codec=CODEC, overwrite=True, **options)
    return Archive(path, CODEC)


def test_columns_have_the_types_of_the_metadata(tmp_path: Path) -> None:
    day = datetime.date(2020, 1, 2)
    rows = [
        {"year": 2020, "day": day, "price": Decimal("1.50"), "tags": ["a", "b"], "odd": 1},
        {"year": 2021, "day": day, "price": Decimal("2.25"), "tags": [], "odd": "x"},
        {"day": None},
    ]
    records = [Record(f"text {i}".encode(), f"id-{i}", values) for i, values in enumerate(rows)]
    with packed(tmp_path / "a.cola", records) as archive:
        table = archive.to_arrow().read_all()
    assert table.schema.names == ["id", "text", "year", "day", "price", "tags", "odd"]
    assert table.schema.field("year").type == pa.int64()
    assert table.schema.field("day").type == pa.date32()
    assert pa.types.is_decimal(table.schema.field("price").type)
    assert table.schema.field("tags").type == pa.list_(pa.string())
    assert table.to_pylist() == [
        {"id": "id-0", "text": "text 0", **rows[0], "odd": "1"},
        {"id": "id-1", "text": "text 1", **rows[1], "odd": '"x"'},
        {"id": "id-2", "text": "text 2"} | dict.fromkeys(["year", "day", "price", "tags", "odd"]),
    ]


def test_types_of_several_groups_are_brought_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colazip.archive.writer.GROUP_BLOCKS", 1)
    values: list[Any] = [1, 2.5, None, "text", 4]
    records = [
        Record(b"x" * 70_000, f"{i}", {"same": value if i < 3 else 3, "mixed": value})
        for i, value in enumerate(values)
    ]
    with packed(tmp_path / "a.cola", records) as archive:
        assert len(archive.manifest.groups) == len(values)
        table = archive.to_arrow(["same", "mixed"]).read_all()
    assert table.schema.field("same").type == pa.float64()
    assert table["same"].to_pylist() == [1.0, 2.5, None, 3.0, 3.0]
    assert table["mixed"].to_pylist() == ["1", "2.5", None, '"text"', "4"]


@pytest.mark.parametrize("id_column", [None, "key"])
def test_a_parquet_source_keeps_its_columns(tmp_path: Path, id_column: str | None) -> None:
    source = pa.table(
        {
            "when": pa.array([datetime.datetime(2020, 1, i + 1) for i in range(9)], pa.timestamp("ms")),
            "body": pa.array([f"body {i}" for i in range(9)], pa.large_string()),
            "key": pa.array(range(9), pa.int32()),
            "kind": pa.array(["a", "b", None] * 3).dictionary_encode(),
        }
    )
    pq.write_table(source, tmp_path / "a.parquet")
    with open_sources([str(tmp_path / "a.parquet")], columns=ColumnChoice("body", id_column)) as opened:
        archive = packed(tmp_path / "a.cola", opened.records, source=opened.description)
    with archive:
        table = archive.to_arrow(batch_rows=4).read_all()
        assert archive.to_arrow().read_next_batch().num_rows == 9
        assert archive.to_arrow(["key", "body"], 3, 5).read_all().equals(source.select(["key", "body"])[3:5])
    if id_column is None:
        assert table["id"].to_pylist() == [str(i) for i in range(9)]
        table = table.drop_columns(["id"])
    assert table.equals(source.set_column(3, "kind", source["kind"].cast(pa.string())))


def test_without_the_text_nothing_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [Record(b"text", f"{i}-", {"n": i}) for i in range(10)]
    with packed(tmp_path / "a.cola", records) as archive:
        monkeypatch.setattr(archive, "_decode", None)
        table = archive.to_arrow(["id", "n"], 2, -1, where="n != 5").read_all()
        assert table["n"].to_pylist() == [2, 3, 4, 6, 7, 8]
        assert table["id"].to_pylist() == [f"{i}-" for i in (2, 3, 4, 6, 7, 8)]


def test_vectors_of_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colazip.archive.reader._ROWS", 7)
    monkeypatch.setattr("colazip.archive.writer.GROUP_BLOCKS", 1)
    codec = PlainCodec(passage_bytes=300)
    records: list[Any] = [Record((f"word{i} " * (i * 9)).encode(), f"{i}-", {"n": i}) for i in range(40)]
    records[5] = Record(b"\xff\xfe", "5-", {"n": 5})
    records[6] = Record(b"y " * 40_000, "6-", {"n": 6})
    Archive.pack(tmp_path / "a.cola", records, codec=codec)
    with Archive(tmp_path / "a.cola", codec) as archive:
        monkeypatch.setattr(archive, "_decode", None)
        table = archive.to_arrow(["id", "vector"], batch_rows=9).read_all()
        assert table.schema.field("vector").type == pa.list_(pa.float32(), archive.vector_width)
        found = dict(zip(table["id"].to_pylist(), table["vector"].to_pylist(), strict=True))
        assert list(found) == [f"{i}-" for i in range(40)]
        assert [id for id, vector in found.items() if vector is None] == ["5-"]
        for id, hit in (("8-", "9-"), ("6-", "7-")):
            vector = np.array(found[id], dtype=np.float32)
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
            index, _ = archive._index()
            positions, scores = index.search(vector, 40)
            likeness = dict(zip(index.owners[positions].tolist(), scores.tolist(), strict=True))
            near = {h.id: h.score for h in archive.similar(id, 40, snippets=False)}
            assert near[hit] == pytest.approx(likeness[int(hit[:-1])], abs=1e-5)
        some = archive.to_arrow(["vector", "n"], 3, 30, where="n > 8")
        rows = some.read_all().to_pylist()
        assert [row["n"] for row in rows] == list(range(9, 30))
        assert all(row["vector"] == found[f"{row['n']}-"] for row in rows)
    with packed(tmp_path / "a.cola", [Record(b"x", None, {"vector": 3})]) as archive:
        assert archive.to_arrow(["vector"]).read_all().to_pylist() == [{"vector": 3}]
    archive = packed(tmp_path / "a.cola", ["x"], layers=[GIST])
    with archive, pytest.raises(ColazipError, match="has no search layer"):
        archive.to_arrow(["vector"])
    with packed(tmp_path / "a.cola", []) as archive:
        assert archive.to_arrow(["id", "vector"]).read_all().num_rows == 0


def test_the_gist_of_records(tmp_path: Path) -> None:
    with packed(tmp_path / "a.cola", ["a" * 50, "b \ud800".encode("utf-8", "surrogatepass")]) as archive:
        read = archive.to_arrow(["text"], layer=GIST).read_all()["text"].to_pylist()
        assert read[0] == "a" * 40
    archive = packed(tmp_path / "a.cola", ["a"], layers=[SEARCH])
    with archive, pytest.raises(ColazipError, match="has no gist layer"):
        archive.to_arrow(layer=GIST).read_all()


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    with packed(tmp_path / "a.cola", [b"fine", b"\xff\xfe"]) as archive:
        with pytest.raises(InputError, match=r"record '1' is not UTF-8 text; read the text as bytes"):
            archive.to_arrow().read_all()
        table = archive.to_arrow(binary=True).read_all()
    assert table.schema.field("text").type == pa.binary()
    assert table["text"].to_pylist() == [b"fine", b"\xff\xfe"]


def test_what_can_be_no_table(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.cola", [Record(b"x", None, {"text": 1})])
    with archive, pytest.raises(UsageError, match="'text' has the name of the text or id"):
        archive.to_arrow()
    with packed(tmp_path / "a.cola", ["x"]) as archive:
        with pytest.raises(UsageError, match="has no column 'year'; it has 'id', 'text'"):
            archive.to_arrow(["year"])
        with pytest.raises(UsageError, match="no columns are named"):
            archive.to_arrow([])
        with pytest.raises(UsageError, match="0 rows a batch"):
            archive.to_arrow(batch_rows=0).read_all()
        with pytest.raises(UsageError, match="names column 'year'"):
            archive.to_arrow(where="year = 1").read_all()


def test_a_manifest_that_lies_about_its_table(tmp_path: Path) -> None:
    from colazip.tables.arrow_plain import schema_to_text

    schema = schema_to_text(pa.schema([("n", pa.int64())]))
    source = {"kind": "table", "format": "parquet", "columns": ["n"], "text_column": "t", "schema": schema}
    record = Record(b"x", None, {"n": "text"})
    archive = packed(tmp_path / "a.cola", [record], source=source)
    with archive, pytest.raises(FormatError, match="its table lacks the column 't'"):
        archive.to_arrow()
    schema = schema_to_text(pa.schema([("n", pa.int64()), ("t", pa.string())]))
    archive = packed(tmp_path / "a.cola", [record], source=source | {"schema": schema})
    with archive, pytest.raises(UsageError, match="column 'n' is no int64"):
        archive.to_arrow().read_all()


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=5)
)


@given(
    st.lists(st.tuples(st.text(max_size=20), st.dictionaries(st.sampled_from("abc"), SCALARS)), max_size=20),
    st.integers(1, 7),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_metadata(tmp_path: Path, rows: list[tuple[str, dict[str, Any]]], batch_rows: int) -> None:
    records = [Record(text.encode(), None, values) for text, values in rows]
    with packed(tmp_path / "a.cola", records) as archive:
        batches = list(archive.to_arrow(batch_rows=batch_rows))
    assert all(0 < batch.num_rows <= batch_rows for batch in batches)
    found = [row for batch in batches for row in batch.to_pylist()]
    assert [row["text"] for row in found] == [text for text, _ in rows]
    assert [row["id"] for row in found] == [str(i) for i in range(len(rows))]
    for row, (_, values) in zip(found, rows, strict=True):
        for key, value in values.items():
            assert (row[key] is None) == (value is None) or row[key] == "null"
