"""Files, folders, tables and standard input -> records to pack."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from colazip.archive.record import Record
from colazip.errors import InputError, UsageError
from colazip.remote import is_url, named, open_url
from colazip.tables import FORMATS, SUFFIXES, ColumnChoice, Input, TableReader, open_table

STDIN = "-"
# Rows, but of no form that is read as a table.
_NO_TABLES = (".json", *(f".{table}.{form}" for table in FORMATS for form in ("gz", "bz2", "xz", "zst")))
INPUT_FORMATS = ("auto", "text", "lines", *FORMATS)


@dataclass
class Source:
    """Opened sources. A context manager: closes what is still open.

    description: JSON-ready, kept in the archive; tells unpack what to give back. records: each record once;
    the first was read already, so that a wrong source shows before writing.
    """

    description: dict[str, Any]
    records: Iterator[Record]
    fraction: Callable[[], float | None]
    files: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *details: object) -> None:
        self.files.close()


def open_sources(
    paths: Sequence[str],
    *,
    format: str = "auto",
    columns: ColumnChoice | None = None,
    stdin: BinaryIO | None = None,
    exclude: str | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> Source:
    """Open what `paths` name.

    format: one of INPUT_FORMATS; `auto` goes by suffix, and a folder's files are always kept as they are.
    columns: for tables; None: text column `text`, no id column. stdin: what `-` stands for. exclude: a file
    to leave out of folders (the archive that is being written). warn: called for each entry of a folder that
    is left out. Raises InputError (empty, unreadable, not what the format says), UsageError, or OSError as
    `open` does.
    """
    if format not in INPUT_FORMATS:
        raise UsageError(f"unknown format {format!r}; choose from {', '.join(INPUT_FORMATS)}")
    if not paths:
        raise UsageError("nothing to pack; name files, folders or '-'")
    if STDIN in paths and (len(paths) > 1 or stdin is None):
        raise UsageError("'-' can't be combined with other sources; pack it alone")
    kind = _resolve(paths, format)
    folders = [path for path in paths if path != STDIN and os.path.isdir(path)]
    if columns is not None and kind not in FORMATS:
        raise UsageError("only tables have columns; name a format with --format, or a table by its suffix")
    if kind == "text":
        return _checked(_open_files(paths, bool(folders), stdin, exclude, warn), paths)
    listed = _expand(paths, kind, exclude, warn) if folders else list(paths)
    name = None if len(paths) > 1 or folders or paths[0] == STDIN else os.path.basename(named(paths[0]))
    if kind == "lines":
        return _checked(_open_lines(listed, name, stdin), paths)
    return _checked(_open_tables(listed, name, kind, columns or ColumnChoice(), stdin), paths)


def _resolve(paths: Sequence[str], format: str) -> str:
    """`text`, `lines` or one of the table formats."""
    if format != "auto":
        return format
    kinds = {
        "text" if os.path.isdir(path) else SUFFIXES.get(Path(named(path)).suffix.lower(), "text")
        for path in paths
    }
    if len(kinds) > 1:
        raise UsageError(
            "tables and other files don't mix in one archive; pack them apart, or all with --format text"
        )
    return kinds.pop()


def _checked(source: Source, paths: Sequence[str]) -> Source:
    try:
        first = next(source.records, None)
        if first is None:
            raise InputError(f"{', '.join(paths)}: nothing to pack: no records in it; check the source")
    except BaseException:
        source.files.close()
        raise
    source.records = chain([first], source.records)
    return source


# Files as they are, one record each.


def _open_files(
    paths: Sequence[str],
    has_folders: bool,
    stdin: BinaryIO | None,
    exclude: str | None,
    warn: Callable[[str], None],
) -> Source:
    if stdin is not None and paths[0] == STDIN:
        return Source({"kind": "file", "name": None}, _stdin_record(stdin), lambda: None)
    if len(paths) == 1 and not has_folders:
        name = os.path.basename(named(paths[0]))
        if name.lower().endswith(_NO_TABLES):
            warn(
                f"{paths[0]}: packed as one record, as it is; rows are read from .jsonl, .csv, .tsv, .parquet"
            )
        return _file_records([(paths[0], _utf8(name))], {"kind": "file", "name": name})
    found: dict[str, str] = {}
    for path in paths:
        for file, key in _walk(path, "" if len(paths) == 1 else _shown(path), exclude, warn):
            if key in found:
                raise UsageError(f"{found[key]} and {file} would both be record {key!r}; pack them apart")
            found[key] = file
    folder = os.path.basename(os.path.abspath(paths[0])) if len(paths) == 1 else None
    files = [(found[key], key) for key in sorted(found)]
    return _file_records(files, {"kind": "files", "name": folder or None})


def _stdin_record(stdin: BinaryIO) -> Iterator[Record]:
    data = stdin.read()
    if data:
        yield Record(data)


def _file_records(files: Sequence[tuple[str, str]], description: dict[str, Any]) -> Source:
    sizes = [0 if is_url(path) else os.stat(path).st_size for path, _ in files]
    done = 0
    alone = description["kind"] == "file"

    def records() -> Iterator[Record]:
        nonlocal done
        for (path, key), size in zip(files, sizes, strict=True):
            with _open_input(path, None).file as file:
                data = file.read()
            if not data and alone:
                return
            done += size
            yield Record(data, key)

    return Source(description, records(), lambda: done / max(sum(sizes), 1))


def _walk(
    path: str, prefix: str, exclude: str | None, warn: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """(file, record id) of a file, or of everything under a folder, in any order."""
    if not os.path.isdir(path):
        yield path, _utf8(prefix)
        return
    for folder, subfolders, names in os.walk(path, onerror=_raise):
        for name in subfolders:
            if os.path.islink(os.path.join(folder, name)):
                warn(f"{os.path.join(folder, name)}: left out: a link to a folder")
        for name in names:
            file = os.path.join(folder, name)
            if exclude is not None and _is_same(file, exclude):
                continue
            if os.path.islink(file) and not os.path.exists(file):
                warn(f"{file}: left out: a link to nothing")
                continue
            if not stat.S_ISREG(os.stat(file).st_mode):
                warn(f"{file}: left out: neither a file nor a folder")
                continue
            inside = Path(os.path.relpath(file, path)).as_posix()
            yield file, _utf8(f"{prefix}/{inside}" if prefix else inside)


def _shown(path: str) -> str:
    """What stands for a source in record ids if there are several: its path if relative, else its name."""
    if is_url(path):
        if not (name := os.path.basename(named(path))):
            raise InputError(f"{path}: names no file; a folder at a URL can't be packed")
        return name
    normal = os.path.normpath(path)
    if os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir or normal == os.curdir:
        normal = os.path.basename(os.path.abspath(path))
    return Path(normal).as_posix()


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"file name {name!r} is not valid UTF-8, and ids must be; rename it") from None
    return name


def _is_same(file: str, other: str) -> bool:
    return os.path.realpath(file) == os.path.realpath(other)


def _raise(error: OSError) -> None:
    raise error


# One stream of lines or rows.


def _expand(paths: Sequence[str], format: str, exclude: str | None, warn: Callable[[str], None]) -> list[str]:
    """Folders replaced by the files in them that have a suffix of `format`; by all of them for lines."""
    files: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        inside = (file for file, _ in _walk(path, "", exclude, warn))
        files += sorted(
            file for file in inside if format == "lines" or SUFFIXES.get(Path(file).suffix.lower()) == format
        )
    if not files:
        raise InputError(f"{', '.join(paths)}: no {format} files in it; check the folder or --format")
    return files


def _open_input(path: str, stdin: BinaryIO | None) -> Input:
    if path == STDIN and stdin is not None:
        return Input(stdin, "standard input", None)
    if is_url(path):
        remote, size = open_url(path)
        return Input(remote, path, size)
    file = open(path, "rb")  # noqa: SIM115 (closed by the Source)
    status = os.fstat(file.fileno())
    return Input(file, path, status.st_size if stat.S_ISREG(status.st_mode) else None)


def _open_lines(paths: Sequence[str], name: str | None, stdin: BinaryIO | None) -> Source:
    files = ExitStack()
    current: list[Input] = []

    def records() -> Iterator[Record]:
        for path in paths:
            source = _open_input(path, stdin)
            if path != STDIN:
                files.enter_context(source.file)
            current[:] = [source]
            # With its end of line, whichever that is: joined, the records are the file.
            while line := source.file.readline():
                yield Record(line)
            files.close()

    return Source(
        {"kind": "lines", "name": name},
        records(),
        lambda: current[0].fraction() if len(paths) == 1 and current else None,
        files,
    )


def _open_tables(
    paths: Sequence[str], name: str | None, format: str, columns: ColumnChoice, stdin: BinaryIO | None
) -> Source:
    if format == "parquet" and STDIN in paths:
        raise UsageError("Parquet can't be read from a pipe; save it as a file and pack that")
    files = ExitStack()
    current: list[TableReader] = []

    def open_next(path: str) -> TableReader:
        files.close()
        source = _open_input(path, stdin)
        if path != STDIN:
            files.enter_context(source.file)
        if source.length == 0:
            raise InputError(f"{path}: is empty; check the source")
        current[:] = [open_table(format, source, columns)]
        return current[0]

    try:
        first = open_next(paths[0])
    except BaseException:
        files.close()
        raise
    described = first.describe()

    def records() -> Iterator[Record]:
        yield from first
        for path in paths[1:]:
            table = open_next(path)
            # Rows of JSON lines may differ within one file as well.
            if format != "jsonl" and table.describe() != described:
                raise InputError(f"{path}: its columns are not those of {paths[0]}; pack it apart")
            yield from table

    description = {"kind": "table", "name": name, **described, **columns.describe()}
    return Source(description, records(), lambda: current[0].fraction() if len(paths) == 1 else None, files)
