"""pack and unpack of JSON lines, CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colazip.archive import Archive, Record
from tests.cli.conftest import Run
from tests.plain_codec import PlainCodec

ROWS = [
    {"key": 7, "title": "één", "text": "first\r\ntext", "tags": ["a", {"b": None}], "score": 0.1},
    {"title": None, "key": 2**70, "text": "", "score": 3},
    {"key": 9, "text": "lone \ud800 surrogate \0 NUL", "extra": {"n": 2**64}, "score": True},
]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(data: bytes) -> list[dict]:
    return [json.loads(line) for line in data.decode().splitlines()]


def test_json_lines_come_back_value_for_value(run: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", ROWS)
    assert run("pack", "t.jsonl", "-o", "t.cola", "--id-column", "key").code == 0
    assert run("unpack", "t.cola", "-o", "back.jsonl").code == 0
    assert read_jsonl((tmp_path / "back.jsonl").read_bytes()) == ROWS
    assert run("get", "t.cola", "7").text == "first\r\ntext"
    first = (tmp_path / "back.jsonl").read_text().splitlines()[0]
    assert list(json.loads(first)) == list(ROWS[0])


def test_json_lines_from_standard_input(run: Run) -> None:
    lines = b'\xef\xbb\xbf{"body": "a", "n": 1}\n\n  \n{"body": "b", "n": 2}'
    packed = run("pack", "-", "--format", "jsonl", "--text-column", "body", "-o", "t.cola", stdin=lines)
    assert packed.code == 0
    assert read_jsonl(run("unpack", "t.cola").out) == [{"body": "a", "n": 1}, {"body": "b", "n": 2}]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_csv_comes_back_value_for_value(run: Run, tmp_path: Path, suffix: str) -> None:
    rows = [
        ["id", "text", "a,b\tc"],
        ["x", 'quotes " and, commas\tand\ntabs', ""],
        ["y", "", " spaced "],
        ["z", "cr\rlf\r\n", '""'],
    ]
    with open(tmp_path / f"t.{suffix}", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if suffix == "tsv" else ",", quoting=csv.QUOTE_ALL).writerows(rows)
    assert run("pack", f"t.{suffix}", "-o", "t.cola", "--id-column", "id").code == 0
    assert run("unpack", "t.cola", "-o", f"back.{suffix}").code == 0
    with open(tmp_path / f"back.{suffix}", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file, delimiter="\t" if suffix == "tsv" else ",", strict=True)) == rows
    assert run("get", "t.cola", "z").out == b"cr\rlf\r\n"


def test_csv_text_may_be_any_bytes_and_long(run: Run, tmp_path: Path) -> None:
    data = b"n,text\n1,caf\xe9\n2," + b"x" * 300_000 + b"\n"
    (tmp_path / "t.csv").write_bytes(data)
    assert run("pack", "t.csv", "-o", "t.cola").code == 0
    assert run("unpack", "t.cola", "-o", "back.csv").code == 0
    assert (tmp_path / "back.csv").read_bytes() == data


def test_one_column_of_csv(run: Run, tmp_path: Path) -> None:
    data = b'text\na\n""\nb\n'
    (tmp_path / "t.csv").write_bytes(data)
    run("pack", "t.csv", "-o", "t.cola")
    assert run("unpack", "t.cola", "-o", "-").out == data


def parquet_table() -> pa.Table:
    utc = datetime.UTC
    return pa.table(
        {
            "id": pa.array([3, 1, 2], pa.int32()),
            "text": pa.array(["a", "", "ü" * 3], pa.large_string()),
            "n": pa.array([1, None, 3], pa.uint8()),
            "big": pa.array([2**64 - 1, 0, 1], pa.uint64()),
            "half": pa.array([0.5, 1.5, None], pa.float32()),
            "flag": pa.array([True, None, False]),
            "none": pa.nulls(3),
            "at": pa.array(
                [datetime.datetime(2024, 2, 29, 1, 2, 3, 456789, utc), None, None], pa.timestamp("us", "UTC")
            ),
            "zone": pa.array([1, 2, None], pa.timestamp("ms", "Europe/Berlin")),
            "nano": pa.array([1, 2, 3], pa.timestamp("ns")),
            "pandas": pa.array([10**18, None, 10**18 + 1000], pa.timestamp("ns", "Asia/Tokyo")),
            "some": pa.array([1000, 2000, 3001], pa.timestamp("ns")),
            "day": pa.array([datetime.date(1, 1, 1), datetime.date(9999, 12, 31), None]),
            "time": pa.array([1, 2, 3], pa.time64("ns")),
            "clock": pa.array([1, None, 3], pa.time32("ms")),
            "wait": pa.array([1, 2, None], pa.duration("us")),
            "cash": pa.array([Decimal("1.10"), None, Decimal("-3.00")], pa.decimal128(12, 2)),
            "blob": pa.array([b"\xff\0", None, b""], pa.binary()),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "list": pa.array([[1, None], None, []], pa.list_(pa.int16())),
            "deep": pa.array(
                [{"b": b"\xff", "t": [datetime.datetime(2000, 1, 1)]}, None, {"b": None, "t": None}],
                pa.struct([("b", pa.binary()), ("t", pa.list_(pa.timestamp("s")))]),
            ),
        }
    )


@pytest.mark.parametrize("id_column", [None, "id"])
def test_parquet_comes_back_with_its_types(run: Run, tmp_path: Path, id_column: str | None) -> None:
    table = parquet_table()
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    option = ["--id-column", id_column] if id_column else []
    assert run("pack", "t.parquet", "-o", "t.cola", *option).code == 0
    (tmp_path / "t.parquet").unlink()
    assert run("unpack", "t.cola").code == 0
    # Parquet itself does not know seconds, for one: so compare with what it gives back of the table.
    pq.write_table(table, tmp_path / "reference.parquet")
    expected = pq.read_table(tmp_path / "reference.parquet")
    back = pq.read_table(tmp_path / "t.parquet")
    assert back.schema.equals(expected.schema)
    for name in expected.schema.names:
        assert back[name].combine_chunks().equals(expected[name].combine_chunks()), name


def test_parquet_to_standard_output_and_as_other_formats(run: Run, tmp_path: Path) -> None:
    pq.write_table(parquet_table(), tmp_path / "t.parquet")
    run("pack", "t.parquet", "-o", "t.cola")
    piped = run("unpack", "t.cola", "-o", "-")
    assert piped.code == 0
    assert pq.read_table(pa.BufferReader(piped.out)).num_rows == 3
    rows = read_jsonl(run("unpack", "t.cola", "--format", "jsonl", "-o", "-").out)
    assert rows[0]["at"] == "2024-02-29T01:02:03.456789+00:00"
    assert (rows[0]["blob"], rows[0]["cash"], rows[2]["list"]) == ("/wA=", "1.10", [])
    assert run("unpack", "t.cola", "-o", "t.csv").code == 0
    assert (tmp_path / "t.csv").read_bytes().startswith(b"id,text,n,")


def test_times_are_compared_and_shown_as_times(run: Run, tmp_path: Path) -> None:
    at = [datetime.datetime(2024, 5, day, 12) for day in (1, 2, 3)]
    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("ms", "Asia/Tokyo")):
        moments = pa.array(at, pa.timestamp("us", kind.tz)).cast(kind)
        pq.write_table(pa.table({"text": ["a", "b", "c"], "at": moments}), tmp_path / "t.parquet")
        assert run("pack", "t.parquet", "-o", "t.cola", "-f").code == 0
        assert '"at": "2024-05-02T12:00:00' in run("get", "t.cola", "1", "--json").text
        found = run("search", "t.cola", "b", "--where", "at >= '2024-05-02'", "--mode", "semantic", "--json")
        assert sorted(hit["id"] for hit in json.loads(found.text)) == ["1", "2"], found


def test_json_lines_as_parquet(run: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "n": 1}, {"text": "b", "n": 1.5, "m": "x"}])
    run("pack", "t.jsonl", "-o", "t.cola")
    assert run("unpack", "t.cola", "-o", "t.parquet").code == 0
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == [
        {"text": "a", "n": 1.0, "m": None},
        {"text": "b", "n": 1.5, "m": "x"},
    ]


def test_values_that_share_no_type_are_refused_for_parquet(run: Run, fails, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "n": 1}, {"text": "b", "n": "x"}])
    run("pack", "t.jsonl", "-o", "t.cola")
    assert "'n' can't be written as Parquet" in fails("unpack", "t.cola", "-o", "t.parquet", code=2)
    assert not (tmp_path / "t.parquet").exists()


def test_many_rows_in_order(run: Run, tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {n}" for n in range(20_000)], "n": list(range(20_000))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=700)
    assert run("pack", "t.parquet", "-o", "t.cola").code == 0
    assert run("unpack", "t.cola", "-o", "back.parquet").code == 0
    assert pq.read_table(tmp_path / "back.parquet").equals(table)


def test_shards(run: Run, fails, tmp_path: Path) -> None:
    for name, text in [("b", "2"), ("a", "1")]:
        (tmp_path / f"{name}.csv").write_text(f"text,n\n{text},x\n")
    (tmp_path / "c.csv").write_text("text,m\n3,x\n")
    (tmp_path / "readme.md").write_text("not a table")
    assert run("pack", "b.csv", "a.csv", "-o", "t.cola").code == 0
    assert run("unpack", "t.cola").text == "text,n\n2,x\n1,x\n"
    assert "c.csv: its columns" in fails("pack", "a.csv", "c.csv", "-o", "u.cola")
    assert "c.csv: its columns" in fails("pack", ".", "--format", "csv", "-o", "u.cola")
    (tmp_path / "c.csv").unlink()
    assert run("pack", ".", "--format", "csv", "-o", "u.cola").code == 0
    assert run("unpack", "u.cola").text == "text,n\n1,x\n2,x\n"


def test_a_table_kept_as_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'"text"\r\n"a"\r\n')
    run("pack", "t.csv", "--format", "text", "-o", "t.cola")
    assert run("unpack", "t.cola", "-o", "-").out == b'"text"\r\n"a"\r\n'


def test_archives_of_programs_come_as_json_lines(run: Run, tmp_path: Path) -> None:
    records = [Record(b"a", "x", {"when": datetime.date(2024, 1, 1)}), Record(b"b")]
    Archive.pack(tmp_path / "t.cola", records, codec=PlainCodec())
    assert read_jsonl(run("unpack", "t.cola").out) == [
        {"id": "x", "text": "a", "when": "2024-01-01"},
        {"id": "1", "text": "b"},
    ]
    assert run("unpack", "t.cola", "--format", "files", "-o", "d").code == 0
    assert (tmp_path / "d" / "x").read_bytes() == b"a"
    assert run("unpack", "t.cola", "--format", "text", "-o", "-").out == b"ab"


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "table", "format": "jsonl", "text_column": 7},
        {"kind": "table", "format": "csv", "columns": "x", "delimiter": ",,"},
        {"kind": "table", "format": "parquet", "schema": ["x"]},
        {"kind": "table", "format": "parquet", "schema": "!!"},
        {"kind": "table", "format": "parquet", "schema": "AAAA"},
        {"kind": "table", "format": "jsonl", "id_column": "id", "id_type": "int"},
    ],
)
def test_hostile_layouts(fails, tmp_path: Path, source: dict) -> None:
    Archive.pack(tmp_path / "t.cola", [Record(b"a", "no integer")], codec=PlainCodec(), source=source)
    assert "manifest" in fails("unpack", "t.cola", "-o", "out")
    assert not (tmp_path / "out").exists()
