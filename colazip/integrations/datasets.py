"""Archives as Hugging Face datasets, and back. Needs the extra: pip install 'colazip[datasets]'."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from colazip.archive import Archive, PackSummary
from colazip.errors import InputError, UsageError
from colazip.files import new_file
from colazip.integrations.scan import CodecChoice, CodecMaker, Scan
from colazip.layers import EXACT
from colazip.presets import SMALL
from colazip.tables.arrow_plain import has_nanoseconds
from colazip.tables.arrow_rows import ArrowRows, nanosecond_columns
from colazip.tables.common import ColumnChoice

try:
    from datasets import Dataset, DatasetInfo, Features, IterableDataset
    from datasets.iterable_dataset import ArrowExamplesIterable
    from datasets.table import InMemoryTable
except ImportError as error:
    raise ImportError(
        "colazip.integrations.datasets needs datasets: pip install 'colazip[datasets]'"
    ) from error

_READ_ROWS = 256
_SCAN_ROWS = 1 << 16
_NAME = "the dataset"


def load_archive(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    layer: str = EXACT,
    where: str | None = None,
    binary: bool = False,
    streaming: bool = False,
    shards: int = 64,
    arrow_file: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    codec: CodecMaker | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Dataset | IterableDataset:
    """The records of an archive as a `Dataset`, or an `IterableDataset` that decodes them while it is read.

    columns, layer, where, binary: as of `Archive.to_arrow`. storage_options: as of `Archive`. Nothing but an
    archive at a URL is downloaded, and nothing written to the cache of datasets. A `Dataset` is held in
    memory, unless `arrow_file` names a file to write, from which it is then mapped.

    streaming: the features are known at once. Ranges of the archive, at most `shards` of them, are the
    dataset's shards, which the workers of a `DataLoader` and nodes divide among them. From a state
    (`state_dict`) it goes on within a shard, which is decoded from its start for that. Workers open the
    archive themselves, so it must stay as it is.

    model: folder of another model than the one in the package. codec: instead, a function or class that makes
    the codec; with several processes it must be one that can be pickled. Raises UsageError, InputError, and
    what `Archive` and `Archive.to_arrow` do; a stream only once it is read, for what shows only then.
    """
    if streaming and arrow_file is not None:
        raise UsageError("arrow_file is for a dataset that is not streamed; leave one of the two out")
    if arrow_file is not None and os.path.lexists(arrow_file):
        raise UsageError(f"{os.fspath(arrow_file)}: exists already; name another file, or remove it")
    with Archive(path, storage_options=storage_options) as archive:
        choice = CodecChoice.of(model, codec)
        scan = Scan.of(archive, columns, layer=layer, where=where, binary=binary, codec=choice)
        ranges = archive.ranges(shards)
    info = DatasetInfo(features=_features(scan))
    if streaming:
        examples = ArrowExamplesIterable(_tables, {"scan": scan, "ranges": ranges or [(0, 0)]})
        return IterableDataset(examples, info=info)
    if arrow_file is None:
        table = pa.Table.from_batches(scan.batches(), scan.columns.schema)
        return Dataset(InMemoryTable(table), info=info, fingerprint=scan.digest())
    with new_file(arrow_file) as file, pa.ipc.new_stream(file, scan.columns.schema) as stream:
        for batch in scan.batches():
            stream.write_batch(batch)
    return Dataset.from_file(os.fspath(arrow_file), info=info)


def _features(scan: Scan) -> Features:
    for field in scan.columns.schema:
        try:
            Features.from_arrow_schema(pa.schema([field]))
        except ValueError:
            raise UsageError(
                f"{scan.path}: column {field.name!r} is of type {field.type}, which datasets doesn't know; "
                "name the other columns"
            ) from None
    return Features.from_arrow_schema(scan.columns.schema)


def _tables(scan: Scan, ranges: list[tuple[int, int]]) -> Iterator[tuple[str, pa.Table]]:
    """(key, rows) of some ranges. A list among the arguments is what datasets takes for the shards."""
    for start, stop in ranges:
        for number, batch in enumerate(scan.batches(start, stop)):
            yield f"{start}_{number}", pa.Table.from_batches([batch])


def pack_dataset(
    dataset: Dataset | IterableDataset,
    path: str | os.PathLike[str],
    *,
    text_column: str = "text",
    id_column: str | None = None,
    layers: Sequence[str] | None = None,
    preset: str = SMALL,
    overwrite: bool = False,
    model: str | os.PathLike[str] | None = None,
    codec: CodecMaker | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PackSummary:
    """Write an archive of a dataset's rows, in their order, to `path`, which appears whole or not at all.

    Columns other than text and id become metadata, and the archive keeps the dataset's Arrow schema: so
    `load_archive`, `Archive.to_arrow` and `colazip unpack` give them back in their types (class labels as
    their numbers, images and audio as the struct that datasets stores). Times to the nanosecond are kept as
    integers where they need to be, from a stream always. A stream without known features has the types of
    its first rows.

    layers, preset, overwrite, progress: as of `Archive.pack`. model, codec: as of `load_archive`. Raises
    UsageError for what is no dataset; InputError for a column that is missing or of a type that can't be kept
    (maps, arrays of several dimensions), a text or id that is null, duplicate ids; and what `Archive.pack`
    does.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        raise UsageError(
            f"a {type(dataset).__name__} is no dataset; give a Dataset or IterableDataset of one split"
        )
    columns = ColumnChoice(text_column, id_column, called=("text_column", "id_column"))
    choice = CodecChoice.of(model, codec)
    schema, batches = _schema_and_batches(dataset)
    rows = ArrowRows(schema, columns, _NAME, _ticks(dataset, nanosecond_columns(schema, text_column)))
    return Archive.pack(
        path,
        (record for batch in batches for record in rows.records(batch)),
        codec=choice.load(),
        layers=layers,
        preset=preset,
        overwrite=overwrite,
        source={"kind": "table", "name": None, **rows.describe(), **columns.describe()},
        progress=progress,
    )


