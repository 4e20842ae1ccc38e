"""An archive read by several processes: what each needs to open it and read its range of records."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from uuid import uuid4

import pyarrow as pa

from colazip.archive import Archive
from colazip.archive.format import ROWS
from colazip.arrow import Columns, batches, columns_of
from colazip.errors import InputError, UsageError
from colazip.layers import ArchiveCodec, check_readable
from colazip.oneshot import default_codec
from colazip.remote import absolute

BATCH_ROWS = 1024
_ROW_RATIO = 4  # about what row tables are compressed by
_CELL_BYTES = 8  # of offsets and numbers

CodecMaker = Callable[[], ArchiveCodec]


@dataclass(frozen=True)
class CodecChoice:
    """Which codec each process makes for itself, once. Made by `of`.

    model: a model's folder, None for the model in the package. make: what makes the codec in its place; it
    can be pickled. key: stands for that, of which a process gets a copy with each of its tasks.
    """

    model: str | None
    make: CodecMaker | None = field(compare=False)
    key: str

    @classmethod
    def of(cls, model: str | os.PathLike[str] | None, make: CodecMaker | None) -> CodecChoice:
        """model: relative to the current folder, which need not be that of other processes. Raises
        UsageError for both."""
        if model is not None and make is not None:
            raise UsageError("model and codec both say what to read and write with; give one of them")
        if make is not None and not callable(make):
            raise UsageError(f"codec is a function that makes a codec, not a {type(make).__name__}")
        return cls(None if model is None else os.path.abspath(model), make, uuid4().hex if make else "")

    def load(self) -> ArchiveCodec:
        """The codec of this process. Raises ModelError."""
        return _loaded(self)

    def to_read(self) -> ArchiveCodec | None:
        """The same, but None for the model in the package, which an archive loads if it comes to that."""
        return None if self.model is None and self.make is None else self.load()


@lru_cache(maxsize=1)
def _loaded(choice: CodecChoice) -> ArchiveCodec:
    if choice.make is not None:
        return choice.make()
    if choice.model is None:
        return default_codec()
    from colazip.codec import Codec

    return Codec.from_pretrained(choice.model)


@dataclass(frozen=True)
class Scan:
    """What to read of which archive; can be pickled. fingerprint: of the archive. records: in all of it.
    text_bytes, row_bytes: of all of it in memory, the latter a rough guess."""

    path: str
    columns: Columns
    layer: str
    where: str | None
    codec: CodecChoice
    fingerprint: str
    records: int
    text_bytes: int
    row_bytes: int
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)  # may hold secrets

    @classmethod
    def of(
        cls,
        archive: Archive,
        columns: Sequence[str] | None,
        *,
        layer: str,
        where: str | None,
        binary: bool,
        codec: CodecChoice,
    ) -> Scan:
        """The arguments are those of `Archive.to_arrow`, checked here; nothing is decoded. Raises UsageError
        or MissingLayerError."""
        if columns is not None and (isinstance(columns, str) or not columns):
            raise UsageError("columns is a list of names, at least one; None stands for all of them")
        chosen = columns_of(archive, columns, binary=binary)
        if chosen.reads_text:
            archive.records(0, 0, layer=layer)
        else:
            check_readable(layer)
        if where is not None:
            next(archive.ids(where), None)
        manifest = archive.manifest
        rows = sum(group.sections[ROWS].length for group in manifest.groups if ROWS in group.sections)
        return cls(
            absolute(archive.path),
            chosen,
            layer,
            where,
            codec,
            archive._store.fingerprint,
            len(archive),
            manifest.text_bytes,
            rows * _ROW_RATIO,
            archive.storage_options,
        )

    def memory_bytes(self) -> int:
        """About what all the columns of all records take; no less than what a filter lets pass."""
        names = self.columns.schema.names
        text = self.text_bytes if self.columns.reads_text else 0
        own = self.row_bytes if len(names) > self.columns.reads_text else 0
        return text + own + _CELL_BYTES * len(names) * self.records

    def only(self, names: Sequence[str]) -> Scan:
        """The same with some of its columns."""
        schema = pa.schema([self.columns.schema.field(name) for name in names])
        json = self.columns.json.intersection(names)
        return replace(self, columns=replace(self.columns, schema=schema, json=json))

    def digest(self) -> str:
        """The same for scans that give the same."""
        parts = (self.fingerprint, str(self.columns.schema), self.layer, str(self.where))
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def open(self) -> Archive:
        """The archive, with the codec if text is to be read."""
        needed = self.columns.reads_text or self.columns.reads_vectors
        return Archive(
            self.path, self.codec.to_read() if needed else None, storage_options=self.storage_options
        )

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """The records of a range, as `Archive.to_arrow` has them; opens and closes the archive. Raises
        InputError if it isn't the one that the scan was made for any more."""
        with self.open() as archive:
            if archive._store.fingerprint != self.fingerprint:
                raise InputError(f"{self.path}: was changed meanwhile; read it again from the start")
            yield from batches(
                archive,
                self.columns,
                start=start,
                stop=stop,
                where=self.where,
                layer=self.layer,
                rows=BATCH_ROWS,
            )
