"""Some of the records of an archive into another: blocks that keep all that they hold are copied as they are,
those that only some records leave are coded anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from colazip.archive.filters import passing
from colazip.archive.format import FORMAT_VERSION, text_crc
from colazip.archive.merge import copy_group
from colazip.archive.output import AtomicFile
from colazip.archive.reader import Archive
from colazip.archive.record import PackSummary
from colazip.archive.selection import rows_of
from colazip.archive.writer import Container, KnownIds, Rows, own_ids, pack, write_group
from colazip.errors import UsageError
from colazip.layers import BLOCK_BYTES, BLOCK_PARTS, GIST, LAYERS, OF_TEXT, PLAIN, SEARCH, Block
from colazip.presets import BALANCED, SMALL
from colazip.search_layer import dump_codes
from colazip.version import __version__

# Where fewer blocks than one for so many that are cut stay whole, all is packed anew: remainders of blocks
# make small blocks, which take more room.
_FEW = 8

Progress = Callable[[int, int], None]
Place = tuple[int, int]  # group and block in it


@dataclass
class _Fates:
    """What becomes of the blocks of an archive: they stay whole, go whole, or are cut."""

    kept: list[Place] = field(default_factory=list)
    gone: list[Place] = field(default_factory=list)
    cut: list[Place] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """One that stays, of a block that is cut. offset: where in its record it begins, in bytes."""

    block: int
    slot: int
    data: bytes
    offset: int


def select(
    archive: Archive,
    out: str | os.PathLike[str],
    where: str | None,
    ids: Iterable[str] | None,
    drop: bool,
    overwrite: bool,
    progress: Progress | None,
) -> PackSummary:
    """What `Archive.select` does."""
    manifest, store = archive.manifest, archive._store
    if manifest.version != FORMAT_VERSION:
        older = f"is of format {manifest.version}, an older one"
        raise UsageError(f"{archive.path}: {older}; pack its source again")
    wanted = _wanted(archive, where, ids) ^ drop
    fates = _fates(archive, wanted)
    if fates.cut:
        _check_can_cut(archive)
    if manifest.embedder is None and len(fates.kept) * _FEW < len(fates.cut):
        return pack(
            out,
            archive._exact_records(rows_of(store, range(len(archive)), wanted)),
            archive._model(),
            layers=archive.layers,
            preset=_preset(archive),
            overwrite=overwrite,
            source=archive.source,
            progress=progress,
        )
    known = KnownIds()
    records = kept_bytes = cut_bytes = 0
    with AtomicFile(out, overwrite) as file:
        container = Container(file)
        for number, group in enumerate(manifest.groups):
            mine = wanted[store.first_records[number] :][: group.records]
            if mine.all():
                records += copy_group(container, archive, number, records, known, numbers_are_ids=True)
            elif mine.any():
                rows, kept, held = _cut_group(archive, number, mine, records)
                write_group(container, rows, known, archive.holds_text)
                records += len(rows.parts)
                kept_bytes, cut_bytes = kept_bytes + kept, cut_bytes + held
            if progress is not None:
                progress(records, kept_bytes)
        selected = replace(
            manifest,
            writer=__version__,
            text_bytes=_text_bytes(archive, fates, kept_bytes, cut_bytes, len(wanted) and wanted.mean()),
            groups=tuple(container.groups),
            embedder=container.copy_codebook(store, manifest.embedder),
        )
        container.finish(selected)
        return PackSummary(records, selected.parts, selected.blocks, selected.text_bytes, file.size)


def _wanted(archive: Archive, where: str | None, ids: Iterable[str] | None) -> np.ndarray:
    """bool [records]"""
    if (where is None) == (ids is None):
        raise UsageError("choose records by a filter or by their ids: one of the two")
    if where is not None:
        return passing(archive._store, where)
    if isinstance(ids, str):
        raise UsageError("ids are a list of texts, not one text")
    wanted = np.zeros(len(archive), dtype=bool)
    for id in ids or ():
        group, row = archive._locate(id)
        wanted[archive._store.first_records[group] + row] = True
    return wanted


def _fates(archive: Archive, wanted: np.ndarray) -> _Fates:
    found = _Fates()
    for number, group in enumerate(archive.manifest.groups):
        mine = wanted[archive._store.first_records[number] :][: group.records]
        places = [(number, block) for block in range(group.blocks)]
        if mine.all() or not mine.any():
            (found.kept if mine.all() else found.gone).extend(places)
            continue
        starts = archive._store.tables(number)[0].starts
        _, counts = _kept_parts(archive, number, mine)
        for place, count, held in zip(places, counts, np.diff(starts), strict=True):
            (found.kept if count == held else found.cut if count else found.gone).append(place)
    return found


def _kept_parts(archive: Archive, number: int, mine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a group the parts of records that stay, bool [parts], and how many each block has of them, int64
    [blocks]. mine: bool [records] of it."""
    table, rows = archive._store.tables(number)
    kept = mine if rows.starts is None else np.repeat(mine, np.diff(rows.starts))
    return kept, np.add.reduceat(kept, table.starts[:-1], dtype=np.int64)


