"""The lexical side: a BM25 index over the words of an archive's parts, kept by tantivy in a folder.

tantivy's BM25 has k1 = 1.2 and b = 0.75. Words are runs of letters, marks and digits, lowercased, without
accents, cut to their English stems; where a script has no spaces between words (Chinese, Japanese, Thai,
Lao, Khmer, Burmese) each character is a word. No positions and no text are stored. docs/decisions.md says
why this library.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from colazip.errors import InputError, SearchIndexError

if TYPE_CHECKING:
    import tantivy

ANALYZER_VERSION = 1  # raised when the same text gives other words: an index of another version is stale

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = rf"[{_UNSPACED}]|[\p{{L}}\p{{M}}\p{{N}}&&[^{_UNSPACED}]]+"
_LONGEST_WORD = 40  # bytes; longer runs are base64 and the like, and would only fill the list of words
_TEXT, _PART, _ANALYZER = "text", "part", "colazip"
_HEAP_BYTES = 64 << 20  # postings in memory before they are written out
_MAX_TERMS = 512  # of one query
_FIRST_FETCH = 256


class LexicalWriter:
    """Builds an index in `folder`, which is there and empty; a context manager that finishes on a clean exit.

    Memory: 64 MiB and what tantivy needs to merge, whatever the size of the text. Raises InputError if the
    folder can't be written.
    """

    def __init__(self, folder: Path) -> None:
        import tantivy

        self._folder = folder
        self._document = tantivy.Document
        schema = (
            tantivy.SchemaBuilder()
            .add_text_field(_TEXT, tokenizer_name=_ANALYZER, index_option="freq")
            .add_unsigned_field(_PART, fast=True)
            .build()
        )
        with _guarded(folder, InputError, "can't be written"):
            index = tantivy.Index(schema, str(folder))
            index.register_tokenizer(_ANALYZER, _analyzer())
            # One thread: the same records give the same postings, in the order of the parts.
            self._writer: Any = index.writer(_HEAP_BYTES, 1)

    def __enter__(self) -> LexicalWriter:
        return self

    def add(self, part: int, data: bytes) -> None:
        """The text of one part. Bytes that are mostly no text have no words."""
        text = data.decode("utf-8", "replace")
        if 10 * text.count("\ufffd") > len(text):
            return
        document = self._document()
        document.add_text(_TEXT, text)
        document.add_unsigned(_PART, part)
        with _guarded(self._folder, InputError, "can't be written"):
            self._writer.add_document(document)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        writer, self._writer = self._writer, None
        if kind is None:
            with _guarded(self._folder, InputError, "can't be written"):
                writer.commit()
                writer.wait_merging_threads()
        for lock in self._folder.glob(".tantivy-*.lock"):
            lock.unlink(missing_ok=True)


class LexicalIndex:
    """An index that `LexicalWriter` built, memory-mapped. Raises SearchIndexError if it can't be read.

    parts: how many the archive has; a number beyond is damage.
    """

    def __init__(self, folder: Path, parts: int) -> None:
        import tantivy

        self._folder, self._parts = folder, parts
        with _guarded(folder, SearchIndexError, "can't be read"), _lockable(folder) as place:
            index = tantivy.Index.open(str(place))
            index.config_reader("manual")  # nothing changes the folder: no thread needs to watch it
            self._schema = index.schema
            self._searcher: Any = index.searcher()

    def __len__(self) -> int:
        return int(self._searcher.num_docs)

    def search(self, query: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """The `limit` best parts that share a word with `query`: (parts int64 [n], BM25 float32 [n]), best
        first.

        A word that the query repeats counts once for each time.
        """
        if limit < 1 or not (parsed := self._parse(query)):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        with _guarded(self._folder, SearchIndexError, "can't be read"):
            hits = self._searcher.search(parsed, min(limit, max(len(self), 1)), count=False).hits
            parts = self._searcher.fast_field_values(_PART, [address for _, address in hits])
        if not all(isinstance(part, int) and 0 <= part < self._parts for part in parts):
            raise SearchIndexError(f"{self._folder}: damaged: it names parts that the archive doesn't have")
        return np.array(parts, np.int64), np.array([score for score, _ in hits], np.float32)

    def _parse(self, query: str) -> tantivy.Query | None:
        from tantivy import Occur, Query

        words = analyze(query)[:_MAX_TERMS]
        clauses = [(Occur.Should, Query.term_query(self._schema, _TEXT, word, "freq")) for word in words]
        return Query.boolean_query(clauses) if clauses else None


def analyze(text: str) -> list[str]:
    """The words of a text as they are indexed."""
    return list(_analyzer().analyze(text))


@cache
def _analyzer() -> tantivy.TextAnalyzer:
    from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

    return (
        TextAnalyzerBuilder(Tokenizer.regex(_WORD))
        .filter(Filter.remove_long(_LONGEST_WORD))
        .filter(Filter.lowercase())
        .filter(Filter.ascii_fold())
        .filter(Filter.stemmer("english"))
        .build()
    )


@contextmanager
def _lockable(folder: Path) -> Iterator[Path]:
    """`folder`, or links to its files where it can't be written: tantivy opens nothing without a lock file.

    What was opened stays open when the links go.
    """
    if os.access(folder, os.W_OK):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="colazip-") as links:
        for path in folder.iterdir():
            if path.suffix != ".lock":
                os.symlink(path.resolve(), Path(links) / path.name)
        yield Path(links)


@contextmanager
def _guarded(folder: Path, kind: type[InputError] | type[SearchIndexError], what: str) -> Iterator[None]:
    """tantivy's errors as ours. A panic in its code arrives as a BaseException that has no public name."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, ValueError | OSError) and type(error).__name__ != "PanicException":
            raise
        hint = "; rebuild it with colazip index --rebuild" if kind is SearchIndexError else ""
        raise kind(f"{folder}: the index of words {what}: {error}{hint}") from error
