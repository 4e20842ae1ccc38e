"""Reading an archive. Opening it reads the manifest; all else is read and checked when it is needed."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, compress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pyarrow as pa

from colazip.archive.blocks import BlockTable
from colazip.archive.format import ROWS, text_crc
from colazip.archive.record import Hit, PackSummary, Record
from colazip.archive.selection import (
    Chosen,
    Places,
    Run,
    blocks_of,
    chosen_rows,
    ranges,
    rows_of,
    stream,
)
from colazip.archive.snippets import Passage
from colazip.archive.store import Store
from colazip.embedder import Embedder, Encode, as_embedder
from colazip.errors import (
    ColazipError,
    FormatError,
    MissingLayerError,
    ModelMismatchError,
    RecordNotFoundError,
    SearchIndexError,
    UsageError,
)
from colazip.layers import (
    EXACT,
    GIST,
    LAYERS,
    OF_READING,
    OF_TEXT,
    PLAIN,
    SEARCH,
    ArchiveCodec,
    Block,
    SearchCodec,
    check_readable,
    holds_text,
    in_batches,
)
from colazip.oneshot import default_codec
from colazip.presets import SMALL

if TYPE_CHECKING:
    from colazip.archive.embedded import EmbeddedCodec
    from colazip.archive.sidecar import Sidecar
    from colazip.coarse import LargeIndex
    from colazip.codec import Codec
    from colazip.lexical import LexicalIndex
    from colazip.refine import RefinedIndex
    from colazip.sampling import Sampling
    from colazip.search import SearchIndex

_T = TypeVar("_T")
_ROWS = 4096  # whose metadata is read at once
_BATCH_ROWS = 1024

_KEPT_BLOCKS = 16  # decoded blocks that stay in memory, for reads of neighbours


class Archive:
    """An archive opened for reading; a context manager. Threads may share it; the networks of a process run
    for one of them at a time.

    path: the file, or a URL (https://, s3://, what fsspec knows), of which the parts are fetched that are
    needed. codec: what decodes it and embeds queries; None stands for the default model of the package,
    loaded when a call first needs it. embedder: what embeds queries of an archive that was packed with one;
    all but search by meaning works without. storage_options: for a URL, what fsspec's file system of its
    protocol takes. Raises InputError if the file can't be read, FormatError if it isn't a whole archive,
    VersionError if it is of a newer format, ModelMismatchError if `codec` or `embedder` isn't the one it was
    written with. Every method raises FormatError on damage, and never returns other text.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        codec: ArchiveCodec | None = None,
        *,
        embedder: Embedder | Encode | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.storage_options = storage_options
        self._codec = codec
        self._store = Store(self.path, storage_options)
        self.manifest = self._store.manifest
        try:
            self._embedder = None if embedder is None else self._checked(as_embedder(embedder))
            if codec is not None:
                self._check_model(codec)
        except ColazipError:
            self.close()
            raise
        self._lock = threading.RLock()  # of what is kept in memory
        self._decoded: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self._search_index: tuple[SearchIndex | LargeIndex | RefinedIndex, np.ndarray] | None = None
        self._index_files: Sidecar | None = None
        self._embedded: EmbeddedCodec | None = None

    @classmethod
    def pack(
        cls,
        path: str | os.PathLike[str],
        records: Iterable[Record | str | bytes],
        *,
        codec: ArchiveCodec | None = None,
        embedder: Embedder | Encode | None = None,
        layers: Sequence[str] | None = None,
        preset: str = SMALL,
        overwrite: bool = False,
        source: Mapping[str, Any] | None = None,
        batch_blocks: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> PackSummary:
        """Write an archive of `records` to `path`, which appears whole or not at all.

        codec: None for the default model of the package. embedder: a function from texts to float [n, D]
        whose vectors search runs on, in place of the model's; a bare function is known by its `__name__`,
        give an `Embedder` to name it or to say more. The archive must be opened with it to be searched.
        preset: `small`, the smallest archive; `balanced`
        and `fast` keep the exact text with zstd instead of gist and exact, `fast` with less effort. layers:
        what to keep of records, some of the preset's; None for all of them; exact needs gist.
        source: free-form JSON about where the records came from. batch_blocks: blocks of 64 KiB of text coded
        at a time, None for as many as the codec takes together; memory and speed, never the result. progress:
        called with the totals so far of records and text bytes taken. Raises UsageError if `path` exists and
        `overwrite` is false, LockedError if another process is writing it, InputError for duplicate ids,
        unfit metadata, or a file that can't be written.
        """
        from colazip.archive.embedded import pack_embedded
        from colazip.archive.writer import pack

        if embedder is not None:
            return pack_embedded(
                path,
                records,
                codec or default_codec(),
                as_embedder(embedder),
                layers=layers,
                preset=preset,
                overwrite=overwrite,
                source=source,
                batch_blocks=batch_blocks,
                progress=progress,
            )
        return pack(
            path,
            records,
            codec or default_codec(),
            layers=layers,
            preset=preset,
            overwrite=overwrite,
            source=source,
            batch_blocks=batch_blocks,
            progress=progress,
        )

    @classmethod
    def merge(
        cls,
        path: str | os.PathLike[str],
        archives: Sequence[str | os.PathLike[str]],
        *,
        overwrite: bool = False,
        source: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> PackSummary:
        """Write one archive of the records of several, in their order, to `path`, which may be one of them.

        Nothing is coded anew. Records keep their ids and metadata; those that go by their numbers are
        numbered on. source: as of `pack`; None: what all of them say alike. progress: called with the totals
        so far of records and text bytes. Raises UsageError unless all were packed by one model with the same
        layers and sizes of codes, InputError for an id that occurs twice, and as `pack` does.
        """
        from colazip.archive.merge import merge

        return merge(path, archives, overwrite, progress, source)

    def select(
        self,
        path: str | os.PathLike[str],
        *,
        where: str | None = None,
        ids: Iterable[str] | None = None,
        drop: bool = False,
        overwrite: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> PackSummary:
        """Write an archive of some of the records, or with `drop` of all others, to `path`, which may be that
        of this one.

        where: those whose metadata pass, as in `search`. ids: those of these ids. Records keep ids and
        metadata. Blocks that stay whole are copied as they are, those that only some records leave are coded
        anew, by the codec that the archive was opened with. progress: as of `merge`. Raises UsageError unless
        there is one of `where` and `ids`, if that codec writes otherwise than the archive's did, and where
        there is no exact text to code anew; RecordNotFoundError, and as `pack` does.
        """
        from colazip.archive.select import select

        return select(self, path, where, ids, drop, overwrite, progress)

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was read stays in memory until the object goes."""
        self._store.close()

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that the archive has: some of search, gist, exact, or search and plain, in this order.

        Plain is among them if it holds the text of all records, not where it stands in for a few.
        """
        return self.manifest.layers

    @property
    def holds_text(self) -> bool:
        """Whether `get` gives the exact bytes: the archive has the layer exact, or plain."""
        return holds_text(self.manifest.layers)

    @property
    def model_id(self) -> str:
        """Id of the codec that the archive was written with."""
        return self.manifest.codec_id

    @property
    def file_bytes(self) -> int:
        """Size of the archive's file."""
        return self._store.file_bytes

    @property
    def source(self) -> dict[str, Any]:
        """What `pack` was told about where the records came from."""
        return self.manifest.source

    def __len__(self) -> int:
        return self._store.first_records[-1]

    def __iter__(self) -> Iterator[Record]:
        """Records in order, exact, in bounded memory."""
        return self.records()

    def records(
        self, start: int = 0, stop: int | None = None, *, where: str | None = None, layer: str = EXACT
    ) -> Iterator[Record]:
        """Records in order, in bounded memory: those that `start` and `stop` cut out as they would of a list,
        and of them, with `where`, those whose metadata pass, as in `search`. Blocks without one of them are
        not decoded.

        layer: EXACT for the exact bytes, GIST for the approximate reading, in UTF-8 ("surrogatepass"). Raises
        UsageError for another layer or a filter that can't be read, MissingLayerError where the archive
        has not that layer.
        """
        check_readable(layer)
        if layer == EXACT:
            self._need_text()
        else:
            self._need(GIST)
        chosen = chosen_rows(self._store, range(len(self))[start:stop], where)
        if layer == GIST:
            return (
                Record("".join(parts).encode("utf-8", "surrogatepass"), name, metadata)
                for name, metadata, parts in self._read(self._read_gist, OF_READING, chosen)
            )
        return self._exact_records(chosen)

    def _exact_records(self, chosen: Chosen) -> Iterator[Record]:
        for group, start, parts in self._stream(self._decode, OF_TEXT, chosen):
            table, rows = self._store.tables(group)
            if self.manifest.version > 1 and not _offsets_hold(table, rows.parts(start)[0], parts):
                raise FormatError(f"{self.path}: damaged: a block table lies about where its text belongs")
            metadata = rows.metadata(start, start + len(parts))
            names = self._store.names(group, start, start + len(parts))
            for name, record_parts, values in zip(names, parts, metadata, strict=True):
                yield Record(b"".join(record_parts), name, values)

    def ids(self, where: str | None = None, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """Ids in order; decodes nothing. where: only of records whose metadata pass, as in `search`; start,
        stop: as of `records`. Raises UsageError for a filter that can't be read."""
        return self._ids(chosen_rows(self._store, range(len(self))[start:stop], where))

    def _ids(self, chosen: Iterable[tuple[int, Sequence[int]]]) -> Iterator[str]:
        for group, rows in chosen:
            if self.manifest.groups[group].named:
                names = self._store.names(group, rows[0], rows[-1] + 1)
                yield from (names[row - rows[0]] for row in rows)
            else:
                first = self._store.first_records[group]
                yield from (str(first + row) for row in rows)

    def rows(
        self, where: str | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(id, metadata) in order, as `ids` has them."""
        return self._rows(chosen_rows(self._store, range(len(self))[start:stop], where))

    def _rows(self, chosen: Iterable[tuple[int, Sequence[int]]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for group, rows in chosen:
            table = self._store.tables(group)[1]
            for at in range(0, len(rows), _ROWS):
                some = rows[at : at + _ROWS]
                wanted = np.zeros(some[-1] + 1 - some[0], dtype=bool)
                wanted[np.asarray(some) - some[0]] = True
                every = zip(
                    self._store.names(group, some[0], some[-1] + 1),
                    table.metadata(some[0], some[-1] + 1),
                    strict=True,
                )
                yield from compress(every, wanted)

    def ranges(self, count: int) -> list[tuple[int, int]]:
        """(start, stop) of at most `count` ranges of records, of about as many blocks each, which together
        are all of them in order: for tasks that read side by side.

        They break where a record begins with a block, so that no block is decoded for two of them. Only where
        records lie across blocks for long, and ranges are of 8 blocks or more, they break within one. Of a
        small archive there may be fewer ranges, of an empty one there are none. Raises UsageError for a count
        below 1.
        """
        if count < 1:
            raise UsageError(f"{count} ranges; ask for 1 or more")
        return ranges(self._store, count)

    def metadata_types(self) -> Iterator[tuple[str, pa.DataType | None]]:
        """(key, type of its values) for each key of metadata in each group of rows; None where Arrow has no
        type for them all."""
        for group in range(len(self.manifest.groups)):
            yield from self._store.tables(group)[1].types()

    @property
    def vector_width(self) -> int:
        """D, the dimensions of the vectors that the search codes stand for."""
        self._need(SEARCH)
        parts, _, width = self._search_codec().codebook.shape
        return int(parts * width)

    def vectors(
        self, start: int = 0, stop: int | None = None, *, where: str | None = None
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """(ids, what their search codes stand for) of up to 4,096 records at a time; decodes nothing.

        Vectors: float32 [n, D], of unit length; of a long record the mean of its passages; rows of NaN for
        records without a code. start, stop, where: as of `records`. Raises MissingLayerError without a
        layer search.
        """
        from colazip.archive.find import record_vectors

        self._need(SEARCH)
        codebook = self._search_codec().codebook
        for group, rows in chosen_rows(self._store, range(len(self))[start:stop], where):
            read = [self._block_codes(group, block) for block in blocks_of(self._store, group, rows)]
            owners, codes = (np.concatenate([of[i] for of in read]) for i in (1, 2))
            for at in range(0, len(rows), _ROWS):
                some = rows[at : at + _ROWS]
                ordinals = np.asarray(some, dtype=np.int64) + self._store.first_records[group]
                found = record_vectors(owners, codes, codebook, ordinals)
                yield list(self._ids([(group, some)])), found

    def to_arrow(
        self,
        columns: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
        *,
        where: str | None = None,
        layer: str = EXACT,
        batch_rows: int = _BATCH_ROWS,
        binary: bool = False,
    ) -> pa.RecordBatchReader:
        """Records as Arrow record batches, decoded while they are read: for pandas, Polars, DuckDB, Parquet.

        columns: as `colazip unpack` names them in a table, and `id`; None for all of those. `vector`, if
        named, is what `vectors` gives, null without a code. Without the text nothing is decoded. start,
        stop, where, layer: as of `records`. batch_rows: at most, fewer where texts are long. binary: the
        text as bytes, for archives of records that are not UTF-8. Raises UsageError for a column that is not
        there; reading raises as `records` does, and InputError for a text that is not UTF-8.
        """
        from colazip.arrow import batches, columns_of

        check_readable(layer)
        if isinstance(columns, str):
            raise UsageError("columns are a list of names, not one name")
        chosen = columns_of(self, columns, binary=binary)
        found = batches(self, chosen, start=start, stop=stop, where=where, layer=layer, rows=batch_rows)
        return pa.RecordBatchReader.from_batches(chosen.schema, found)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._store.find(id) is not None

    def get(self, id: str) -> bytes:
        """The exact bytes of one record; decodes the blocks it lies in and no others."""
        self._need_text()
        group, row = self._locate(id)
        slots, blocks = self._slots(group, row)
        decoded = self._decoded_blocks(group, blocks)
        return b"".join(decoded[block][slot] for block, slot in slots)

    def gist(self, id: str) -> str:
        """The reading of one record's gist: near its text, not equal to it."""
        self._need(GIST)
        group, row = self._locate(id)
        slots, blocks = self._slots(group, row)
        texts = self._read_gists(group, blocks)
        return "".join(texts[block][slot] for block, slot in slots)

    def gists(
        self,
        denoise: bool = False,
        detail: int | None = None,
        missing: float = 0.0,
        options: Sampling | None = None,
        *,
        where: str | None = None,
    ) -> Iterator[tuple[str, str]]:
        """(id, reading of the gist) in order, in bounded memory; where: only of records whose metadata pass.

        denoise: let the prior help to read what the gist leaves open, as `options` say; with `detail` as if
        the gist had been written with that, with `missing` as if that share of its patches were lost, evenly
        spread. Raises UsageError.
        """
        self._need(GIST)
        read: Callable[[Places, Sequence[str]], list[list[str]]] = self._read_gist
        if denoise:
            read = partial(self._read_denoised, detail=detail, missing=missing, options=options)
        chosen = chosen_rows(self._store, range(len(self)), where)
        for name, _, parts in self._read(read, OF_READING, chosen):
            yield name, "".join(parts)

    def metadata(self, id: str) -> dict[str, Any]:
        """The metadata of one record."""
        group, row = self._locate(id)
        return next(self._store.tables(group)[1].metadata(row, row + 1))

    def search(
        self,
        query: str,
        k: int = 10,
        mode: str | None = None,
        where: str | None = None,
        *,
        group: bool = True,
        snippets: bool = True,
    ) -> list[Hit]:
        """The k records that answer `query` best, best first; none for a blank query.

        mode: `semantic` ranks by nearness in meaning, `lexical` by words in common (BM25), `hybrid` by both;
        the latter two need the index that `build_index` makes. None is hybrid where that index is (lexical
        without a layer search or the embedder that the archive was packed with), else semantic. where: only
        records whose metadata pass, e.g. `year >= 2020 and lang = 'en'` (colazip/where.py has the grammar); k
        of those are found where k exist. snippets: False spares the decoding of the hits' text.

        A long record has a vector a passage, ranks by its best one, and shows that; a hit whose words are in
        another part of the record than that shows the passage there with most of them, as does one found by
        words alone. With group false hits are the k passages nearest in meaning, several of one record
        perhaps. Records that are no text to the model (binary, scripts it never saw) have no vector and are
        not found by meaning. The first semantic search reads the codes, which stay in memory with 8 bytes a
        passage. Raises UsageError for a wrong mode or filter, SearchIndexError if the index is missing, stale
        or damaged; `semantic` goes past a bad index.
        """
        from colazip.archive.find import find_many

        return next(find_many(self, [query], k, mode, where, group=group, snippets=snippets))

    def search_many(
        self,
        queries: Iterable[str],
        k: int = 10,
        mode: str | None = None,
        where: str | None = None,
        *,
        group: bool = True,
        snippets: bool = True,
    ) -> Iterator[list[Hit]]:
        """The hits of each query, as `search` has them, in order. Several queries are embedded together, and
        what their hits share of decoding is done once."""
        from colazip.archive.find import find_many

        if isinstance(queries, str):
            raise UsageError("queries are a list of texts, not one text; see `search`")
        return find_many(self, queries, k, mode, where, group=group, snippets=snippets)

    def similar(self, id: str, k: int = 10, where: str | None = None, *, snippets: bool = True) -> list[Hit]:
        """The k other records nearest in meaning to one, nearest first, by the stored codes: nothing is
        embedded. A long record goes by the mean of its passages, the others by their nearest ones. where,
        snippets: as of `search`. Raises RecordNotFoundError, and UsageError for a record without a code.
        """
        from colazip.archive.find import find_like

        return find_like(self, id, k, where, snippets=snippets)

    def build_index(
        self,
        *,
        overwrite: bool = False,
        refine: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, int]:
        """Make the search index beside the archive, `path + ".index"`: sizes in bytes of its parts.

        It holds the words of the text (BM25) and, for archives of many passages, codes for a faster search
        by meaning; all of it can be made again from the archive. refine: also a finer vector of each passage,
        half a byte a dimension, computed from the text or, without text, from the gist; the nearest hits are
        then ranked by those. None: as in the index that is replaced, else not. progress: called with records
        and text bytes done. Raises UsageError if there is one already and `overwrite` is false, or to refine
        the vectors of an embedder; MissingLayerError for an archive without text that is too small to need
        more than its search layer, or to refine where search, or text and gist, are missing.
        """
        from colazip.archive.sidecar import build

        self._index_files = None
        self._search_index = None
        return build(self, overwrite=overwrite, refine=refine, progress=progress)

    def regenerate(
        self, id: str, *, strength: float = 0.3, by: str = "coder", options: Sampling | None = None
    ) -> str:
        """A variant of one record's gist reading.

        strength: 0 to 1. by: `coder` writes so large a share of the words anew, the diffusion `prior` noises
        the latents, about that share of the tokens of which the noise changes, and denoises them. options:
        how it is drawn; the same seed gives the same text. Raises UsageError.
        """
        codec, parts = self._gist_parts(id)
        from colazip.variations import regenerate

        text: str = regenerate(codec, parts, strength=strength, by=by, options=options)
        return text

    def fill(
        self,
        id: str,
        *,
        missing: float | Sequence[int] = 0.3,
        by: str = "coder",
        options: Sampling | None = None,
    ) -> str:
        """The gist reading of one record with part of it taken away and drawn anew, given what stands around.

        missing: a share of its patches, or the numbers of some from 0. by: `coder` or the diffusion `prior`.
        Raises UsageError.
        """
        codec, parts = self._gist_parts(id)
        from colazip.variations import fill

        text: str = fill(codec, parts, missing=missing, by=by, options=options)
        return text

    def proceed(
        self, id: str, *, tokens: int = 200, by: str = "coder", options: Sampling | None = None
    ) -> str:
        """How one record might go on, `tokens` tokens long.

        by: `coder` draws token by token from what the gist's coder expects next, `prior` block by block from
        the diffusion prior. Raises UsageError.
        """
        codec, parts = self._gist_parts(id)
        from colazip.variations import proceed

        text: str = proceed(codec, parts, tokens=tokens, by=by, options=options)
        return text

    def _gist_parts(self, id: str) -> tuple[Codec, list[tuple[Block, int]]]:
        """The codec, and the parts of a record with what the prior needs: block, and slot in it."""
        self._need(GIST)
        group, row = self._locate(id)
        codec = self._model()
        slots, blocks = self._slots(group, row)
        loaded = {block: self._store.block(group, block, OF_READING) for block in blocks}
        return cast("Codec", codec), [(loaded[block], slot) for block, slot in slots]

    def info(self) -> dict[str, Any]:
        """What `colazip info` shows, JSON-ready. Reads nothing but the manifest. Sizes in bytes."""
        manifest = self.manifest
        sizes = dict.fromkeys((*LAYERS, PLAIN, ROWS), 0)
        for group in manifest.groups:
            for section in group.sections.values():
                if section.kind in sizes:
                    sizes[section.kind] += section.length
        embedder = manifest.embedder
        if embedder is not None:
            sizes[SEARCH] += embedder.section.length
        sizes["container"] = self._store.file_bytes - sum(sizes.values())
        return {
            "path": self.path,
            "format": manifest.version,
            "writer": manifest.writer,
            "model": {"name": manifest.codec_name, "id": manifest.codec_id},
            "records": manifest.records,
            "parts": manifest.parts,
            "blocks": manifest.blocks,
            "text_bytes": manifest.text_bytes,
            "file_bytes": self._store.file_bytes,
            "ratio": round(manifest.text_bytes / self._store.file_bytes, 4),
            "bytes": sizes,
            "index": self._index_facts(),
            "layers": list(manifest.layers),
            "abridged": manifest.abridged,
            "conditional": manifest.conditional,
            "code_bytes": embedder.code_bytes if embedder else manifest.code_bytes,
            "embedder": embedder and {"name": embedder.name, "width": embedder.width, "kind": embedder.kind},
            "source": manifest.source,
        }

    def verify(self) -> dict[str, Any]:
        """Check every checksum, then decode all that can be decoded.

        Returns the counts of what was checked; raises FormatError naming the block and the records it holds.
        """
        from colazip.archive.maintenance import verify

        return verify(self)

    def strip(self, layers: Sequence[str], out: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write a copy of the archive without some layers to `out`; nothing is coded anew.

        Raises UsageError for a layer that doesn't exist, for plain where it stands in for a few records, for
        dropping gist while exact stays (exact is coded given the gist), and for dropping all;
        MissingLayerError for a layer that the archive doesn't have.
        """
        from colazip.archive.maintenance import strip

        strip(self, layers, out, overwrite)

    def _decode(self, places: Places, layers: Sequence[str]) -> list[list[bytes]]:
        """Exact parts of some blocks, checked against the text that was packed."""
        decoded = self._run(self._model().decode_blocks, places, layers)
        for (group, block), parts in zip(places, decoded, strict=True):
            crcs = self._store.tables(group)[0].text_crcs
            if crcs is None or text_crc(parts) != crcs[block]:
                raise FormatError(
                    f"{self._store.where(group, block)}: it decodes to other text than was packed"
                )
        return decoded

    def _read_gist(self, places: Places, layers: Sequence[str]) -> list[list[str]]:
        return self._run(self._model().read_gist, places, layers)

    def _read_denoised(
        self,
        places: Places,
        layers: Sequence[str],
        *,
        detail: int | None,
        missing: float,
        options: Sampling | None,
    ) -> list[list[str]]:
        from colazip.variations import denoise

        codec = cast("Codec", self._model())
        read = partial(denoise, codec, detail=detail, missing=missing, options=options)
        return self._run(read, places, layers)

    def _run(
        self,
        decode: Callable[[Sequence[Block]], list[list[_T]]],
        places: Places,
        layers: Sequence[str],
    ) -> list[list[_T]]:
        """Decode some blocks; an error names the block it is about."""
        loaded = [self._store.block(group, block, layers) for group, block in places]
        try:
            decoded = decode(loaded)
        except FormatError as error:
            if len(places) == 1:
                raise FormatError(f"{self._store.where(*places[0])}: {error}") from error
            return [self._run(decode, [place], layers)[0] for place in places]
        for place, data, parts in zip(places, loaded, decoded, strict=True):
            if len(parts) != data.count:
                raise FormatError(f"{self._store.where(*place)}: it decodes to another number of parts")
        return decoded

    def _decoded_blocks(self, group: int, blocks: Sequence[int]) -> dict[int, list[bytes]]:
        """Exact parts of some blocks of a group; those that were read lately come from memory."""
        with self._lock:
            found = {
                block: self._decoded[group, block] for block in blocks if (group, block) in self._decoded
            }
        found |= self._of_group(self._decode, group, [b for b in blocks if b not in found], OF_TEXT)
        with self._lock:
            for block in blocks[-_KEPT_BLOCKS:]:
                self._decoded[group, block] = found[block]
                self._decoded.move_to_end((group, block))
            while len(self._decoded) > _KEPT_BLOCKS:
                self._decoded.popitem(last=False)
        return found

    def _read_gists(self, group: int, blocks: Sequence[int]) -> dict[int, list[str]]:
        """Readings of the parts of some blocks of a group."""
        return self._of_group(self._read_gist, group, blocks, OF_READING)

    def _of_group(
        self,
        decode: Callable[[Places, Sequence[str]], list[list[_T]]],
        group: int,
        blocks: Sequence[int],
        layers: Sequence[str],
    ) -> dict[int, list[_T]]:
        """The parts of some blocks of a group."""
        found: dict[int, list[_T]] = {}
        for places in self._batches((group, block) for block in blocks):
            decoded = decode(places, layers)
            found.update({block: parts for (_, block), parts in zip(places, decoded, strict=True)})
        return found

    def _batches(self, places: Iterable[tuple[int, int]]) -> Iterator[Places]:
        """Blocks in runs that are decoded together."""
        return in_batches(places, self._model().read_batch)

    def _stream(
        self,
        decode: Callable[[Places, Sequence[str]], list[list[_T]]],
        layers: Sequence[str],
        chosen: Chosen | None = None,
    ) -> Iterator[Run[_T]]:
        """Records in order, (group, first row, the parts of each record), a batch of blocks at a time.
        chosen: as of `chosen_rows`, None for all."""
        if chosen is None:
            chosen = rows_of(self._store, range(len(self)), None)
        return stream(self._store, chosen, self._batches, lambda places: decode(places, layers))

    def _read(
        self,
        decode: Callable[[Places, Sequence[str]], list[list[_T]]],
        layers: Sequence[str],
        chosen: Chosen,
    ) -> Iterator[tuple[str, dict[str, Any], list[_T]]]:
        """(id, metadata, parts) of records, as `_stream` has them."""
        for group, start, parts in self._stream(decode, layers, chosen):
            stop = start + len(parts)
            metadata = self._store.tables(group)[1].metadata(start, stop)
            yield from zip(self._store.names(group, start, stop), metadata, parts, strict=True)

    def _slots(self, group: int, row: int) -> tuple[list[tuple[int, int]], list[int]]:
        """Where a record lies: (block, slot) of each of its parts, and the blocks without repeats."""
        table, rows = self._store.tables(group)
        slots = list(_slots(table, *rows.parts(row)))
        return slots, list(dict.fromkeys(block for block, _ in slots))

    def _locate(self, id: str) -> tuple[int, int]:
        """(group, row) of a record; raises RecordNotFoundError, and UsageError for what can be no id."""
        if not isinstance(id, str):
            raise UsageError(f"an id is a text, not {type(id).__name__}: {str(id)!r}?")
        found = self._store.find(id)
        if found is None:
            raise RecordNotFoundError(f"{self.path}: no record has the id {id!r}")
        return found

    def _sidecar(self, strict: bool = True) -> Sidecar | None:
        """The search index beside the archive, None without one. Raises SearchIndexError if it is stale or
        damaged; not strict: None then, too."""
        if self._index_files is None:
            from colazip.archive.sidecar import open_sidecar

            try:
                self._index_files = open_sidecar(self)
            except SearchIndexError:
                if strict:
                    raise
        return self._index_files

    def _words(self) -> LexicalIndex:
        """The index of words; raises SearchIndexError without one."""
        sidecar = self._sidecar()
        if sidecar is None or not sidecar.has_words:
            raise SearchIndexError(
                f"{self.path}: has no index of its words; make one with colazip index "
                f"{'--rebuild ' if sidecar else ''}{self.path}, or search with --mode semantic"
            )
        return sidecar.words()

    def _index_facts(self) -> dict[str, Any] | None:
        from colazip.archive.sidecar import facts

        return facts(self)

    def _index(self) -> tuple[SearchIndex | LargeIndex | RefinedIndex, np.ndarray]:
        """The index, and the part (counted over the archive) of each of its codes."""
        with self._lock:
            return self._loaded_index()

    def _loaded_index(self) -> tuple[SearchIndex | LargeIndex | RefinedIndex, np.ndarray]:
        if self._search_index is None:
            codebook = self._search_codec().codebook
            sidecar = self._sidecar(strict=False)
            index, parts = (sidecar and sidecar.vectors(codebook)) or self._scanned(codebook)
            self._search_index = index if sidecar is None else sidecar.refined(index, codebook), parts
        return self._search_index

    def _scanned(self, codebook: np.ndarray) -> tuple[SearchIndex, np.ndarray]:
        """What `_index` returns, from the archive's own codes."""
        from colazip.search import SearchIndex

        narrow = np.uint32 if self.manifest.parts < 1 << 32 else np.int64
        index = SearchIndex(codebook, narrow)
        parts: list[np.ndarray] = [np.empty(0, dtype=narrow)]
        for group_parts, owners, codes in self._codes():
            index.add(codes, owners)
            parts.append(group_parts.astype(narrow))
        return index, np.concatenate(parts)

    def _codes(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each block: (part numbers int64 [n], record ordinals int64 [n], codes uint8 [n, M])."""
        for group, info in enumerate(self.manifest.groups):
            for block in range(info.blocks):
                yield self._block_codes(group, block)

    def _block_codes(self, group: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `_codes` says of one block."""
        codec = self._search_codec()
        table, rows = self._store.tables(group)
        try:
            slots, codes = codec.search_codes(self._store.block(group, block, (SEARCH,)))
        except FormatError as error:
            raise FormatError(f"{self._store.where(group, block)}: {error}") from error
        outside = len(slots) and not 0 <= slots[0] <= slots[-1] < table.count(block)
        if codes.shape != (len(slots), codec.codebook.shape[0]) or outside or (np.diff(slots) < 0).any():
            raise FormatError(f"{self._store.where(group, block)}: damaged: its search codes don't fit")
        parts = table.starts[block] + slots
        return (
            self._store.first_parts[group] + parts,
            self._store.first_records[group] + rows.row_of(parts),
            codes,
        )

    def _hit(self, ordinal: int, score: float, passage: Passage, scores: Mapping[str, float]) -> Hit:
        group, row = self._store.place(ordinal)
        metadata = next(self._store.tables(group)[1].metadata(row, row + 1))
        name = self._store.names(group, row, row + 1)[0]
        return Hit(name, score, metadata, passage.snippet, passage.text, passage.span, scores)

    def _need(self, layer: str) -> None:
        if layer not in self.layers:
            have = ", ".join(self.layers)
            raise MissingLayerError(
                f"{self.path}: has no {layer} layer, only {have}; pack it again with {layer}"
            )

    def _need_text(self) -> None:
        if not self.holds_text:
            self._need(EXACT)

    def _model(self) -> ArchiveCodec:
        if self._codec is None:
            codec = default_codec()
            self._check_model(codec)
            self._codec = codec
        return self._codec

    def _checked(self, embedder: Embedder) -> Embedder:
        """An embedder, if the archive was packed with it; else ModelMismatchError."""
        known = self.manifest.embedder
        if known is None or known.name != embedder.name:
            own = "the model's own" if known is None else f"those of {known.name!r}"
            raise ModelMismatchError(
                f"{self.path}: its search vectors are {own}, not those of {embedder.name!r}; "
                + ("open it without an embedder" if known is None else "open it with that embedder")
            )
        return embedder

    @property
    def _embeds_queries(self) -> bool:
        """False for an archive of an embedder's vectors that was opened without it."""
        return self.manifest.embedder is None or self._embedder is not None

    def _search_codec(self) -> SearchCodec:
        """Whose vectors the search codes stand for: the model, or the embedder that took its place."""
        if self.manifest.embedder is None:
            return self._own_codes()
        if self._embedded is None:
            from colazip.archive.embedded import EmbeddedCodec

            self._embedded = EmbeddedCodec(self._store, self._embedder)
        return self._embedded

    def _own_codes(self) -> SearchCodec:
        """The codec for codes of the archive's size."""
        model = self._model()
        if self.manifest.code_bytes is None:
            return model
        try:
            return model.with_code_bytes(self.manifest.code_bytes)
        except UsageError as error:
            raise FormatError(f"{self.path}: damaged: {error}") from error

    def _check_model(self, codec: ArchiveCodec) -> None:
        if codec.id != self.model_id:
            raise ModelMismatchError(
                f"{self.path}: was packed with model {self.manifest.codec_name} ({self.model_id[:16]}), "
                f"not {codec.name} ({codec.id[:16]}); open it with the model it was packed with"
            )


def open_archive(
    path: str | os.PathLike[str],
    codec: ArchiveCodec | None = None,
    *,
    embedder: Embedder | Encode | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Archive:
    """Open an archive for reading, as `Archive` does."""
    return Archive(path, codec, embedder=embedder, storage_options=storage_options)


def _slots(table: BlockTable, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """(block, slot) of parts start to stop of a group."""
    block = int(np.searchsorted(table.starts, start, side="right")) - 1
    for part in range(start, stop):
        while part >= table.starts[block + 1]:
            block += 1
        yield block, part - int(table.starts[block])


def _offsets_hold(table: BlockTable, first: int, records: Sequence[Sequence[bytes]]) -> bool:
    """Whether blocks begin where in their records their table says. records: the parts of each, from part
    `first` of the group on."""
    offsets = np.array([o for parts in records for o in accumulate(map(len, parts[:-1]), initial=0)])
    blocks = slice(*np.searchsorted(table.starts[:-1], [first, first + len(offsets)]))
    return np.array_equal(offsets[table.starts[:-1][blocks] - first], table.offsets[blocks])