def _check_can_cut(archive: Archive) -> None:
    """Raises UsageError unless the codec at hand codes blocks as those of the archive are."""
    manifest, layers = archive.manifest, archive.layers
    if not archive.holds_text:
        raise UsageError(
            f"{archive.path}: has no exact text, so a block that only some records leave can't be coded "
            "anew; pack the source again without them"
        )
    if manifest.embedder is not None:
        return
    codec = archive._model()
    if SEARCH in layers and codec.code_bytes != manifest.code_bytes:
        raise UsageError(
            f"{archive.path}: has search codes of {manifest.code_bytes} bytes, the codec writes others; open "
            f"it with Codec.from_pretrained(code_bytes={manifest.code_bytes})"
        )
    if (codec.conditional and SEARCH in layers and GIST in layers) != manifest.conditional:
        how = "given" if manifest.conditional else "without"
        raise UsageError(
            f"{archive.path}: its gists were coded {how} its search codes; open it with "
            f"Codec.from_pretrained(conditional={manifest.conditional})"
        )


def _preset(archive: Archive) -> str:
    return BALANCED if PLAIN in archive.layers else SMALL


def _cut_group(archive: Archive, number: int, mine: np.ndarray, first: int) -> tuple[Rows, int, int]:
    """The group with the records that stay, whose first has the ordinal `first`; and bytes of text in its
    blocks that are cut: of what stays, and of all."""
    table, rows = archive._store.tables(number)
    chosen = np.flatnonzero(mine).tolist()
    names = archive._store.names(number, 0, len(mine))
    metadata = list(rows.metadata(0, len(mine)))
    group = Rows(
        first,
        ids=own_ids([names[row] for row in chosen], first),
        parts=[stop - start for start, stop in map(rows.parts, chosen)],
        metadata=[metadata[row] for row in chosen],
    )
    kept, counts = _kept_parts(archive, number, mine)
    cut = np.flatnonzero((counts > 0) & (counts < np.diff(table.starts))).tolist()
    decoded = archive._of_group(archive._decode, number, cut, OF_TEXT)
    pieces = list(_pieces(archive, number, kept, decoded))
    coded = _coded(archive, number, [piece for piece in pieces if isinstance(piece, list)])
    for piece in pieces:
        if isinstance(piece, int):
            group.blocks.append(archive._store.block(number, piece, (*LAYERS, PLAIN)))
            group.offsets.append(int(table.offsets[piece]))
            group.text_crcs.append(0 if table.text_crcs is None else int(table.text_crcs[piece]))
        else:
            group.blocks.append(next(coded))
            group.offsets.append(piece[0].offset)
            group.text_crcs.append(text_crc([part.data for part in piece]))
    stays = sum(len(part.data) for piece in pieces if isinstance(piece, list) for part in piece)
    return group, stays, sum(len(part) for parts in decoded.values() for part in parts)


def _pieces(
    archive: Archive, number: int, kept: np.ndarray, decoded: dict[int, list[bytes]]
) -> Iterator[int | list[_Part]]:
    """The blocks of a group in order: the number of one that stays, or what a new one holds. kept: bool
    [parts]. decoded: the parts of those that are cut."""
    table, rows = archive._store.tables(number)
    begins = np.ones(len(kept) + 1, dtype=bool)
    if rows.starts is not None:
        begins[:] = False
        begins[rows.starts] = True
    open_: list[_Part] = []
    size = 0
    for block, (start, stop) in enumerate(zip(table.starts[:-1], table.starts[1:], strict=True)):
        if block not in decoded:
            if kept[start]:
                if open_:
                    yield open_
                    open_, size = [], 0
                yield block
            continue
        offset = int(table.offsets[block])
        for slot, (part, data) in enumerate(zip(range(start, stop), decoded[block], strict=True)):
            offset = 0 if begins[part] else offset
            if kept[part]:
                if open_ and (len(open_) == BLOCK_PARTS or size + len(data) > BLOCK_BYTES):
                    yield open_
                    open_, size = [], 0
                open_.append(_Part(block, slot, data, offset))
                size += len(data)
            offset += len(data)
    if open_:
        yield open_


def _coded(archive: Archive, number: int, pieces: Sequence[Sequence[_Part]]) -> Iterator[Block]:
    """New blocks of what stays of those that are cut. Vectors of another embedder are not computed anew:
    their codes are moved."""
    layers = [layer for layer in archive.layers if layer != SEARCH or archive.manifest.embedder is None]
    texts = [[part.data for part in piece] for piece in pieces]
    blocks = archive._model().encode_blocks(texts, layers, _preset(archive)) if texts else []
    if archive.manifest.embedder is None:
        yield from blocks
        return
    codec = archive._search_codec()
    held: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for piece, block in zip(pieces, blocks, strict=True):
        slots, codes = [], []
        for slot, part in enumerate(piece):
            if part.block not in held:
                old = archive._store.block(number, part.block, (SEARCH,))
                held[part.block] = codec.search_codes(old)
            of, all_codes = held[part.block]
            codes.append(all_codes[slice(*np.searchsorted(of, [part.slot, part.slot + 1]))])
            slots += [slot] * len(codes[-1])
        layer = dump_codes(len(piece), np.array(slots, np.int64), np.concatenate(codes))
        yield Block(block.count, {**block.layers, SEARCH: layer})


def _text_bytes(archive: Archive, fates: _Fates, kept: int, cut: int, share: float) -> int:
    """Bytes of the text that stays. kept, cut: in blocks that are cut, what stays and all. share: of the
    records; without the text nobody knows better."""
    whole = archive.manifest.text_bytes
    if not archive.holds_text:
        return round(whole * share)

    def held(places: Sequence[Place]) -> int:
        decoded = (archive._decode(batch, OF_TEXT) for batch in archive._batches(places))
        return sum(len(part) for blocks in decoded for parts in blocks for part in parts)

    if not fates.gone or len(fates.gone) < len(fates.kept):
        return whole - (cut - kept) - held(fates.gone)
    return kept + held(fates.kept)
