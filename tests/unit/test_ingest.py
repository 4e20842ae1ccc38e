"""Sources to records: ids, bounded reading, what the manifest is told."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colazip.archive import Record
from colazip.errors import InputError, UsageError
from colazip.ingest import open_sources
from colazip.tables import ColumnChoice, TableLayout, writer


def test_nothing_is_read_far_ahead() -> None:
    class Endless(io.RawIOBase):
        """Lines without end, as a pipe gives them."""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:
            buffer[:] = (b'{"text": "x"}\n' * (len(buffer) // 14 + 1))[: len(buffer)]
            return len(buffer)

    for format, expected in (("jsonl", b"x"), ("lines", b'{"text": "x"}\n')):
        # A buffer of whole lines, so that every filling begins with one.
        stdin = io.BufferedReader(Endless(), 14 * 100)
        with open_sources(["-"], format=format, stdin=stdin) as source:
            assert [record.data for record in islice(source.records, 1000)] == [expected] * 1000


def test_descriptions_are_json(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,text\n1,x\n")
    with open_sources([str(tmp_path / "t.csv")], columns=ColumnChoice("text", "a")) as source:
        assert json.loads(json.dumps(source.description)) == {
            "kind": "table",
            "name": "t.csv",
            "format": "csv",
            "columns": ["a", "text"],
            "delimiter": ",",
            "text_column": "text",
            "id_column": "a",
        }
        assert list(source.records) == [Record(b"x", "1", {})]


def test_fraction_grows_to_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * 100)
    with open_sources([str(tmp_path)]) as source:
        seen = [source.fraction() for _ in source.records]
    assert seen == sorted(filter(None, seen))
    assert source.fraction() == 1.0


def test_ids_of_several_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("d/x", "d/e/y", "z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def ids(*paths: str) -> list[str | None]:
        with open_sources(paths) as source:
            return [record.id for record in source.records]

    assert ids("d") == ids("./d/") == ids(str(tmp_path / "d")) == ["e/y", "x"]
    assert ids("d", "z") == ["d/e/y", "d/x", "z"]
    assert ids("./d/e", str(tmp_path / "z")) == ["d/e/y", "z"]
    monkeypatch.chdir(tmp_path / "d")
    assert ids("..", "x") == [f"{tmp_path.name}/d/e/y", f"{tmp_path.name}/d/x", f"{tmp_path.name}/z", "x"]


def test_files_are_closed(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "x"}\n' * 3)
    with open_sources([str(tmp_path / "t.jsonl")]) as source:
        next(source.records)
    with pytest.raises(ValueError, match="closed"):
        list(source.records)


def test_bad_calls() -> None:
    with pytest.raises(UsageError, match="unknown format"):
        open_sources(["x"], format="xml")
    with pytest.raises(UsageError, match="nothing to pack"):
        open_sources([])
    with pytest.raises(UsageError, match="both text and id"):
        ColumnChoice("a", "a")


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=5),
    delimiter=st.sampled_from([".csv", ".tsv"]),
)
def test_csv_round_trip(tmp_path: Path, rows: list[tuple[str, str]], delimiter: str) -> None:
    layout = TableLayout(id=None, columns=("n", "text"), delimiter="\t" if delimiter == ".tsv" else ",")
    records = [Record(text.encode(), None, {"n": n}) for n, text in rows]
    assert reread(tmp_path / f"t{delimiter}", "csv", records, layout) == records


scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | cell
value = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(cell, inner, max_size=3)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.text(max_size=20), st.dictionaries(cell, value, max_size=3)), min_size=1, max_size=4
    )
)
def test_json_lines_round_trip(tmp_path: Path, rows: list[tuple[str, dict]]) -> None:
    records = [
        Record(text.encode("utf-8", "surrogatepass"), None, {k: v for k, v in data.items() if k != "text"})
        for text, data in rows
    ]
    layout = TableLayout(id=None, columns=("text",))
    assert reread(tmp_path / "t.jsonl", "jsonl", records, layout) == records


def reread(path: Path, format: str, records: list[Record], layout: TableLayout) -> list[Record]:
    with open(path, "wb") as file:
        writer(format)(file, iter(records), layout)
    with open_sources([str(path)]) as source:
        return list(source.records)


def test_an_error_in_the_middle_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "x"}\n' * 10 + "{\n")

    def read() -> Iterator[Record]:
        with open_sources([str(tmp_path / "t.jsonl")]) as source:
            yield from source.records

    reader = read()
    assert len(list(islice(reader, 10))) == 10
    with pytest.raises(InputError, match=r"t\.jsonl: line 11: bad JSON"):
        next(reader)
