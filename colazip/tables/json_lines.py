"""JSON lines: one object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, BinaryIO

from colazip.archive.record import Record
from colazip.errors import InputError
from colazip.tables.common import ColumnChoice, Input, TableLayout, decode_text, json_text

UTF8_BOM = b"\xef\xbb\xbf"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:40]!r} is there twice, and one of them would be lost")
    return found


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text[:40]} is too large for a float; write it as a text")
    return value


class JsonLinesReader:
    """Reads rows by line; blank lines are skipped."""

    def __init__(self, source: Input, columns: ColumnChoice) -> None:
        self.source = source
        self.columns = columns
        self.line = 0
        self.id_type: type | None = None
        objects = self._objects()
        self.first = next(objects, None)
        self.objects = objects if self.first is None else chain([self.first], objects)
        if self.first is not None:
            self._record(self.first)

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"format": "jsonl", "columns": list(self.first or [])}
        if self.id_type is int:
            described["id_type"] = "int"
        return described

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self.objects)

    def fraction(self) -> float | None:
        return self.source.fraction()

    def _objects(self) -> Iterator[dict[str, Any]]:
        while line := self.source.file.readline():
            self.line += 1
            if self.line == 1:
                line = line.removeprefix(UTF8_BOM)
            if line.strip():
                yield self._parse(line)

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line.decode(), object_pairs_hook=_object, parse_float=_number)
        except UnicodeDecodeError as error:
            raise self._error(f"invalid UTF-8 at byte {error.start + 1}; convert the file to UTF-8") from None
        except RecursionError:
            raise self._error("JSON nested too deeply; flatten it") from None
        except ValueError as error:  # among them integers of more digits than Python converts
            raise self._error(f"bad JSON: {error}; write one object a line") from None
        if not isinstance(row, dict):
            raise self._error(f"a JSON {type(row).__name__}, not an object; write one object a line")
        return row

    def _record(self, row: Mapping[str, Any]) -> Record:
        where = f"{self.source.name}: line {self.line}"
        self.columns.check(list(row), where)
        text = row[self.columns.text]
        if not isinstance(text, str):
            raise self.columns.refuse_text(text, where)
        apart = (self.columns.text, self.columns.id)
        metadata = {name: value for name, value in row.items() if name not in apart}
        key = None if self.columns.id is None else self._id(row[self.columns.id])
        try:
            json.dumps([key, metadata], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise self._error("a lone surrogate outside the text column; remove it") from None
        # JSON can spell a lone surrogate, UTF-8 can't; `decode_text` takes this form back.
        return Record(text.encode("utf-8", "surrogatepass"), key, metadata)

    def _id(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self._error(f"id column {self.columns.id!r} holds {value!r}; give a string or an integer")
        self.id_type = self.id_type or type(value)
        if type(value) is not self.id_type:
            raise self._error(f"id {value!r} is not of the type of the ids before it; use one type")
        return str(value)

    def _error(self, message: str) -> InputError:
        return InputError(f"{self.source.name}: line {self.line}: {message}")


def write_json_lines(file: BinaryIO, records: Iterable[Record], layout: TableLayout) -> None:
    """One object a line, UTF-8. Raises InputError for a record that is not text."""
    for record in records:
        row = layout.row(record)
        row[layout.text] = decode_text(record)
        file.write(json_text(row) + b"\n")
