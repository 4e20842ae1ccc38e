"""Records of an archive -> the files or table they came from, or another form of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from colazip.archive.record import Record
from colazip.errors import FormatError, MissingLayerError, UsageError
from colazip.files import create, inside, new_file, new_folder
from colazip.layers import EXACT, GIST, check_readable
from colazip.tables import FORMATS, SUFFIXES, TableLayout, delimiter_of, writer

if TYPE_CHECKING:
    from colazip.archive import Archive
    from colazip.sampling import Sampling

STDOUT = "-"
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".br")
FILES, TEXT = "files", "text"
OUTPUT_FORMATS = ("auto", FILES, TEXT, *FORMATS)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """Where the records go and how. path: None for standard output (or whatever stream is given)."""

    format: str
    path: str | None
    layout: TableLayout

    @property
    def is_binary(self) -> bool:
        """Whether what is written is never text."""
        return self.format == "parquet"


def plan_output(
    source: Mapping[str, Any], archive_path: str, output: str | None = None, format: str = "auto"
) -> Plan:
    """Decide how to give back what `source`, from an archive's manifest, describes.

    output: a file or folder, `-`, or None: the source's name in the current folder. format: one of
    OUTPUT_FORMATS. Raises UsageError for what doesn't go together, FormatError for a name that is a path.
    """
    if format not in OUTPUT_FORMATS:
        raise UsageError(f"unknown format {format!r}; choose from {', '.join(OUTPUT_FORMATS)}")
    kind = source.get("kind")
    own = {"files": FILES, "file": TEXT, "lines": TEXT}.get(str(kind), str(source.get("format")))
    own = own if own in OUTPUT_FORMATS else "jsonl"
    suffix = SUFFIXES.get(Path(output).suffix.lower()) if output not in (None, STDOUT) else None
    chosen = format
    if format == "auto":
        chosen = suffix if suffix is not None and own in FORMATS else own
    if format == "auto" and own == FILES and suffix is not None:
        raise UsageError(f"{output}: files come back as a folder; name a folder, or add --format {suffix}")
    if output is not None and Path(output).suffix.lower() in _COMPRESSED and chosen != FILES:
        raise UsageError(f"{output}: is not compressed by colazip; write to '-' and through a compressor")
    path = output if output is not None else _default_name(source, archive_path, chosen, own)
    if chosen == FILES and path == STDOUT:
        raise UsageError("files can't be written to standard output; name a folder with -o, or --format text")
    layout = TableLayout.from_source(source)
    if chosen == "csv" and own == "csv" and suffix is None:
        delimiter = layout.delimiter
    else:
        delimiter = delimiter_of(path)
    return Plan(chosen, None if path == STDOUT else path, layout.with_delimiter(delimiter))


def write_records(
    archive: Archive,
    plan: Plan,
    *,
    layer: str = EXACT,
    overwrite: bool = False,
    stdout: BinaryIO | None = None,
    progress: Progress | None = None,
    denoise: bool = False,
    detail: int | None = None,
    missing: float = 0.0,
    options: Sampling | None = None,
    where: str | None = None,
) -> int:
    """Write every record as `plan` says; returns how many. Nothing appears under the name unless all is well.

    layer: EXACT, or GIST for the approximate reading. denoise, detail, missing, options: of the latter,
    as `Archive.gists` takes them. where: only records whose metadata pass, as in `Archive.search`. Raises
    ColazipError or OSError.
    """
    check_readable(layer)
    records = _Counted(_read(archive, layer, denoise, detail, missing, options, where), progress)
    if plan.format == FILES:
        with new_folder(plan.path or "", overwrite) as folder:
            for record in records:
                create(inside(folder, str(record.id)), record.data)
    elif plan.path is None:
        if stdout is None:
            raise UsageError("no stream to write to; name a file")
        _write_stream(stdout, records, plan)
        stdout.flush()
    else:
        with new_file(plan.path, overwrite) as file:
            _write_stream(file, records, plan)
    return records.count


def _default_name(source: Mapping[str, Any], archive_path: str, format: str, own: str) -> str:
    name = source.get("name")
    if name is None:
        # Standard input, or sources without one name: a folder can be named after the archive.
        return Path(archive_path).stem if format == FILES else STDOUT
    if not isinstance(name, str) or name in ("", ".", "..") or os.path.basename(name) != name or "\0" in name:
        raise FormatError("the source name in the manifest is no file name; name the output with -o")
    if format == own:
        return name
    if format == FILES:
        return Path(name).stem
    return str(Path(name).with_suffix(".txt" if format == TEXT else f".{format}"))


def _write_stream(file: BinaryIO, records: Iterator[Record], plan: Plan) -> None:
    if plan.format == TEXT:
        for record in records:
            file.write(record.data)
    else:
        writer(plan.format)(file, records, plan.layout)


def _read(
    archive: Archive,
    layer: str,
    denoise: bool,
    detail: int | None,
    missing: float,
    options: Sampling | None,
    where: str | None,
) -> Iterator[Record]:
    if denoise and layer != GIST:
        raise UsageError("only the gist can be denoised; add --from gist")
    if not (archive.holds_text if layer == EXACT else layer in archive.layers):
        held = ", ".join(archive.layers)
        other = "pack the source again"
        if archive.holds_text:
            other = "its text is exact: leave out --from gist"
        elif GIST in archive.layers:
            other = "read the gist with --from gist"
        raise MissingLayerError(f"{archive.path}: has no layer {layer} (it has {held}); {other}")
    if not denoise:
        yield from archive.records(where=where, layer=layer)
        return
    for key, reading in archive.gists(denoise, detail, missing, options, where=where):
        yield Record(reading.encode("utf-8", "surrogatepass"), key, archive.metadata(key))


class _Counted:
    """Passes records on and reports how many, and how many bytes of text."""

    def __init__(self, records: Iterator[Record], progress: Progress | None) -> None:
        self.records = records
        self.progress = progress
        self.count = 0
        self.size = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> Record:
        record = next(self.records)
        self.count += 1
        self.size += len(record.data)
        if self.progress is not None:
            self.progress(self.count, self.size)
        return record
