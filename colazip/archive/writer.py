"""Records to an archive: cut into parts, gathered in blocks and groups, coded, written; bounded in memory."""

from __future__ import annotations

import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack
import numpy as np

from colazip.archive.blocks import dump_blocks
from colazip.archive.format import (
    BLOCKS,
    CODEBOOK,
    FORMAT_VERSION,
    MAGIC,
    MAX_MANIFEST_BYTES,
    ROWS,
    EmbedderInfo,
    Group,
    Manifest,
    Section,
    dump_manifest,
    text_crc,
)
from colazip.archive.output import AtomicFile
from colazip.archive.record import PackSummary, Record
from colazip.archive.rows import dump_rows
from colazip.archive.store import Store
from colazip.errors import InputError, UsageError
from colazip.layers import (
    BLOCK_BYTES,
    BLOCK_PARTS,
    GIST,
    LAYERS,
    PLAIN,
    SEARCH,
    ArchiveCodec,
    Block,
    holds_text,
)
from colazip.presets import SMALL, choose
from colazip.version import __version__

# A group is closed after so many blocks where a block ends with a record; after twice as many, in any case.
GROUP_BLOCKS = 64
GROUP_ROW_BYTES = 16 << 20  # rough size of the ids and metadata of a group
_HELD_ROW_BYTES = 64 << 20  # the same of all groups whose blocks wait to be coded
MAX_ROW_BYTES = 32 << 20  # of one record; a table of one such group stays below what a reader accepts

_MAX_SOURCE_BYTES = 1 << 20


