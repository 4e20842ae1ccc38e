"""Archives as Ray datasets, and Ray datasets as archives. Needs the extra: pip install 'colazip[ray]'."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from colazip.archive import Archive, PackSummary, Record
from colazip.errors import ColazipError, InputError, UsageError
from colazip.files import check_here
from colazip.integrations.scan import CodecChoice, CodecMaker, Scan
from colazip.layers import EXACT
from colazip.presets import SMALL, choose
from colazip.tables.arrow_plain import has_nanoseconds, is_bytes, is_string
from colazip.tables.arrow_rows import ArrowRows, nanosecond_columns
from colazip.tables.common import ColumnChoice

try:
    import ray
    import ray.data
    from ray.data.block import Block, BlockAccessor, BlockMetadata
    from ray.data.datasource import Datasink, Datasource, ReadTask, WriteResult
except ImportError as error:
    raise ImportError("colazip.integrations.ray needs Ray Data: pip install 'colazip[ray]'") from error

_PART_BYTES = 4 << 20  # of rows that a task packs at least, where there are so many: a group of an archive
_READ_ROWS = 256
_PRUNES = (2, 60)  # the release of Ray from which a read is told which columns a plan needs, and no more
_REMOVALS = 5


def read_archive(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    layer: str = EXACT,
    where: str | None = None,
    binary: bool = False,
    model: str | os.PathLike[str] | None = None,
    codec: CodecMaker | None = None,
    storage_options: Mapping[str, Any] | None = None,
    override_num_blocks: int | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """The records of an archive as a Ray dataset: each read task decodes a range of them.

    columns, layer, where, binary: as of `Archive.to_arrow`. Columns that a plan drops later
    (`select_columns`) are not read either, from Ray 2.60 on; without the text nothing is decoded. Rows come
    in the archive's order if the context says `execution_options.preserve_order`, as ever in Ray. The archive
    must be under the same path on all nodes, or at a URL (storage_options: as of `Archive`), and stay as it
    is until all is read.

    model: folder of another model than the one in the package, on all nodes. codec: instead, a function or
    class that makes the codec, once a worker; it is pickled. override_num_blocks, options: as of
    `ray.data.read_datasource`, such as concurrency; a task computes on one thread unless it is given more
    with num_cpus. Raises what `Archive` and `Archive.to_arrow` do at once; what shows only as texts are
    decoded comes out of Ray, as an exception that is also of colazip's type.
    """
    choice = CodecChoice.of(model, codec)
    with Archive(path, storage_options=storage_options) as archive:
        scan = Scan.of(archive, columns, layer=layer, where=where, binary=binary, codec=choice)
    return ray.data.read_datasource(
        ArchiveDatasource(scan), override_num_blocks=override_num_blocks, **options
    )


class ArchiveDatasource(Datasource):  # type: ignore[misc]
    """What `read_archive` reads from."""

    def __init__(self, scan: Scan) -> None:
        super().__init__()
        self._scan = scan
        self._projection_map: dict[str, str] | None = None

    def estimate_inmemory_data_size(self) -> int:
        return self._projected().memory_bytes()

    def supports_projection_pushdown(self) -> bool:
        # Earlier ones have the read rename columns too, each in a way of its own.
        return tuple(map(int, ray.__version__.split(".")[:2])) >= _PRUNES

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        scan = self._projected()
        with Archive(scan.path, storage_options=scan.storage_options) as archive:
            ranges = archive.ranges(parallelism)
        counts_only = self._projection_map == {}

        def task(start: int, stop: int) -> ReadTask:
            metadata = BlockMetadata(
                num_rows=stop - start if scan.where is None else None,
                size_bytes=scan.memory_bytes() // len(ranges),
                input_files=(scan.path,),
                exec_stats=None,
            )

            def read() -> Iterator[Block]:
                return _read(scan, start, stop, counts_only)

            schema = None if counts_only else scan.columns.schema
            return ReadTask(read, metadata, schema, per_task_row_limit)

        return [task(start, stop) for start, stop in ranges]

    def _projected(self) -> Scan:
        """With the columns that the plan needs; where it only counts rows, with one that is cheap to read."""
        if self._projection_map is None:
            return self._scan
        text = self._scan.columns.layout.text
        cheap = sorted(self._scan.columns.schema.names, key=lambda name: name == text)[:1]
        return self._scan.only(list(self._projection_map) or cheap)


def _read(scan: Scan, start: int, stop: int, counts_only: bool) -> Iterator[Block]:
    _use_own_threads()
    for batch in scan.batches(start, stop):
        table = pa.Table.from_batches([batch])
        # Ray's own way to keep the number of rows of a block without columns.
        yield BlockAccessor.for_block(table).select([]) if counts_only else table


def write_archive(
    dataset: ray.data.Dataset,
    path: str | os.PathLike[str],
    *,
    text_column: str = "text",
    id_column: str | None = None,
    layers: Sequence[str] | None = None,
    preset: str = SMALL,
    overwrite: bool = False,
    model: str | os.PathLike[str] | None = None,
    codec: CodecMaker | None = None,
    concurrency: int | None = None,
    ray_remote_args: dict[str, Any] | None = None,
) -> PackSummary:
    """Write an archive of a Ray dataset's rows, in their order, to `path`, which appears whole or not at all.

    Tasks pack archives of their own into a temporary folder beside `path`; these are then merged, without
    coding anything again. So the folder that `path` is in must be shared by all nodes. A task packs blocks of
    the dataset, at least 4 MiB of rows while there are so many; smaller blocks (`repartition`) make more
    tasks.

    Columns other than text and id become metadata, in types that `read_archive` gives back where all blocks
    agree on them. layers, preset, overwrite: as of `Archive.pack`. model, codec: as of `read_archive`.
    concurrency, ray_remote_args: of the tasks, as `Dataset.write_datasink` has them. Raises UsageError if
    `path` exists and `overwrite` is false; InputError for a column that is missing or of a type that can't be
    kept (maps, tensors, objects), a text or id that is null, duplicate ids, a folder that is not shared; and
    what `Archive.pack` and Ray do.
    """
    check_here(path)
    target = os.path.realpath(path)
    columns = ColumnChoice(text_column, id_column, called=("text_column", "id_column"))
    choose(preset, layers)
    if not overwrite and os.path.lexists(target):
        raise UsageError(f"{target}: exists already; choose another name or ask to overwrite it")
    choice = CodecChoice.of(model, codec)
    with _parts_folder(target) as folder:
        sink = ArchiveDatasink(folder, columns, layers, preset, choice)
        with _in_order(dataset), _own_errors():
            dataset.write_datasink(sink, ray_remote_args=ray_remote_args, concurrency=concurrency)
        if sink.parts:
            return _join(target, sink.parts, columns, overwrite)
    return Archive.pack(target, [], codec=choice.load(), layers=layers, preset=preset, overwrite=overwrite)


@dataclass(frozen=True)
class _Part:
    """An archive that one task wrote. task: its number, in the dataset's order. schemas: of its blocks."""

    task: int
    path: str
    schemas: list[pa.Schema]


