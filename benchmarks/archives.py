"""colazip's side of the compression benchmark: real archives on disk, every byte of the file counted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colazip.archive import Archive
from colazip.codec import Codec
from colazip.evaluate.peers import Measurement
from colazip.layers import EXACT, GIST, LAYERS, PLAIN, SEARCH, ArchiveCodec, Block
from colazip.presets import BALANCED, FAST, SMALL


@dataclass(frozen=True)
class Variant:
    """One way to pack. detail: of the gist; price: bits that one of its tokens may cost; brief: the share of
    the words of long texts in a brief one."""

    preset: str
    layers: tuple[str, ...]
    detail: int = 0
    price: float | None = None
    brief: float | None = None

    @property
    def name(self) -> str:
        of_detail = {GIST: f"{GIST} of detail {self.detail}"} if self.detail else {}
        if self.price is not None:
            of_detail = {GIST: f"{GIST} at {self.price:g} bits a token"}
        if self.brief is not None:
            of_detail = {GIST: f"brief {GIST}, 1/{round(1 / self.brief)} of the words"}
        kept = [layer for layer in (EXACT, PLAIN, GIST, SEARCH) if layer in self.layers]
        shown = " + ".join(of_detail.get(layer, layer) for layer in kept)
        return f"colazip {shown}" if self.preset == SMALL else f"colazip {self.preset}: {shown}"


def variants(details: int) -> list[Variant]:
    """What is measured of a model with so many details; the first one is also shown layer by layer."""
    return [
        Variant(SMALL, LAYERS),
        Variant(BALANCED, (SEARCH, PLAIN)),
        Variant(FAST, (SEARCH, PLAIN)),
        Variant(FAST, (PLAIN,)),
        *(Variant(SMALL, (SEARCH, GIST), detail) for detail in range(details)),
        Variant(SMALL, (SEARCH, GIST), price=9.6),
        Variant(SMALL, (SEARCH, GIST), brief=1 / 8),
        Variant(SMALL, (SEARCH,)),
    ]


@dataclass(frozen=True)
class SourceRow:
    """One source packed as an archive of its own. plain_parts: parts that were left to zstd."""

    source: str
    records: int
    raw_bytes: int
    file_bytes: int
    parts: int
    plain_parts: int

    @property
    def ratio(self) -> float:
        """Raw bytes over bytes of the file."""
        return self.raw_bytes / self.file_bytes


class Keeper:
    """An `ArchiveCodec` that codes as `codec` does and keeps the blocks and their parts."""

    def __init__(self, codec: ArchiveCodec) -> None:
        self._codec = codec
        self.id, self.name, self.codebook = codec.id, codec.name, codec.codebook
        self.split, self.vectors, self.search_codes = codec.split, codec.vectors, codec.search_codes
        self.decode_blocks, self.read_gist = codec.decode_blocks, codec.read_gist
        self.plain_slots, self.passages = codec.plain_slots, codec.passages
        self.code_bytes, self.with_code_bytes = codec.code_bytes, codec.with_code_bytes
        self.abridged, self.conditional = codec.abridged, codec.conditional
        self.pack_batch, self.read_batch = codec.pack_batch, codec.read_batch
        self.blocks: list[Block] = []
        self.parts: list[Sequence[bytes]] = []

    def encode_blocks(
        self,
        blocks: Sequence[Sequence[bytes]],
        layers: Sequence[str] | None = None,
        preset: str = SMALL,
    ) -> list[Block]:
        coded = self._codec.encode_blocks(blocks, layers, preset)
        self.blocks += coded
        self.parts += blocks
        return coded


def measure_layers(
    records: Sequence[bytes], variant: Variant, codec: ArchiveCodec, path: Path
) -> tuple[Measurement, dict]:
    """Pack, read all back, and ask the archive where its bytes are. codec: writes the variant's detail.

    The unpack time is that of the exact text, compared byte for byte; without that layer, of the gist
    readings; NaN if there is nothing to read. Raises ValueError if a text comes back changed.
    """
    name = variant.name
    start = time.perf_counter()
    Archive.pack(path, records, codec=codec, layers=variant.layers, preset=variant.preset)
    packed = time.perf_counter()
    with Archive(path, codec) as archive:
        info = archive.info()
        if archive.holds_text:
            if len(archive) != len(records):
                raise ValueError(f"{name}: {len(archive)} of {len(records)} records came back")
            for record, wanted in zip(archive, records, strict=True):
                if record.data != wanted:
                    raise ValueError(f"{name}: record {record.id} came back changed")
            unpack_seconds = time.perf_counter() - packed
        elif GIST in variant.layers:
            for _ in archive.gists():
                pass
            unpack_seconds = time.perf_counter() - packed
        else:
            unpack_seconds = float("nan")
    size = path.stat().st_size
    raw = sum(map(len, records))
    return Measurement(name, "record", len(records), raw, size, packed - start, unpack_seconds), info


def measure_source(source: str, records: Sequence[bytes], codec: ArchiveCodec, path: Path) -> SourceRow:
    """Pack the records of one source with all layers."""
    keeper = Keeper(codec)
    summary = Archive.pack(path, records, codec=keeper)
    parts = sum(block.count for block in keeper.blocks)
    plain = sum(len(codec.plain_slots(block)) for block in keeper.blocks)
    return SourceRow(source, len(records), summary.text_bytes, path.stat().st_size, parts, plain)


def largest_growth(records: Sequence[bytes], codec: Codec) -> int:
    """Bytes by which the worst of the blobs, one a record, is longer than its record.

    Raises ValueError if a record comes back changed.
    """
    blobs = codec.encode(records)
    if codec.decode(blobs) != list(records):
        raise ValueError("blobs of hostile records came back changed")
    return max(len(blob) - len(record) for blob, record in zip(blobs, records, strict=True))
