"""The block table of a group: the parts of each block, and where its layers lie in the group's sections."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from colazip.archive.format import Group, Section
from colazip.archive.tables import dump_table, load_table, unsigned, unsigned_column
from colazip.errors import FormatError
from colazip.layers import BLOCK_PARTS, EXACT, LAYERS, PLAIN, Block

_PARTS, _TEXT, _OFFSET = "parts", "text", "offset"


@dataclass(frozen=True)
class LayerTable:
    """One layer of every block of a group.

    offsets: int64 [blocks], from the start of the file. lengths: int64 [blocks]. crcs: int64 [blocks].
    present: bool [blocks], false where a block lacks the layer.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    crcs: np.ndarray
    present: np.ndarray


@dataclass(frozen=True)
class BlockTable:
    """starts: int64 [blocks + 1], first part of each block, counted from the start of the group.

    text_crcs: int64 [blocks], `text_crc` of each block's parts; None in an archive without the text.
    offsets: int64 [blocks], where in its record the first part of each block begins, in bytes; 0 too where
    an archive of format 1 doesn't say.
    """

    starts: np.ndarray
    layers: dict[str, LayerTable]
    text_crcs: np.ndarray | None
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def count(self, block: int) -> int:
        return int(self.starts[block + 1] - self.starts[block])


def dump_blocks(blocks: Sequence[Block], text_crcs: Sequence[int] | None, offsets: Sequence[int]) -> bytes:
    """The table of these blocks as a section.

    text_crcs: one a block, None without the text. offsets: as in `BlockTable`.
    """
    columns: dict[str, pa.Array] = {
        _PARTS: unsigned(np.array([block.count for block in blocks], dtype=np.int64))
    }
    if text_crcs is not None:
        columns[_TEXT] = unsigned(np.array(text_crcs, dtype=np.int64))
    if any(offsets):
        columns[_OFFSET] = unsigned(np.array(offsets, dtype=np.int64))
    for layer in (*LAYERS, PLAIN):
        columns |= _layer_columns(layer, [block.layers.get(layer) for block in blocks])
    return _dump(columns)


def _layer_columns(layer: str, packed: Sequence[bytes | None]) -> dict[str, pa.Array]:
    """Columns of one layer, none if no block has it. packed: the layer of each block."""
    present = np.array([data is not None for data in packed])
    if not present.any():
        return {}
    lengths = np.array([len(data or b"") for data in packed], dtype=np.int64)
    crcs = np.array([zlib.crc32(data or b"") for data in packed], dtype=np.int64)
    return {layer: unsigned(lengths, present), layer + ".crc": unsigned(crcs, present)}


def add_layer(section: bytes, group: Group, layer: str, packed: Sequence[bytes]) -> bytes:
    """The block table of a group with the columns of one more layer. packed: the layer of each block."""
    batch = load_table(section, group.blocks)
    return _dump({name: batch.column(name) for name in batch.schema.names} | _layer_columns(layer, packed))


def drop_layers(section: bytes, group: Group, dropped: Sequence[str]) -> bytes:
    """The block table of a group without the columns of some layers."""
    batch = load_table(section, group.blocks)
    gone = {name for layer in dropped for name in (layer, layer + ".crc")}
    if EXACT in dropped or PLAIN in dropped:
        gone.add(_TEXT)
    return _dump({name: batch.column(name) for name in batch.schema.names if name not in gone})


def load_blocks(section: bytes, group: Group, *, text: bool) -> BlockTable:
    """Parse and check the block table of a group: its lengths must add up to the group's sections.

    text: whether the archive's layers hold the text of all records.
    """
    batch = load_table(section, group.blocks)
    counts, present = unsigned_column(batch, _PARTS)
    if not present.all() or counts.min(initial=1) < 1 or counts.max(initial=1) > BLOCK_PARTS:
        raise FormatError("damaged: a block has an impossible number of parts")
    if int(counts.sum()) != group.parts:
        raise FormatError("damaged: the blocks of a group don't add up to its number of parts")
    payload = {kind: part for kind, part in group.sections.items() if kind in LAYERS or kind == PLAIN}
    layers = {kind: _load_layer(batch, part) for kind, part in payload.items()}
    known = {_PARTS, _TEXT, _OFFSET, *(name for kind in layers for name in (kind, kind + ".crc"))}
    if not known.issuperset(batch.schema.names):
        raise FormatError("damaged: a block table has columns without a section")
    text_crcs = None
    if text:
        text_crcs, present = unsigned_column(batch, _TEXT)
        if not present.all():
            raise FormatError("damaged: a block lacks the checksum of its text")
    offsets = np.zeros(len(counts), np.int64)
    if _OFFSET in batch.schema.names:
        offsets, present = unsigned_column(batch, _OFFSET)
        if not present.all():
            raise FormatError("damaged: a block lacks its offset in the record")
    return BlockTable(np.concatenate([[0], np.cumsum(counts)]), layers, text_crcs, offsets)


def _load_layer(batch: pa.RecordBatch, section: Section) -> LayerTable:
    lengths, present = unsigned_column(batch, section.kind)
    crcs, checked = unsigned_column(batch, section.kind + ".crc")
    if not np.array_equal(present, checked):
        raise FormatError(f"damaged: a block lacks the length or the checksum of its {section.kind} layer")
    # Compared before they are summed: a sum of huge lengths could wrap around.
    if lengths.max(initial=0) > section.length or int(lengths.sum()) != section.length:
        raise FormatError(f"damaged: the blocks of a group don't add up to its {section.kind} section")
    return LayerTable(section.offset + np.cumsum(lengths) - lengths, lengths, crcs, present)


def _dump(columns: dict[str, pa.Array]) -> bytes:
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    return dump_table(fields, list(columns.values()))