class ArchiveDatasink(Datasink[_Part | None]):  # type: ignore[misc]
    """What `write_archive` writes to. parts: known once all is written, in the dataset's order."""

    def __init__(
        self,
        folder: str,
        columns: ColumnChoice,
        layers: Sequence[str] | None,
        preset: str,
        codec: CodecChoice,
    ) -> None:
        self.parts: list[_Part] = []
        self._folder = folder
        self._columns = columns
        self._layers = layers
        self._preset = preset
        self._codec = codec

    @property
    def min_bytes_per_write(self) -> int:
        return _PART_BYTES

    def write(self, blocks: Iterable[Block], ctx: Any) -> _Part | None:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if table.num_rows]
        if not tables:
            return None
        _use_own_threads()
        if not os.path.isdir(self._folder):
            raise _not_shared(self._folder)
        task = int(ctx.task_idx)
        # Ray may run a task again, while the first try still writes.
        path = os.path.join(self._folder, f"{task}-{uuid.uuid4().hex}.cola")
        rows = self._rows(tables, f"the dataset, part {task}")
        Archive.pack(
            path,
            _records(rows, tables),
            codec=self._codec.load(),
            layers=self._layers,
            preset=self._preset,
            source=_source([row.schema for row in rows], self._columns),
        )
        return _Part(task, path, [row.schema for row in rows])

    def _rows(self, tables: Sequence[pa.Table], name: str) -> list[ArrowRows]:
        """A reader for each table."""
        ticks = {
            column
            for table in tables
            for column in nanosecond_columns(table.schema, self._columns.text)
            if has_nanoseconds(table[column].chunks)
        }
        return [ArrowRows(table.schema, self._columns, name, ticks) for table in tables]

    def on_write_complete(self, write_result: WriteResult[_Part | None]) -> None:
        written = [part for part in write_result.write_returns if part is not None]
        self.parts = sorted(written, key=lambda part: part.task)


