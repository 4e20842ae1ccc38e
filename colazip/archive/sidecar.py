"""The search index beside an archive, `corpus.cola.index`: a folder that can be made again at any time.

    index.json        what it belongs to, what it holds, and length and CRC-32 of every other file
    words/            BM25 over the words of each part (colazip/lexical.py), where the archive has its text
    codes.bin ...     for archives of many codes: colazip/coarse.py, and the stored codes in one piece
    refine.bin        where asked for, finer vectors of the passages: colazip/refine.py

It is bound to its archive by the SHA-256 of the manifest, which has a checksum of every section.
docs/FORMAT.md describes the files. Nothing in it is trusted: it is checked, and rebuilt where in doubt.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colazip.errors import ColazipError, FormatError, MissingLayerError, SearchIndexError, UsageError
from colazip.files import replaced_folder
from colazip.layers import GIST, OF_READING, OF_TEXT, SEARCH
from colazip.remote import is_url

if TYPE_CHECKING:
    from colazip.archive.reader import Archive
    from colazip.coarse import LargeIndex
    from colazip.lexical import LexicalIndex
    from colazip.refine import RefinedIndex
    from colazip.search import SearchIndex

SUFFIX = ".index"
INDEX_VERSION = 1

# So many codes are scanned in a few milliseconds, and read from the archive in a second.
SCANNED_CODES = 200_000

_DESCRIPTION = "index.json"
_WORDS = "words"
_CODES, _OWNERS, _PARTS, _CENTROIDS, _COARSE = (
    f"{name}.bin" for name in ("codes", "owners", "parts", "centroids", "coarse")
)
_VECTOR_FILES = (_CODES, _OWNERS, _PARTS, _CENTROIDS, _COARSE)
_REFINE = "refine"
_REFINE_FILE = "refine.bin"
_FILE_NAME = re.compile(r"(words/)?\.?\w[\w.\-]{0,100}", re.ASCII)
_MAX_DESCRIPTION = 1 << 20
_CHECKED_BYTES = 64 << 20  # an index up to this size is checked in full when it is opened
_READ_BYTES = 1 << 20
_ENTRIES = 16  # centroids of a 4-bit code

Progress = Callable[[int, int], None]


class Sidecar:
    """An index that belongs to its archive as the archive is now. description: the parsed index.json."""

    def __init__(self, folder: Path, archive: Archive, description: dict[str, Any]) -> None:
        self._folder = folder
        self._parts, self._records = archive.manifest.parts, archive.manifest.records
        self._description = description
        self._opened: LexicalIndex | None = None

    @property
    def has_words(self) -> bool:
        return _WORDS in self._description

    def words(self) -> LexicalIndex:
        """The index of words; only where `has_words`."""
        if self._opened is None:
            from colazip.lexical import LexicalIndex

            self._opened = LexicalIndex(self._folder / _WORDS, self._parts)
        return self._opened

    def vectors(self, codebook: np.ndarray) -> tuple[LargeIndex, np.ndarray] | None:
        """(index, part of each code), memory-mapped; None where the archive's own codes are to be scanned."""
        if "codes" not in self._description:
            return None
        from colazip.coarse import CoarseCodes, LargeIndex

        count, m = self._description["codes"], len(codebook)
        try:
            codes = self._mapped(_CODES, np.uint8).reshape(count, m)
            owners, parts = (
                self._mapped(name, _number_type(top)).reshape(count)
                for name, top in ((_OWNERS, self._records), (_PARTS, self._parts))
            )
            shape = (self._description["subspaces"], _ENTRIES, -1)
            coarse = CoarseCodes(codebook, self._mapped(_CENTROIDS, np.float32).reshape(shape))
            coarse.load(self._mapped(_COARSE, np.uint8), count)
        except (ValueError, FormatError, OSError) as error:
            raise SearchIndexError(f"{self._folder}: damaged: {error}; {_advice(self._folder)}") from error
        if count and (int(owners.max()) >= self._records or int(parts.max()) >= self._parts):
            raise SearchIndexError(f"{self._folder}: damaged: codes of records that aren't there")
        return LargeIndex(codebook, codes, owners, coarse), parts

    def refined(
        self, index: SearchIndex | LargeIndex, codebook: np.ndarray
    ) -> SearchIndex | LargeIndex | RefinedIndex:
        """The index of all codes, with finer vectors where this has them."""
        if _REFINE not in self._description:
            return index
        from colazip.refine import RefinedIndex

        try:
            dimensions = codebook.shape[0] * codebook.shape[2]
            packed = self._mapped(_REFINE_FILE, np.uint8).reshape(len(index), dimensions // 2)
        except (ValueError, OSError) as error:
            raise SearchIndexError(f"{self._folder}: damaged: {error}; {_advice(self._folder)}") from error
        return RefinedIndex(index, packed)

    def sizes(self) -> dict[str, int]:
        """Bytes of the index: `words`, `vectors`, `refine` and the description."""
        files = self._description["files"]
        words = sum(length for name, (length, _) in files.items() if name.startswith(_WORDS + "/"))
        vectors = sum(length for name, (length, _) in files.items() if name in _VECTOR_FILES)
        return {
            _WORDS: words,
            "vectors": vectors,
            _REFINE: files.get(_REFINE_FILE, (0, 0))[0],
            "container": (self._folder / _DESCRIPTION).stat().st_size,
        }

    def check(self) -> int:
        """Compare every file with its checksum; returns how many there are. Raises SearchIndexError."""
        files = self._description["files"]
        for name, (length, crc) in files.items():
            if _length_and_crc(self._folder / name) != (length, crc):
                raise SearchIndexError(
                    f"{self._folder}: damaged: the checksum of {name} doesn't match; {_advice(self._folder)}"
                )
        return len(files)

    def _mapped(self, name: str, kind: type[np.generic]) -> np.ndarray:
        return _mapped(self._folder / name, kind)


def _mapped(path: Path, kind: type[np.generic]) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")


def folder_of(path: str) -> Path:
    """Where the index of an archive is."""
    return Path(path + SUFFIX)


def open_sidecar(archive: Archive) -> Sidecar | None:
    """The index of an archive; None if there is none. Raises SearchIndexError if it is stale or damaged."""
    folder = folder_of(archive.path)
    if not folder.is_dir():
        return None
    description = _read_description(folder)
    if description["archive"] != archive._store.fingerprint:
        raise SearchIndexError(
            f"{folder}: stale: it was made for another state of {archive.path}; {_advice(folder)}"
        )
    for name, (length, _) in description["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != length:
            raise SearchIndexError(f"{folder}: damaged: {name} is missing or cut off; {_advice(folder)}")
    sidecar = Sidecar(folder, archive, description)
    if sum(length for length, _ in description["files"].values()) <= _CHECKED_BYTES:
        sidecar.check()
    return sidecar


def facts(archive: Archive) -> dict[str, Any] | None:
    """For `info`: state (current, stale or damaged) and sizes of the index; None without one."""
    try:
        sidecar = open_sidecar(archive)
    except SearchIndexError as error:
        return {"state": "stale" if "stale: " in str(error) else "damaged"}
    if sidecar is None:
        return None
    sizes = sidecar.sizes()
    return {"state": "current", "file_bytes": sum(sizes.values()), "bytes": sizes}


def build(
    archive: Archive,
    *,
    overwrite: bool = False,
    refine: bool | None = None,
    progress: Progress | None = None,
    scanned_codes: int = SCANNED_CODES,
) -> dict[str, int]:
    """What `Archive.build_index` does. scanned_codes: archives with more codes get an index of vectors."""
    if is_url(archive.path):
        raise UsageError(f"{archive.path}: an index lies beside its archive; download it, and index it there")
    folder = folder_of(archive.path)
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder}: exists already; make it anew with {_command(archive.path)}")
    _check_is_index(folder)
    if refine is None:
        refine = _is_refined(folder) and _refusal(archive) is None
    elif refine and (refusal := _refusal(archive)) is not None:
        raise refusal
    description: dict[str, Any] = {"format": INDEX_VERSION, "archive": archive._store.fingerprint}
    with replaced_folder(folder) as partial:
        count = _copy_codes(archive, partial) if SEARCH in archive.layers else 0
        if archive.holds_text or refine:
            description |= _read_through(archive, partial, count if refine else None, progress)
        if SEARCH in archive.layers:
            description |= _build_vectors(archive, partial, count, scanned_codes)
        if len(description) == 2:
            raise MissingLayerError(
                f"{archive.path}: has no text to index, and its search layer needs no index at this size"
            )
        description["files"] = {
            path.relative_to(partial).as_posix(): _length_and_crc(path) for path in _files(partial)
        }
        (partial / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return Sidecar(folder, archive, description).sizes()


def _check_is_index(folder: Path) -> None:
    """Raises UsageError if there is something in a folder, or in its place, that no index has: it would be
    lost."""
    if not folder.is_dir():
        return  # `replaced_folder` refuses a file
    known = {_DESCRIPTION, _WORDS, *_VECTOR_FILES, _REFINE_FILE}
    for entry in sorted(folder.iterdir()):
        if entry.name not in known:
            raise UsageError(f"{entry}: is no part of an index; move it away, or the whole folder")


def _is_refined(folder: Path) -> bool:
    """Whether the index that is being replaced, stale or not, has finer vectors."""
    try:
        return folder.is_dir() and _REFINE in _read_description(folder)
    except SearchIndexError:
        return False


def _refusal(archive: Archive) -> ColazipError | None:
    """Why an archive can't have finer vectors; None if it can."""
    if archive.manifest.embedder is not None:
        return UsageError(
            f"{archive.path}: its search vectors are those of {archive.manifest.embedder.name!r}, which no "
            "index can make finer; pack it again with an Embedder of more code_bytes"
        )
    try:
        archive._need(SEARCH)
        if not archive.holds_text:
            archive._need(GIST)
    except MissingLayerError as error:
        return error
    return None


def _read_through(
    archive: Archive, folder: Path, refined: int | None, progress: Progress | None
) -> dict[str, Any]:
    """One pass over the text, or where there is none over the readings of the gists: the words of the text
    and the finer vectors of `refined` codes, if those are wanted."""
    made: dict[str, Any] = {}
    records = text_bytes = part = 0
    with ExitStack() as stack:
        words = refiner = None
        if archive.holds_text:
            from colazip.lexical import ANALYZER_VERSION, LexicalWriter

            (folder / _WORDS).mkdir()
            words = stack.enter_context(LexicalWriter(folder / _WORDS))
            made[_WORDS] = ANALYZER_VERSION
        if refined is not None:
            refiner = stack.enter_context(_Refiner(archive, folder, refined))
            made[_REFINE] = refined
        for batch in _texts(archive):
            texts = [text for of in batch for text in of]
            if words is not None:
                for number, text in enumerate(texts, part):
                    words.add(number, text)
            if refiner is not None:
                refiner.add(part, texts)
            part += len(texts)
            text_bytes += sum(map(len, texts))
            records += len(batch)
            if progress is not None:
                progress(records, text_bytes)
    return made


def _texts(archive: Archive) -> Iterator[list[list[bytes]]]:
    """The parts of each record in order, a batch at a time; as the gist reads where there is no text."""
    if archive.holds_text:
        yield from (batch for _, _, batch in archive._stream(archive._decode, OF_TEXT))
        return
    for _, _, readings in archive._stream(archive._read_gist, OF_READING):
        yield [[text.encode() for text in of] for of in readings]


class _Refiner:
    """Texts on their way to finer vectors of their passages, of which there are `count` in the archive."""

    def __init__(self, archive: Archive, folder: Path, count: int) -> None:
        self._codec = archive._model()
        self._codebook = archive._search_codec().codebook
        self._approximate = not archive.holds_text
        kind = _number_type(archive.manifest.parts)
        self._codes = _mapped(folder / _CODES, np.uint8).reshape(count, len(self._codebook))
        self._parts = _mapped(folder / _PARTS, kind).reshape(count)
        self._file = open(folder / _REFINE_FILE, "wb")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> _Refiner:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def add(self, part: int, texts: Sequence[bytes]) -> None:
        """Texts of some parts in order. part: number of the first."""
        from colazip.refine import mix, pack_finer
        from colazip.vectors import read_codes

        first, end = np.searchsorted(self._parts, np.array([part, part + len(texts)], self._parts.dtype))
        if first == end:
            return
        counts = np.bincount(self._parts[first:end].astype(np.int64) - part, minlength=len(texts))
        spans = self._codec.passages(texts, counts.tolist())
        passages = [text[a:b] for text, of in zip(texts, spans, strict=True) for a, b in of]
        vectors = self._codec.vectors(passages)
        if self._approximate:
            vectors = mix(read_codes(self._codes[first:end], self._codebook), vectors)
        self._file.write(pack_finer(vectors).tobytes())


def _copy_codes(archive: Archive, folder: Path) -> int:
    """All codes, their records and parts as flat files; how many there are."""
    manifest = archive.manifest
    count = 0
    with (
        open(folder / _CODES, "wb") as codes,
        open(folder / _OWNERS, "wb") as owners,
        open(folder / _PARTS, "wb") as parts,
    ):
        for block_parts, block_owners, block_codes in archive._codes():
            codes.write(np.ascontiguousarray(block_codes).tobytes())
            owners.write(block_owners.astype(_number_type(manifest.records)).tobytes())
            parts.write(block_parts.astype(_number_type(manifest.parts)).tobytes())
            count += len(block_codes)
    return count


def _build_vectors(archive: Archive, folder: Path, count: int, scanned_codes: int) -> dict[str, Any]:
    """Coarse codes of the `count` codes that were copied; of few codes nothing, and the copy goes."""
    from colazip.coarse import SAMPLE_CODES, CoarseCodes

    if count <= scanned_codes:
        for name in (_CODES, _OWNERS, _PARTS):
            (folder / name).unlink()
        return {}
    codebook = archive._search_codec().codebook
    stored = _mapped(folder / _CODES, np.uint8).reshape(count, len(codebook))
    sample = np.unique(np.linspace(0, count - 1, min(count, SAMPLE_CODES)).astype(np.int64))
    coarse = CoarseCodes.train(codebook, stored[sample])
    coarse.add(stored)
    coarse.packed().tofile(folder / _COARSE)
    coarse.centroids.tofile(folder / _CENTROIDS)
    return {"codes": count, "subspaces": len(coarse.centroids)}


def _read_description(folder: Path) -> dict[str, Any]:
    """index.json, checked. Raises SearchIndexError."""
    try:
        with open(folder / _DESCRIPTION, "rb") as file:
            raw = file.read(_MAX_DESCRIPTION + 1)
        if len(raw) > _MAX_DESCRIPTION:
            raise ValueError("too long")
        description = json.loads(raw)
        if not isinstance(description, dict) or not isinstance(description.get("archive"), str):
            raise ValueError("not a description")
    except (OSError, ValueError, RecursionError) as error:
        raise SearchIndexError(
            f"{folder}: damaged: {_DESCRIPTION} can't be read; {_advice(folder)}"
        ) from error
    from colazip.lexical import ANALYZER_VERSION

    words = description.get(_WORDS, ANALYZER_VERSION)
    if description.get("format") != INDEX_VERSION or words != ANALYZER_VERSION:
        raise SearchIndexError(f"{folder}: stale: another release of colazip made it; {_advice(folder)}")
    numbers = [description[name] for name in ("codes", "subspaces") if name in description]
    refined = description.get(_REFINE, 0)
    files = description.get("files")
    if (
        len(numbers) not in (0, 2)
        or type(refined) is not int
        or refined < 0
        or not all(type(number) is int and 0 < number < 1 << 40 for number in numbers)
        or not isinstance(files, dict)
        or not all(_FILE_NAME.fullmatch(name) and _is_entry(entry) for name, entry in files.items())
        or (numbers and not files.keys() >= set(_VECTOR_FILES))
        or (_REFINE in description and _REFINE_FILE not in files)
    ):
        raise SearchIndexError(f"{folder}: damaged: {_DESCRIPTION} is malformed; {_advice(folder)}")
    description["files"] = {name: (length, crc) for name, (length, crc) in files.items()}
    return description


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(type(n) is int and n >= 0 for n in entry)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _length_and_crc(path: Path) -> tuple[int, int]:
    length = crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            length, crc = length + len(chunk), zlib.crc32(chunk, crc)
    return length, crc


def _number_type(limit: int) -> type[np.unsignedinteger[Any]]:
    """Little-endian machines only, as all of Faiss's: the files are raw arrays."""
    return np.uint32 if limit < 1 << 32 else np.uint64


def _advice(folder: Path) -> str:
    return f"rebuild it with {_command(os.fspath(folder)[: -len(SUFFIX)])}, or search with --mode semantic"


def _command(path: str) -> str:
    return f"colazip index --rebuild {path}"