def _schema_and_batches(dataset: Dataset | IterableDataset) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if dataset.features is not None:
        tables = dataset.with_format("arrow").iter(_READ_ROWS)
        schema = dataset.features.arrow_schema.remove_metadata()
    else:
        # As Arrow, datasets would make a table of each row, and refuse rows that differ in a null.
        tables = map(_inferred, dataset.with_format(None).iter(_READ_ROWS))
        first = next(tables, None)
        if first is None:
            raise InputError(f"{_NAME} has neither rows nor features; check where it comes from")
        schema, tables = first.schema.remove_metadata(), chain([first], tables)
    return schema, (batch for table in tables for batch in _cast(table, schema).to_batches())


def _inferred(rows: dict[str, list[Any]]) -> pa.Table:
    try:
        return pa.table(rows)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise _unlike(error) from None


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows in the types that were known from the start; columns that they lack are null."""
    if table.schema.equals(schema):
        return table
    try:
        for name in table.schema.names:
            schema.field(name)  # KeyError: a column that the first rows had not
        columns = [
            table[field.name].cast(field.type)
            if field.name in table.schema.names
            else pa.nulls(len(table), field.type)
            for field in schema
        ]
    except (pa.ArrowException, KeyError) as error:
        raise _unlike(error) from None
    return pa.Table.from_arrays(columns, schema=schema)


def _unlike(error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(
        f"{_NAME}: its rows are not all of one schema: {reason}; cast it to features that fit all"
    )


def _ticks(dataset: Dataset | IterableDataset, names: Sequence[str]) -> list[str]:
    """Of columns of nanoseconds, those that Python's times don't hold; of a stream all: it is read once."""
    if isinstance(dataset, IterableDataset):
        return list(names)
    return [name for name in names if has_nanoseconds(_chunks(dataset, name))]


def _chunks(dataset: Dataset, name: str) -> Iterator[pa.Array]:
    for table in dataset.select_columns(name).with_format("arrow").iter(_SCAN_ROWS):
        yield from table[name].chunks
