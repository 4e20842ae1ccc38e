"""Names of the layers of a coded record, and the block that carries them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np

from colazip.errors import UsageError

SEARCH = "search"
GIST = "gist"
EXACT = "exact"
LAYERS: tuple[str, ...] = (SEARCH, GIST, EXACT)

# Text that a classical coder keeps. Packed by name, in place of gist and exact, it holds the text of every
# record. Beside the gist it holds the few records that the model would store worse; then it goes unnamed, is
# written where needed, and can't be stripped: such a record has no gist.
PLAIN = "plain"

# Layers that a text is decoded from, and those that the reading of its gist is: a gist may be coded given the
# search codes beside it.
OF_TEXT = (*LAYERS, PLAIN)
OF_READING = (SEARCH, GIST, PLAIN)

BLOCK_BYTES = 64 * 1024  # text bytes of a block at most
BLOCK_PARTS = 4096  # parts of a block at most: empty and tiny ones would never fill it


Span = tuple[int, int]  # first byte, end
_T = TypeVar("_T")


def in_batches(items: Iterable[_T], most: int) -> Iterator[list[_T]]:
    """Lists of `most` items; the last one takes up to a quarter more, as a few by themselves take long."""
    left, room = iter(items), most + most // 4
    batch: list[_T] = []
    while batch := [*batch, *islice(left, room + 1 - len(batch))]:
        end = len(batch) if len(batch) <= room else most
        yield batch[:end]
        batch = batch[end:]


def check_layers(layers: Sequence[str]) -> tuple[str, ...]:
    """The layers in their own order; raises UsageError for a set that can't be packed."""
    if isinstance(layers, str) or not set(layers) <= {*LAYERS, PLAIN}:
        known = ", ".join((*LAYERS, PLAIN))
        raise UsageError(f"layers must be among {known}, not {', '.join(map(str, layers))}")
    if not layers:
        raise UsageError("at least one layer is needed")
    if EXACT in layers and GIST not in layers:
        raise UsageError("the exact layer is coded given the gist: keep both, or neither")
    if PLAIN in layers and GIST in layers:
        raise UsageError("plain keeps whole texts in place of gist and exact: choose either")
    return tuple(layer for layer in (*LAYERS, PLAIN) if layer in layers)


def check_readable(layer: str) -> None:
    """Raises UsageError for a layer that can't be asked for as text."""
    if layer not in (EXACT, GIST):
        raise UsageError(f"layer {layer!r} can't be read as text; choose exact or gist")


def holds_text(layers: Collection[str]) -> bool:
    """Whether a set of layers, as `check_layers` allows it, gives every text back byte for byte."""
    return EXACT in layers or PLAIN in layers


@dataclass(frozen=True)
class Block:
    """Parts (records, or pieces of a long record) that were coded together.

    count: number of parts. layers: layer name -> bytes. Keys are a subset of LAYERS plus PLAIN; a layer that
    was not packed is absent.
    """

    count: int
    layers: Mapping[str, bytes]


class SearchCodec(Protocol):
    """What a search needs: the codes of an archive, and vectors of queries to compare them with."""

    @property
    def codebook(self) -> np.ndarray:
        """Product-quantizer centroids, float32 [M, 256, D / M]; a code is M bytes, a vector D floats."""

    def search_codes(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """(slots int64 [n], codes uint8 [n, M]): the codes, and the part that each stands for.

        Slots ascend. A part with several passages is there once for each, in their order. The block may come
        with its layer SEARCH alone.
        """

    def vectors(self, texts: Sequence[str | bytes]) -> np.ndarray:
        """Unit vectors, float32 [N, D]."""


class ArchiveCodec(SearchCodec, Protocol):
    """What an archive needs of a codec. `colazip.codec.Codec` is the implementation that ships."""

    @property
    def id(self) -> str:
        """Hex digest of format, weights and tables: two codecs of one id read each other's blocks."""

    @property
    def name(self) -> str:
        """Readable model name."""

    @property
    def code_bytes(self) -> int | None:
        """Bytes of the search codes that it writes; None if codecs of this id know one size only."""

    @property
    def abridged(self) -> str | None:
        """What it leaves out of gists beyond their detail, for people: "price 9.6"; None if nothing."""

    @property
    def conditional(self) -> bool:
        """Whether it codes gists given the search codes beside them."""

    @property
    def pack_batch(self) -> int:
        """Blocks that it codes together; more at a time are no faster."""

    @property
    def read_batch(self) -> int:
        """Blocks that it decodes together."""

    def with_code_bytes(self, code_bytes: int) -> SearchCodec:
        """What reads codes of that size. Raises UsageError for one that codecs of this id don't make."""

    def split(self, data: bytes) -> list[bytes]:
        """Cut a record into parts of at most BLOCK_BYTES that join to `data`; one empty part if empty."""

    def encode_blocks(
        self,
        blocks: Sequence[Sequence[bytes]],
        layers: Sequence[str] | None = None,
        preset: str = "small",
    ) -> list[Block]:
        """Code each sequence of parts as one block. A result does not depend on what it is batched with.

        preset, layers: as `colazip.presets.choose` takes them.
        """

    def decode_blocks(self, blocks: Sequence[Block]) -> list[list[bytes]]:
        """Exact bytes of every part. Raises MissingLayerError where the layers don't hold the text,
        FormatError on damage."""

    def read_gist(self, blocks: Sequence[Block]) -> list[list[str]]:
        """Approximate text of every part from GIST alone (the exact text for parts kept in PLAIN)."""

    def passages(self, parts: Sequence[bytes], counts: Sequence[int] | None = None) -> list[list[Span]]:
        """Byte ranges of the passages that the search codes of each part stand for.

        counts: how many codes it has; None: as many as coding it would make, none if it is empty or no text.
        For a part's approximate text, about the same passages.
        """

    def plain_slots(self, block: Block) -> np.ndarray:
        """int64 [n]: the parts whose text is in PLAIN."""
