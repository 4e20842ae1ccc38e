"""Archives whose search codes stand for another embedder's vectors: packing and searching them.

Centroids should fit all of the archive, and records come once. So all layers but search are written to a
temporary file while vectors go to a spool beside it; then a quantizer is made from a sample of the vectors,
and the sections are copied with the codes between them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from colazip import quantizer
from colazip.archive.blocks import add_layer
from colazip.archive.format import BLOCKS, CODEBOOK, MAX_VECTOR_WIDTH, EmbedderInfo
from colazip.archive.output import AtomicFile
from colazip.archive.record import PackSummary, Record
from colazip.archive.store import Store
from colazip.archive.writer import Container, pack
from colazip.embedder import Embedder
from colazip.errors import FormatError, InputError, MissingLayerError, ModelMismatchError, UsageError
from colazip.layers import SEARCH, ArchiveCodec, Block
from colazip.presets import SMALL, choose
from colazip.quantizer import SAMPLE, Quantizer
from colazip.search_layer import dump_codes, load_codes


def pack_embedded(
    path: str | os.PathLike[str],
    records: Iterable[Record | str | bytes],
    codec: ArchiveCodec,
    embedder: Embedder,
    *,
    layers: Sequence[str] | None,
    preset: str,
    overwrite: bool,
    source: Mapping[str, Any] | None,
    batch_blocks: int | None,
    progress: Callable[[int, int], None] | None,
) -> PackSummary:
    """`colazip.archive.writer.pack` with the vectors of `embedder` behind the search codes."""
    wanted, _ = choose(preset, layers)
    if SEARCH not in wanted:
        raise UsageError("an embedder was given, but the layers leave out search")
    with AtomicFile(path, overwrite) as file:  # first: it says at once if `path` can't be written
        try:
            folder = tempfile.TemporaryDirectory(prefix=".colazip-", dir=os.path.dirname(file.path))
        except OSError as error:
            raise InputError(f"{file.path}: can't be written: {error.strerror or error}") from error
        with folder, Spool(embedder, Path(folder.name) / "vectors") as spool:
            text = Path(folder.name) / "text.cola"
            summary = pack(
                text,
                records,
                _Recorder(codec, spool),
                layers=wanted,
                preset=preset,
                source=source,
                batch_blocks=batch_blocks,
                progress=progress,
            )
            store = Store(os.fspath(text))
            try:
                _copy_with_codes(store, spool, Container(file))
            finally:
                store.close()
        return replace(summary, file_bytes=file.size)


class Spool:
    """Vectors of passages on their way to codes, in a file; a fair sample of them in memory."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self.embedder = embedder
        self.slots: list[np.ndarray] = []  # of each block in order, int64 [n]
        self.total = 0
        self._path = path
        self._sample = np.zeros((0, 0), np.float32)
        self._random = np.random.default_rng(0)

    def __enter__(self) -> Spool:
        self._file: IO[bytes] = open(self._path, "w+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def sample(self) -> np.ndarray:
        """float32 [n, D], at most SAMPLE of the vectors, each as likely to be there."""
        return self._sample[: self.total]

    def add(self, slots: np.ndarray, texts: Sequence[str]) -> None:
        """Embed the passages of one block. slots: int64 [n], the part of each."""
        self.slots.append(slots)
        if not texts:
            return
        vectors = self.embedder.vectors(texts)
        if not self.total:
            if vectors.shape[1] > MAX_VECTOR_WIDTH:
                raise UsageError(f"embedder {self.embedder.name}: vectors of {vectors.shape[1]} floats")
            self._sample = np.zeros((SAMPLE, vectors.shape[1]), np.float32)
        if vectors.shape[1] != self._sample.shape[1]:
            raise UsageError(
                f"embedder {self.embedder.name}: gives vectors of {vectors.shape[1]} floats, "
                f"before it gave {self._sample.shape[1]}"
            )
        # A reservoir: vector t replaces one of the sample with probability SAMPLE / (t + 1).
        ranks = np.arange(self.total, self.total + len(vectors))
        places = np.where(ranks < SAMPLE, ranks, self._random.integers(0, ranks + 1))
        for row in np.flatnonzero(places < SAMPLE).tolist():
            self._sample[places[row]] = vectors[row]
        self.total += len(vectors)
        try:
            self._file.write(np.ascontiguousarray(vectors, "<f4").tobytes())
        except OSError as error:
            raise InputError(f"{self._path}: can't be written: {error.strerror or error}") from error

    def rewind(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each block: (slots int64 [n], vectors float32 [n, D])."""
        width = self._sample.shape[1] or 1
        self._file.seek(0)
        for slots in self.slots:
            data = self._file.read(len(slots) * width * 4)
            yield slots, np.frombuffer(data, "<f4").reshape(len(slots), width)


def _copy_with_codes(store: Store, spool: Spool, container: Container) -> None:
    """The archive of `store` with a search layer, and the codebook after its groups."""
    manifest = store.manifest
    # Nothing embedded: nothing to search in, but the width is known for whoever asks.
    sample = spool.sample if spool.total else spool.embedder.vectors(["nothing"])
    made = quantizer.train(sample, spool.total, spool.embedder.code_bytes)
    vectors = spool.rewind()
    for number, group in enumerate(manifest.groups):
        table, _ = store.tables(number)
        layers = []
        for block in range(group.blocks):
            slots, rows = next(vectors)
            layers.append(dump_codes(table.count(block), slots, made.codes(rows)))
        container.add_section(SEARCH, layers)
        for section in group.sections.values():
            if section.kind == BLOCKS:
                blocks = add_layer(store.read_section(section), group, SEARCH, layers)
                container.add_section(BLOCKS, [blocks])
            else:
                container.add_section(section.kind, store.read_chunks(section))
        container.end_group(group.records, group.parts, group.blocks, group.named)
    section = container.add_section(CODEBOOK, [made.data])
    info = EmbedderInfo(spool.embedder.name, sample.shape[1], made.code_bytes, made.kind, section)
    container.finish(replace(manifest, groups=tuple(container.groups), embedder=info))


class _Recorder:
    """An `ArchiveCodec` that codes all layers but search, and hands the passages to a spool."""

    def __init__(self, codec: ArchiveCodec, spool: Spool) -> None:
        self._codec, self._spool = codec, spool
        self.id, self.name, self.codebook = codec.id, codec.name, codec.codebook
        self.split, self.decode_blocks, self.read_gist = codec.split, codec.decode_blocks, codec.read_gist
        self.plain_slots, self.passages, self.vectors = codec.plain_slots, codec.passages, codec.vectors
        self.search_codes, self.with_code_bytes = codec.search_codes, codec.with_code_bytes
        self.code_bytes = None  # the codes will be of the embedder's vectors
        self.abridged = codec.abridged
        self.pack_batch, self.read_batch = codec.pack_batch, codec.read_batch
        self.conditional = False  # the codes come after the text is coded

    def encode_blocks(
        self,
        blocks: Sequence[Sequence[bytes]],
        layers: Sequence[str] | None = None,
        preset: str = SMALL,
    ) -> list[Block]:
        wanted, _ = choose(preset, layers)
        for parts in blocks:
            spans = self.passages(parts)
            found = [part[start:end] for part, of in zip(parts, spans, strict=True) for start, end in of]
            texts = [text.decode("utf-8", "replace") for text in found]
            slots = np.repeat(np.arange(len(parts)), [len(of) for of in spans])
            self._spool.add(slots, texts)
        rest = [layer for layer in wanted if layer != SEARCH]
        return (
            self._codec.encode_blocks(blocks, rest, preset) if rest else [Block(len(b), {}) for b in blocks]
        )


class EmbeddedCodec:
    """The `SearchCodec` of such an archive. embedder: None reads codes, but knows no queries."""

    def __init__(self, store: Store, embedder: Embedder | None) -> None:
        info = store.manifest.embedder
        assert info is not None
        self._path, self._info, self._embedder = store.path, info, embedder
        try:
            data = store.read_section(info.section)
            self._quantizer: Quantizer = quantizer.load(info.kind, info.width, info.code_bytes, data)
        except FormatError as error:
            raise FormatError(f"{store.path}: {error}") from error

    @property
    def codebook(self) -> np.ndarray:
        return self._quantizer.codebook

    def search_codes(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        if SEARCH not in block.layers:
            raise MissingLayerError("the search layer was not packed, or was stripped")
        return load_codes(block.layers[SEARCH], block.count, self._info.code_bytes)

    def vectors(self, texts: Sequence[str | bytes]) -> np.ndarray:
        """Unit vectors of queries. Raises UsageError without an embedder, ModelMismatchError for one of
        another width."""
        if self._embedder is None:
            raise UsageError(
                f"{self._path}: its search vectors are those of {self._info.name!r} "
                f"({self._info.width} floats); open it with colazip.open(path, embedder=...)"
            )
        queries = [text if isinstance(text, str) else text.decode("utf-8", "replace") for text in texts]
        found = self._embedder.query_vectors(queries)
        if found.shape[1] != self._info.width:
            raise ModelMismatchError(
                f"{self._path}: embedder {self._embedder.name!r} gives vectors of {found.shape[1]} floats; "
                f"it was packed with {self._info.width}"
            )
        return found
