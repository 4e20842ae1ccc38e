"""What the table formats share: the choice of columns, the layout kept in an archive's manifest."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Protocol

from colazip.archive.record import Record
from colazip.errors import FormatError, InputError, UsageError


@dataclass(frozen=True)
class Input:
    """An open binary file. name: for messages. length: bytes, None if not known (a pipe)."""

    file: BinaryIO
    name: str
    length: int | None

    def fraction(self) -> float | None:
        """How much was read, 0 to 1; None if the length isn't known."""
        if self.file.closed:
            return 1.0
        return self.file.tell() / self.length if self.length else None


class TableReader(Protocol):
    """One open table."""

    def describe(self) -> dict[str, Any]:
        """JSON-ready: the format, the column names in order, what else writing such a table again needs."""

    def __iter__(self) -> Iterator[Record]:
        """The rows in order, once. Raises InputError naming the line or row."""

    def fraction(self) -> float | None:
        """How much of the table was read, 0 to 1; None if its size isn't known."""


@dataclass(frozen=True)
class ColumnChoice:
    """Which column is the text, and which, if any, the id. called: what the user chooses the two with."""

    text: str = "text"
    id: str | None = None
    called: tuple[str, str] = ("--text-column", "--id-column")

    def __post_init__(self) -> None:
        if self.text == self.id:
            raise UsageError(f"column {self.text!r} can't be both text and id; name two columns")

    def describe(self) -> dict[str, str]:
        """What a manifest says of the choice, for `TableLayout.from_source`."""
        own = {"text_column": self.text}
        return own if self.id is None else {**own, "id_column": self.id}

    def check(self, names: Sequence[str], where: str) -> None:
        """Raises InputError, with the names there are, if one of the two columns is missing."""
        for wanted, option in zip((self.text, self.id), self.called, strict=True):
            if wanted is not None and wanted not in names:
                listed = ", ".join(repr(name) for name in names) or "none"
                raise InputError(f"{where} has no column {wanted!r}; it has {listed}; choose with {option}")

    def refuse_text(self, value: object, where: str) -> InputError:
        """The error for a text cell that holds no text."""
        held = "no text (null)" if value is None else f"{type(value).__name__}, not text"
        return InputError(
            f"{where}: column {self.text!r} holds {held}; fill it, drop the row or {self.called[0]}"
        )


@dataclass(frozen=True)
class TableLayout:
    """How the rows of an archive become a table.

    columns: names in order, text and id among them; metadata columns not named follow in the order met.
    id: None if the ids were not a column. integer_ids: they were integers.
    schema: the Arrow schema of a Parquet source, as `schema_to_text` gives it.
    """

    text: str = "text"
    id: str | None = "id"
    columns: tuple[str, ...] = ("id", "text")
    integer_ids: bool = False
    delimiter: str = ","
    schema: str | None = None

    @classmethod
    def from_source(cls, source: Mapping[str, Any]) -> TableLayout:
        """The layout in a manifest's `source`, or the default where the source was no table.

        Raises FormatError if what stands there can't be a layout: a manifest may come from anywhere.
        """
        if source.get("kind") != "table":
            return cls()
        columns = source.get("columns", [])
        layout = cls(
            text=source.get("text_column", "text"),
            id=source.get("id_column"),
            columns=tuple(columns) if isinstance(columns, list | tuple) else ("",),
            integer_ids=source.get("id_type") == "int",
            delimiter=source.get("delimiter", ","),
            schema=source.get("schema"),
        )
        strings = [layout.text, layout.delimiter, *layout.columns]
        optional = [value for value in (layout.id, layout.schema) if value is not None]
        if not all(isinstance(value, str) for value in strings + optional) or len(layout.delimiter) != 1:
            raise FormatError("the archive's manifest describes its source table wrongly; use --format files")
        return layout

    def with_delimiter(self, delimiter: str) -> TableLayout:
        """The same with another field separator."""
        return replace(self, delimiter=delimiter)

    def row(self, record: Record) -> dict[str, Any]:
        """Column name -> value, in order; the text as bytes."""
        cells: dict[str, Any] = {self.text: record.data}
        if self.id is not None:
            cells[self.id] = self._id(record.id)
        for name, value in record.metadata.items():
            if name in cells:
                raise UsageError(
                    f"metadata column {name!r} has the name of the text or id; use --format files"
                )
            cells[name] = value
        ordered = {name: cells.pop(name) for name in self.columns if name in cells}
        return ordered | cells

    def _id(self, key: str | None) -> Any:
        if not self.integer_ids or key is None:
            return key
        try:
            return int(key)
        except ValueError:
            raise FormatError(
                f"id {key[:80]!r} should be an integer, by the manifest; use --format files"
            ) from None


def row_groups(
    records: Iterable[Record], layout: TableLayout, most: int, most_bytes: int, text: bool = False
) -> Iterator[list[dict[str, Any]]]:
    """Rows in groups of at most so many, and fewer where their text is longer than so many bytes. text: the
    text as str instead of bytes."""
    rows: list[dict[str, Any]] = []
    size = 0
    for record in records:
        row = layout.row(record)
        if text:
            row[layout.text] = decode_text(record, advice="unpack to files")
        rows.append(row)
        size += len(record.data)
        if len(rows) >= most or size >= most_bytes:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def decode_text(record: Record, advice: str = "unpack to files or Parquet") -> str:
    """The text of a record for a format that holds only Unicode. Lone surrogates pass. Raises InputError."""
    try:
        return record.data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise InputError(f"record {record.id!r} is not UTF-8 text; {advice}") from None


def json_text(value: Any, *, indent: int | None = None) -> bytes:
    """UTF-8 JSON. What JSON doesn't know is text: bytes in base64, dates in ISO form, decimals in digits."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, default=_as_text).encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell as an escape only
        return json.dumps(value, indent=indent, default=_as_text).encode()


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