def pack(
    path: str | os.PathLike[str],
    records: Iterable[Record | str | bytes],
    codec: ArchiveCodec,
    *,
    layers: Sequence[str] | None = None,
    preset: str = SMALL,
    overwrite: bool = False,
    source: Mapping[str, Any] | None = None,
    batch_blocks: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PackSummary:
    """Write an archive of `records`; the arguments are those of `Archive.pack`."""
    layers, _ = choose(preset, layers)
    if batch_blocks is None:
        batch_blocks = codec.pack_batch
    if batch_blocks < 1:
        raise UsageError("batch_blocks must be at least 1")
    origin = check_source(source)
    with AtomicFile(path, overwrite) as file:
        container = Container(file)
        gatherer = _Gatherer(container, codec, layers, preset, batch_blocks, progress)
        for record in records:
            gatherer.add(record)
        gatherer.finish()
        container.finish(
            Manifest(
                writer=__version__,
                codec_id=codec.id,
                codec_name=codec.name,
                layers=layers,
                text_bytes=gatherer.text_bytes,
                source=origin,
                groups=tuple(container.groups),
                code_bytes=codec.code_bytes if SEARCH in layers else None,
                abridged=codec.abridged if GIST in layers else None,
                conditional=codec.conditional and SEARCH in layers and GIST in layers,
            )
        )
        if progress is not None:
            progress(gatherer.records, gatherer.text_bytes)
        groups = container.groups
        return PackSummary(
            records=gatherer.records,
            parts=sum(group.parts for group in groups),
            blocks=sum(group.blocks for group in groups),
            text_bytes=gatherer.text_bytes,
            file_bytes=file.size,
        )


class Container:
    """Sections and manifest to a file. version: of the format that they are of."""

    def __init__(self, file: AtomicFile, version: int = FORMAT_VERSION) -> None:
        self.groups: list[Group] = []
        self._file = file
        self._sections: dict[str, Section] = {}
        file.write(MAGIC + bytes([version]))

    def add_section(self, kind: str, chunks: Iterable[bytes | memoryview]) -> Section:
        """Write one section of the group under way."""
        start, crc = self._file.size, 0
        for chunk in chunks:
            crc = zlib.crc32(chunk, crc)
            self._file.write(chunk)
        section = Section(kind, start, self._file.size - start, crc)
        self._sections[kind] = section
        return section

    def end_group(self, records: int, parts: int, blocks: int, named: bool) -> None:
        """The sections since the last call are a group."""
        self.groups.append(Group(records, parts, blocks, named, self._sections))
        self._sections = {}

    def copy_codebook(self, store: Store, embedder: EmbedderInfo | None) -> EmbedderInfo | None:
        """The codebook of another archive, behind all groups; what the manifest says of it from now on."""
        if embedder is None:
            return None
        return replace(embedder, section=self.add_section(CODEBOOK, store.read_chunks(embedder.section)))

    def finish(self, manifest: Manifest) -> None:
        """Write manifest and footer and let the file appear."""
        tail = dump_manifest(manifest)
        if len(tail) > MAX_MANIFEST_BYTES:
            raise InputError("the archive has too many groups for its manifest; split the input")
        self._file.write(tail)
        self._file.commit()


@dataclass
class Rows:
    """A group that is not written yet: its rows, and as many of its blocks as are coded.

    first: the ordinal of its first record; row_bytes: what ids and metadata take, roughly; offsets: of each
    block's first part in that part's record; full: no record is added any more.
    """

    first: int
    ids: list[str | None] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    metadata: list[Mapping[str, Any]] = field(default_factory=list)
    row_bytes: int = 0
    offsets: list[int] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    text_crcs: list[int] = field(default_factory=list)
    full: bool = False


class _Gatherer:
    """Collects records into blocks and groups, and hands them on as soon as they are full.

    Blocks are coded in batches that may reach across groups, groups are written in order.
    """

    def __init__(
        self,
        container: Container,
        codec: ArchiveCodec,
        layers: tuple[str, ...],
        preset: str,
        batch_blocks: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.records = 0
        self.text_bytes = 0
        self._container = container
        self._codec = codec
        self._layers = layers
        self._preset = preset
        self._batch_blocks = batch_blocks
        self._progress = progress
        self._known_ids = KnownIds()
        self._open: list[bytes] = []  # parts of the block that is being filled
        self._open_bytes = 0
        self._open_offset = 0  # of its first part in that part's record
        self._waiting: list[tuple[Rows, list[bytes]]] = []  # full blocks, not coded yet
        self._groups = deque([Rows(0)])  # not written yet; the last one takes records

    def add(self, item: Record | str | bytes) -> None:
        """Take one more record. It is all in one group, so groups can be read, copied and checked alone."""
        record = _as_record(item, self.records)
        row_bytes = _rough_size(record)
        if row_bytes > MAX_ROW_BYTES:
            raise InputError(
                f"record {self.records}: id and metadata take {row_bytes} bytes; {MAX_ROW_BYTES} fit"
            )
        parts = self._codec.split(record.data)
        blocks = len(self._groups[-1].offsets)
        block_ends = bool(self._open) and not self._fits(parts[0])
        if (
            (block_ends and blocks + 1 >= GROUP_BLOCKS)
            or blocks >= 2 * GROUP_BLOCKS
            or self._groups[-1].row_bytes > GROUP_ROW_BYTES
        ):
            self._end_group()
        offset = 0
        for part in parts:
            if self._open and not self._fits(part):
                self._end_block()
            if not self._open:
                self._open_offset = offset
            self._open.append(part)
            self._open_bytes += len(part)
            offset += len(part)
        group = self._groups[-1]
        group.ids.append(None if record.id == str(self.records) else record.id)
        group.parts.append(len(parts))
        group.metadata.append(record.metadata)
        group.row_bytes += row_bytes
        self.records += 1
        self.text_bytes += len(record.data)

    def finish(self) -> None:
        """Code and write what is left."""
        self._end_group()
        self._code(len(self._waiting))

    def _fits(self, part: bytes) -> bool:
        return len(self._open) < BLOCK_PARTS and self._open_bytes + len(part) <= BLOCK_BYTES

    def _end_group(self) -> None:
        self._end_block()
        if self._groups[-1].parts:
            self._groups[-1].full = True
            self._groups.append(Rows(self.records))
            self._write()
            if sum(group.row_bytes for group in self._groups) > _HELD_ROW_BYTES:
                self._code(len(self._waiting))

    def _end_block(self) -> None:
        if not self._open:
            return
        self._waiting.append((self._groups[-1], self._open))
        self._groups[-1].offsets.append(self._open_offset)
        self._open, self._open_bytes = [], 0
        # A few more than a batch, so that the last batch is not a short one (`layers.in_batches`).
        if len(self._waiting) > self._batch_blocks + self._batch_blocks // 4:
            self._code(self._batch_blocks)

    def _code(self, count: int) -> None:
        """Code the first blocks that wait, and write the groups that have all of theirs."""
        if not count:
            return
        some, self._waiting = self._waiting[:count], self._waiting[count:]
        blocks = self._codec.encode_blocks([parts for _, parts in some], self._layers, self._preset)
        for (group, parts), block in zip(some, blocks, strict=True):
            group.blocks.append(block)
            group.text_crcs.append(text_crc(parts))
        self._write()
        if self._progress is not None:
            self._progress(self.records, self.text_bytes)

    def _write(self) -> None:
        while self._groups[0].full and len(self._groups[0].blocks) == len(self._groups[0].offsets):
            self._write_group(self._groups.popleft())

    def _write_group(self, group: Rows) -> None:
        write_group(self._container, group, self._known_ids, holds_text(self._layers))


def write_group(container: Container, group: Rows, known: KnownIds, text: bool) -> None:
    """Write a group whose blocks are all coded. text: whether the archive's layers hold it."""
    named = known.add(group.ids, group.first)
    for layer in (*LAYERS, PLAIN):
        if any(layer in block.layers for block in group.blocks):
            container.add_section(
                layer, (block.layers[layer] for block in group.blocks if layer in block.layers)
            )
    table = dump_blocks(group.blocks, group.text_crcs if text else None, group.offsets)
    container.add_section(BLOCKS, [table])
    rows = dump_rows(group.ids, group.parts, group.metadata)
    if rows is not None:
        container.add_section(ROWS, [rows])
    container.end_group(len(group.parts), sum(group.parts), len(group.blocks), named)


class KnownIds:
    """Finds duplicate ids in 8 bytes a record, and in none while all records go by their ordinals.

    Ids are compared by Python's 64-bit hash, which is keyed anew in every process: no input can be made to
    collide, and chance is below 1 in 10,000 for ten million records. Nothing of it reaches the archive.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []  # sorted hashes, each run at least twice as long as the next

    def add(self, ids: Sequence[str | None], first: int) -> bool:
        """Take the ids of one group, whose first record has the ordinal `first`; true if one isn't None."""
        named = any(id is not None for id in ids)
        if not named and not self._runs:
            return False
        if not self._runs:
            for start in range(0, first, 1 << 16):
                self._insert(_hashes(map(str, range(start, min(first, start + (1 << 16))))))
        hashes = _hashes(str(first + i) if id is None else id for i, id in enumerate(ids))
        order = np.argsort(hashes, kind="stable")
        inside = order[1:][hashes[order][1:] == hashes[order][:-1]]
        known = np.zeros(len(hashes), dtype=bool)
        known[inside] = True
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            known |= run[at] == hashes
        if known.any():
            row = int(np.flatnonzero(known)[0])
            raise InputError(
                f"record {first + row}: another record has the id {ids[row] or str(first + row)!r};"
                " give each its own, or leave ids out and they are numbers"
            )
        self._insert(hashes)
        return named

    def _insert(self, hashes: np.ndarray) -> None:
        while self._runs and len(self._runs[-1]) < 2 * len(hashes):
            hashes = np.concatenate([self._runs.pop(), hashes])
        self._runs.append(np.sort(hashes))


def own_ids(names: Sequence[str], first: int) -> list[str | None]:
    """Ids to keep of records from the ordinal `first` on: None for those that go by their numbers there."""
    return [None if name == str(first + i) else name for i, name in enumerate(names)]


def _hashes(ids: Iterable[str]) -> np.ndarray:
    return np.fromiter(map(hash, ids), dtype=np.int64)


def _as_record(item: Record | str | bytes, ordinal: int) -> Record:
    if isinstance(item, str):
        try:
            return Record(item.encode())
        except UnicodeEncodeError as error:
            raise InputError(f"record {ordinal}: the text has lone surrogates; pass it as bytes") from error
    if isinstance(item, bytes | bytearray | memoryview):
        return Record(bytes(item))
    if not isinstance(item, Record) or not isinstance(item.data, bytes):
        raise UsageError(
            f"record {ordinal}: expected a Record of bytes, str or bytes, not {type(item).__name__}"
        )
    if not isinstance(item.metadata, Mapping):
        raise UsageError(f"record {ordinal}: metadata must be a mapping, not {type(item.metadata).__name__}")
    if item.id is not None:
        if not isinstance(item.id, str):
            raise UsageError(f"record {ordinal}: the id must be a string, not {type(item.id).__name__}")
        try:
            item.id.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"record {ordinal}: the id {item.id!r} isn't valid Unicode") from error
    return item


def _rough_size(record: Record) -> int:
    """About how many bytes the record takes in a row table."""
    size = len(record.id or "")
    for value in record.metadata.values():
        size += 8 + (len(value) if isinstance(value, str | bytes) else 0)
        size += len(repr(value)) if isinstance(value, Mapping | list | tuple) else 0
    return size


def check_source(source: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of `source` that msgpack and JSON hold alike."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(source or {}), allow_nan=False))
        size = len(msgpack.packb(copy))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"source must be plain JSON: {error}") from error
    if size > _MAX_SOURCE_BYTES:
        raise UsageError(f"source takes {size} bytes; at most {_MAX_SOURCE_BYTES} fit")
    return copy