def _records(rows: Sequence[ArrowRows], tables: Sequence[pa.Table]) -> Iterator[Record]:
    for reader, table in zip(rows, tables, strict=True):
        for batch in table.to_batches(max_chunksize=_READ_ROWS):
            yield from reader.records(batch)


def _join(path: str, parts: Sequence[_Part], columns: ColumnChoice, overwrite: bool) -> PackSummary:
    """One archive of all parts."""
    for part in parts:
        if not os.path.exists(part.path):
            raise _not_shared(os.path.dirname(part.path))
    source = _source(list(chain.from_iterable(part.schemas for part in parts)), columns)
    try:
        return Archive.merge(path, [part.path for part in parts], overwrite=overwrite, source=source)
    except InputError as error:
        message = str(error)
        for part in parts:  # which the caller has never heard of
            message = message.replace(part.path, path)
        raise InputError(message) from None


def _source(schemas: Sequence[pa.Schema], columns: ColumnChoice) -> dict[str, Any]:
    """What an archive says of rows of these schemas: one schema for all, if that holds all values."""
    joined = _one_schema(schemas)
    if joined is not None:
        described = ArrowRows(joined, columns, "the dataset").describe()
    else:
        names = dict.fromkeys(name for schema in schemas for name in schema.names)
        described = {"format": "jsonl", "columns": list(names)}
    return {"kind": "table", "name": None, **described, **columns.describe()}


def _one_schema(schemas: Sequence[pa.Schema]) -> pa.Schema | None:
    known: dict[str, pa.DataType] = {}
    for field in chain.from_iterable(schemas):
        kind = _wider(known.get(field.name, field.type), field.type)
        if kind is None:
            return None
        known[field.name] = kind
    return pa.schema(list(known.items()))


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both as they are kept; None if there is none. Times of two units
    have none: what is kept of some are ticks."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if is_string(one) and is_string(other):
        return pa.large_string()
    if is_bytes(one) and is_bytes(other):
        return pa.large_binary()
    for alike in (pa.types.is_signed_integer, pa.types.is_unsigned_integer, pa.types.is_floating):
        if alike(one) and alike(other):
            return max(one, other, key=lambda kind: kind.bit_width)
    return None


@contextmanager
def _parts_folder(target: str) -> Iterator[str]:
    """A folder beside `target`, gone at the end."""
    parent, name = os.path.split(target)
    try:
        folder = tempfile.mkdtemp(".parts", f".{name}.", parent)
    except OSError as error:
        raise InputError(f"{target}: can't be written: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        for _ in range(_REMOVALS):  # a task that Ray could not stop may still write
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.2)


@contextmanager
def _in_order(dataset: ray.data.Dataset) -> Iterator[None]:
    """Within, tasks get the dataset's blocks in its order, and are numbered by it."""
    options = dataset.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        yield
    finally:
        options.preserve_order = before


@contextmanager
def _own_errors() -> Iterator[None]:
    """An error of colazip's in a task is raised as it was, without Ray's account of where."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None)
            for found in (inner, cause):
                # Ray's own exceptions may be of our types, too, and its advice stands below our line.
                if isinstance(found, ColazipError) and type(found).__module__ == ColazipError.__module__:
                    raise type(found)(str(found).splitlines()[0]) from None
            cause = inner if isinstance(inner, BaseException) else cause.__cause__
        raise


def _not_shared(folder: str) -> InputError:
    return InputError(
        f"{folder}: is not on every node; write the archive to a folder that all nodes of the cluster share"
    )


def _use_own_threads() -> None:
    """As many threads as this task has CPUs, one at least: other tasks have the other cores."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    threads = max(1, int(cpus))
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
