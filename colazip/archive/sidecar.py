"""The search index beside an archive, `corpus.cola.index`: a folder that can be made again at any time.

    index.json        what it belongs to, what it holds, and length and CRC-32 of every other file
    words/            BM25 over the words of each part (colazip/lexical.py), where the archive has its text
    codes.bin ...     for archives of many codes: colazip/coarse.py, and the stored codes in one piece

It is bound to its archive by the SHA-256 of the manifest, which has a checksum of every section.
docs/FORMAT.md describes the files. Nothing in it is trusted: it is checked, and rebuilt where in doubt.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colazip.errors import FormatError, MissingLayerError, SearchIndexError, UsageError
from colazip.files import replaced_folder
from colazip.layers import EXACT, GIST, PLAIN, SEARCH

if TYPE_CHECKING:
    from colazip.archive.reader import Archive
    from colazip.coarse import LargeIndex
    from colazip.lexical import LexicalIndex

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

    def sizes(self) -> dict[str, int]:
        """Bytes of the index: `words`, `vectors` and the description."""
        files = self._description["files"]
        words = sum(length for name, (length, _) in files.items() if name.startswith(_WORDS + "/"))
        vectors = sum(length for name, (length, _) in files.items() if name in _VECTOR_FILES)
        return {_WORDS: words, "vectors": vectors, "container": (self._folder / _DESCRIPTION).stat().st_size}

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
        path = self._folder / name
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
    progress: Progress | None = None,
    scanned_codes: int = SCANNED_CODES,
) -> dict[str, int]:
    """What `Archive.build_index` does. scanned_codes: archives with more codes get an index of vectors."""
    folder = folder_of(archive.path)
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder}: exists already; make it anew with {_command(archive.path)}")
    description: dict[str, Any] = {"format": INDEX_VERSION, "archive": archive._store.fingerprint}
    with replaced_folder(folder) as partial:
        if SEARCH in archive.layers:
            description |= _build_vectors(archive, partial, scanned_codes)
        if archive.holds_text:
            description |= _build_words(archive, partial / _WORDS, progress)
        if len(description) == 2:
            raise MissingLayerError(
                f"{archive.path}: has no text to index, and its search layer needs no index at this size"
            )
        description["files"] = {
            path.relative_to(partial).as_posix(): _length_and_crc(path) for path in _files(partial)
        }
        (partial / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return Sidecar(folder, archive, description).sizes()


def _build_words(archive: Archive, folder: Path, progress: Progress | None) -> dict[str, Any]:
    from colazip.lexical import ANALYZER_VERSION, LexicalWriter

    folder.mkdir()
    records = text_bytes = part = 0
    with LexicalWriter(folder) as writer:
        for _, _, batch in archive._stream(archive._decode, (GIST, EXACT, PLAIN)):
            for texts in batch:
                for text in texts:
                    writer.add(part, text)
                    part += 1
                    text_bytes += len(text)
            records += len(batch)
            if progress is not None:
                progress(records, text_bytes)
    return {_WORDS: ANALYZER_VERSION}


def _build_vectors(archive: Archive, folder: Path, scanned_codes: int) -> dict[str, Any]:
    """Codes, their records and parts as flat files, then the coarse codes from what was written."""
    from colazip.coarse import SAMPLE_CODES, CoarseCodes

    manifest = archive.manifest
    codebook = archive._search_codec().codebook
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
    if count <= scanned_codes:
        for name in (_CODES, _OWNERS, _PARTS):
            (folder / name).unlink()
        return {}
    stored = np.memmap(folder / _CODES, dtype=np.uint8, mode="r").reshape(count, len(codebook))
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
    files = description.get("files")
    if (
        len(numbers) not in (0, 2)
        or not all(type(number) is int and 0 < number < 1 << 40 for number in numbers)
        or not isinstance(files, dict)
        or not all(_FILE_NAME.fullmatch(name) and _is_entry(entry) for name, entry in files.items())
        or (numbers and not files.keys() >= set(_VECTOR_FILES))
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
