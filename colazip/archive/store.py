"""An archive's file: checked access to its manifest, sections, tables, blocks and ids. Decodes nothing."""

from __future__ import annotations

import hashlib
import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from colazip.archive.blocks import BlockTable, load_blocks
from colazip.archive.format import (
    BLOCKS,
    FOOTER,
    HEADER,
    ROWS,
    Manifest,
    Section,
    check_footer,
    check_header,
    load_manifest,
)
from colazip.archive.rows import RowTable, load_rows
from colazip.archive.source import open_source
from colazip.errors import FormatError
from colazip.layers import Block, holds_text

_KEPT_GROUPS = 4  # groups whose tables stay in memory
_READ_BYTES = 1 << 20


class Store:
    """Opens `path`, a file or a URL; raises InputError if it can't be read, FormatError or VersionError for
    what is in it.

    Groups go by their numbers, blocks and rows by theirs within the group; ordinals count over the archive.
    """

    def __init__(self, path: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._lock = threading.RLock()  # of what is kept in memory
        self._bytes = open_source(path, storage_options)
        self.file_bytes = self._bytes.size
        try:
            self.manifest = self._open()
        except BaseException:
            self._bytes.close()
            raise
        self.first_records = [0, *accumulate(group.records for group in self.manifest.groups)]
        self.first_parts = [0, *accumulate(group.parts for group in self.manifest.groups)]
        self.first_blocks = [0, *accumulate(group.blocks for group in self.manifest.groups)]
        self._groups: OrderedDict[int, tuple[BlockTable, RowTable]] = OrderedDict()
        self._id_index: tuple[np.ndarray, np.ndarray] | None = None

    def close(self) -> None:
        """Close the file; what was read stays in memory."""
        self._bytes.close()

    def _open(self) -> Manifest:
        try:
            version = check_header(self.read(0, min(len(HEADER), self.file_bytes)))
            size = min(FOOTER.size, self.file_bytes)
            length, crc = check_footer(self.read(self.file_bytes - size, size), self.file_bytes)
            packed = self.read(self.file_bytes - FOOTER.size - length, length)
            # The manifest holds a checksum of every section, so its hash stands for the whole file.
            self.fingerprint = hashlib.sha256(packed).hexdigest()
            return load_manifest(packed, crc, self.file_bytes, version)
        except FormatError as error:
            raise type(error)(f"{self.path}: {error}") from error

    def read(self, offset: int, length: int, section: Section | None = None) -> bytes:
        """Exactly `length` bytes of the file. section: what they are of."""
        run = None if section is None else range(section.offset, section.offset + section.length)
        data = self._bytes.read(offset, length, run)
        if len(data) < length:
            raise FormatError(f"{self.path}: truncated while it was open")
        return data

    def read_chunks(self, section: Section) -> Iterator[bytes]:
        """The bytes of a section, a MiB at a time; raises FormatError at the end if the checksum is wrong."""
        crc = 0
        for start in range(0, section.length, _READ_BYTES):
            chunk = self.read(section.offset + start, min(_READ_BYTES, section.length - start), section)
            crc = zlib.crc32(chunk, crc)
            yield chunk
        if crc != section.crc:
            raise FormatError(f"{self.path}: damaged: the checksum of a {section.kind} section doesn't match")

    def read_section(self, section: Section) -> bytes:
        """A whole section, checked."""
        return b"".join(self.read_chunks(section))

    def tables(self, group: int) -> tuple[BlockTable, RowTable]:
        """Tables of one group."""
        with self._lock:
            return self._tables(group)

    def _tables(self, group: int) -> tuple[BlockTable, RowTable]:
        if group not in self._groups:
            info = self.manifest.groups[group]
            rows = self.read_section(info.sections[ROWS]) if ROWS in info.sections else None
            blocks = self.read_section(info.sections[BLOCKS])
            try:
                self._groups[group] = (
                    load_blocks(blocks, info, text=holds_text(self.manifest.layers)),
                    load_rows(rows, info),
                )
            except FormatError as error:
                raise FormatError(f"{self.path}: group {group}: {error}") from error
            while len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return self._groups[group]

    def block(self, group: int, block: int, layers: Sequence[str]) -> Block:
        """Some layers of one block, read and checked."""
        table, _ = self.tables(group)
        found: dict[str, bytes] = {}
        for name in layers:
            layer = table.layers.get(name)
            if layer is None or not layer.present[block]:
                continue
            section = self.manifest.groups[group].sections[name]
            found[name] = self.read(int(layer.offsets[block]), int(layer.lengths[block]), section)
            if zlib.crc32(found[name]) != layer.crcs[block]:
                raise FormatError(
                    f"{self.where(group, block)}: damaged: the checksum of the {name} layer doesn't match"
                )
        return Block(table.count(block), found)

    def where(self, group: int, block: int) -> str:
        """Names a block of a group and the records in it, for an error."""
        table, rows = self.tables(group)
        first, last = (int(row) for row in rows.row_of(table.starts[[block, block + 1]] - [0, 1]))
        names = [self.names(group, row, row + 1)[0] for row in dict.fromkeys((first, last))]
        of = f"record {names[0]!r}" if len(names) == 1 else f"records {names[0]!r} to {names[1]!r}"
        return f"{self.path}: block {self.first_blocks[group] + block} ({of})"

    def names(self, group: int, start: int, stop: int) -> list[str]:
        """Ids of rows start to stop of a group."""
        first = self.first_records[group] + start
        own = self.tables(group)[1].own_ids(start, stop)
        return [str(first + i) if name is None else name for i, name in enumerate(own)]

    def find(self, id: str) -> tuple[int, int] | None:
        """(group, row) of the record of an id."""
        for ordinal in self._candidates(id):
            group, row = self.place(ordinal)
            if not self.manifest.groups[group].named or self.names(group, row, row + 1) == [id]:
                return group, row
        return None

    def _candidates(self, id: str) -> Iterator[int]:
        """Ordinals of records that may have this id; in a group of ordinals, that does."""
        if any(group.named for group in self.manifest.groups):
            hashes, ordinals = self._hashed_ids()
            first, last = (np.searchsorted(hashes, hash(id), side=side) for side in ("left", "right"))
            yield from map(int, ordinals[first:last])
        if not (id.isascii() and id.isdecimal() and len(id) <= 18 and str(int(id)) == id):
            return
        ordinal = int(id)
        if ordinal < self.first_records[-1] and not self.manifest.groups[self.place(ordinal)[0]].named:
            yield ordinal

    def _hashed_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """(sorted hashes int64 [n], ordinals int64 [n]) of the records in groups with ids of their own."""
        with self._lock:
            return self._indexed_ids()

    def _indexed_ids(self) -> tuple[np.ndarray, np.ndarray]:
        if self._id_index is None:
            hashes, ordinals = [], []
            for group, info in enumerate(self.manifest.groups):
                if info.named:
                    names = self.names(group, 0, info.records)
                    hashes.append(np.fromiter(map(hash, names), dtype=np.int64, count=len(names)))
                    ordinals.append(self.first_records[group] + np.arange(info.records))
            joined = np.concatenate(hashes)
            order = np.argsort(joined, kind="stable")
            self._id_index = joined[order], np.concatenate(ordinals)[order]
        return self._id_index

    def records_of(self, parts: np.ndarray) -> np.ndarray:
        """Ordinals of the records that own these parts (counted over the archive). int64 [n] -> int64 [n]."""
        groups = np.searchsorted(self.first_parts, parts, side="right") - 1
        records = np.empty(len(parts), dtype=np.int64)
        for group in map(int, np.unique(groups)):
            chosen = groups == group
            local = parts[chosen] - self.first_parts[group]
            info = self.manifest.groups[group]
            # Where each record is one part, as in most archives, the tables needn't be read.
            rows = local if info.records == info.parts else self.tables(group)[1].row_of(local)
            records[chosen] = self.first_records[group] + rows
        return records

    def place(self, ordinal: int) -> tuple[int, int]:
        """(group, row) of the record of an ordinal."""
        group = bisect_right(self.first_records, ordinal) - 1
        return group, ordinal - self.first_records[group]
