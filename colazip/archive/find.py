"""Search in an archive: by meaning, by words, or both; among all records or those that a filter lets pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, repeat
from typing import TYPE_CHECKING

import numpy as np

from colazip.archive.filters import passing
from colazip.archive.record import Hit
from colazip.archive.snippets import Passage, read_matches, read_passages
from colazip.errors import UsageError
from colazip.fusion import depth, fuse
from colazip.layers import SEARCH
from colazip.vectors import read_codes, scaled

if TYPE_CHECKING:
    from colazip.archive.reader import Archive
    from colazip.lexical import LexicalIndex

SEMANTIC, LEXICAL, HYBRID = "semantic", "lexical", "hybrid"
MODES = (SEMANTIC, LEXICAL, HYBRID)

COSINE, BM25 = "cosine", "bm25"
_FIRST_FETCH, _FETCH_EACH = 64, 4
_TOGETHER = 256  # queries: what they share of decoding is done once
_HITS_TOGETHER = 4096  # of them, at most about: all are held in memory


@dataclass
class Found:
    """Records and the passage of each that matched best, best record first: all arrays [n].

    positions: of the passage's code in the index; -1 where a part was found by its words.
    parts: counted over the archive. scores: what the score was made of, by name; NaN where a side has none.
    """

    records: np.ndarray
    positions: np.ndarray
    parts: np.ndarray
    score: np.ndarray
    scores: dict[str, np.ndarray] = field(default_factory=dict)


def find_many(
    archive: Archive,
    queries: Iterable[str],
    k: int,
    mode: str | None,
    where: str | None,
    *,
    group: bool,
    snippets: bool,
) -> Iterator[list[Hit]]:
    """What `Archive.search` and `search_many` do: the hits of each query."""
    _check_count(k)
    mode = choose_mode(archive, mode, group)
    allowed = None if where is None else passing(archive._store, where)
    search = partial(_find, archive, k=k, mode=mode, allowed=allowed, group=group)
    return _answers(archive, queries, search, snippets, min(_TOGETHER, max(1, _HITS_TOGETHER // k)))


def _answers(
    archive: Archive,
    queries: Iterable[str],
    search: Callable[[Sequence[str]], list[Found | None]],
    snippets: bool,
    together: int,
) -> Iterator[list[Hit]]:
    waiting = iter(queries)
    while some := list(islice(waiting, together)):
        for query in some:
            if not isinstance(query, str):
                raise UsageError(f"a query is a text, not {type(query).__name__}")
        texts = [query.encode("utf-8", "replace").decode() for query in some]
        yield from _hits(archive, search(texts), texts, snippets)


def _find(
    archive: Archive, queries: Sequence[str], *, k: int, mode: str, allowed: np.ndarray | None, group: bool
) -> list[Found | None]:
    """What each query finds; None where there is nothing to ask, or nobody."""
    asked = [query for query in queries if query.strip()]
    if not asked or not len(archive) or (allowed is not None and not allowed.any()):
        return [None] * len(queries)
    vectors: Iterator[np.ndarray | None] = repeat(None)
    if mode != LEXICAL:
        archive._index()  # what is wrong with it shows before a query is embedded
        vectors = iter(archive._search_codec().vectors(asked))
    by_mode = _BY_MODE[mode]
    return [
        by_mode(archive, query, next(vectors), k, allowed, group) if query.strip() else None
        for query in queries
    ]


def find_like(archive: Archive, id: str, k: int, where: str | None, *, snippets: bool) -> list[Hit]:
    """What `Archive.similar` does."""
    _check_count(k)
    archive._need(SEARCH)
    group, row = archive._locate(id)
    ordinal = archive._store.first_records[group] + row
    allowed = None if where is None else passing(archive._store, where)
    index, parts = archive._index()
    codebook = archive._search_codec().codebook
    vector = record_vectors(index.owners, index.codes, codebook, np.array([ordinal]))[0]
    if np.isnan(vector[0]):
        raise UsageError(
            f"record {id!r} has no search code: it is no text to the model, so nothing is like it"
        )
    positions, scores = index.search(vector, k + 1, allowed)
    others = np.flatnonzero(index.owners[positions] != ordinal)[:k]
    positions, scores = positions[others], scores[others]
    records = index.owners[positions].astype(np.int64)
    found = Found(records, positions, parts[positions], scores, {COSINE: scores})
    return _hits(archive, [found], [""], snippets)[0]


def record_vectors(
    owners: np.ndarray, codes: np.ndarray, codebook: np.ndarray, ordinals: np.ndarray
) -> np.ndarray:
    """What the codes of records stand for, the mean of a record's passages, of unit length: float32 [n, D].

    owners: [m], rising, the record of each of the codes, uint8 [m, M]. ordinals: int64 [n], rising. Rows of
    NaN for records without a code.
    """
    first, last = (np.searchsorted(owners, ordinals, side) for side in ("left", "right"))
    counts = last - first
    found = np.full((len(ordinals), codebook.shape[0] * codebook.shape[2]), np.nan, dtype=np.float32)
    if counts.any():
        ends = np.cumsum(counts)
        places = np.arange(ends[-1]) + np.repeat(first - (ends - counts), counts)
        passages = scaled(read_codes(codes[places], codebook))
        found[counts > 0] = scaled(np.add.reduceat(passages, (ends - counts)[counts > 0]))
    return found


def _check_count(k: int) -> None:
    if not isinstance(k, int | np.integer) or k < 1:
        raise UsageError(f"k must be a number of hits, at least 1, not {k!r}")


def _hits(
    archive: Archive, founds: Sequence[Found | None], queries: Sequence[str], snippets: bool
) -> list[list[Hit]]:
    """The hits of each query, from what it found."""
    shown = _passages(archive, founds, queries) if snippets else repeat(Passage("", "", None))
    hits: list[list[Hit]] = []
    for found in founds:
        hits.append([])
        for at in range(0 if found is None else len(found.parts)):
            assert found is not None
            scores = {
                name: float(values[at]) for name, values in found.scores.items() if values[at] == values[at]
            }
            score = float(found.score[at])
            hits[-1].append(archive._hit(int(found.records[at]), score, next(shown), scores))
    return hits


def choose_mode(archive: Archive, mode: str | None, group: bool) -> str:
    """The mode to search in: None is hybrid where the archive has an index of its words (lexical where there
    are no codes, or nothing to embed the query with), else semantic.

    Raises UsageError for no mode, MissingLayerError or SearchIndexError where it can't be searched so.
    """
    if mode is not None and mode not in MODES:
        raise UsageError(f"mode {mode!r} is none of {', '.join(MODES)}")
    if not group and mode not in (None, SEMANTIC):
        raise UsageError("passages of one record are told apart by meaning: search with mode semantic")
    if mode is None and not group:
        mode = SEMANTIC
    elif mode is None:
        sidecar = archive._sidecar()
        has_words = sidecar is not None and sidecar.has_words
        by_meaning = SEARCH in archive.layers and archive._embeds_queries
        mode = (HYBRID if by_meaning else LEXICAL) if has_words else SEMANTIC
    elif mode != SEMANTIC:
        archive._words()
    if mode != LEXICAL:
        archive._need(SEARCH)
    return mode


def _semantic(
    archive: Archive, query: str, vector: np.ndarray, k: int, allowed: np.ndarray | None, group: bool
) -> Found:
    index, parts = archive._index()
    positions, scores = index.search(vector, k, allowed, group)
    records = index.owners[positions].astype(np.int64)
    return Found(records, positions, parts[positions], scores, {COSINE: scores})


def _lexical(
    archive: Archive, query: str, vector: None, k: int, allowed: np.ndarray | None, group: bool
) -> Found:
    return _by_words(archive, archive._words(), query, k, allowed)


def _by_words(archive: Archive, words: LexicalIndex, query: str, k: int, allowed: np.ndarray | None) -> Found:
    """The k best records, by the best part of each: parts are asked for until k records are among them."""
    fetch = max(_FIRST_FETCH, _FETCH_EACH * k)
    while True:
        parts, scores = words.search(query, fetch)
        records = archive._store.records_of(parts)
        _, first = np.unique(records, return_index=True)
        kept = np.sort(first)
        if allowed is not None:
            kept = kept[allowed[records[kept]]]
        kept = kept[:k]
        if len(kept) == k or len(parts) < fetch:
            whole = np.full(len(kept), -1, dtype=np.int64)
            return Found(records[kept], whole, parts[kept], scores[kept], {BM25: scores[kept]})
        fetch *= 4


def _hybrid(
    archive: Archive, query: str, vector: np.ndarray, k: int, allowed: np.ndarray | None, group: bool
) -> Found:
    """Candidates of both sides; one that only the words found has its cosine all the same."""
    by_words = _by_words(archive, archive._words(), query, depth(k), allowed)
    index, parts = archive._index()
    positions, _ = index.search(vector, depth(k), allowed)
    records = np.union1d(by_words.records, index.owners[positions].astype(np.int64))
    places, cosine = index.cosines(vector, records)
    bm25 = np.zeros(len(records), dtype=np.float32)
    at = np.searchsorted(records, by_words.records)
    bm25[at] = by_words.score
    nearest = parts[np.maximum(places, 0)] if len(parts) else np.zeros(len(records), dtype=np.int64)
    best_parts = np.where(places >= 0, nearest, -1).astype(np.int64)
    # A hit shows its passage nearest in meaning, or the part that has the words where that is another.
    places[at[best_parts[at] != by_words.parts]] = -1
    best_parts[at] = by_words.parts
    score = fuse(bm25, cosine)
    order = np.argsort(-score, kind="stable")[:k]
    found = {BM25: np.where(bm25 > 0, bm25, np.nan)[order], COSINE: cosine[order]}
    return Found(records[order], places[order], best_parts[order], score[order], found)


def _passages(archive: Archive, founds: Sequence[Found | None], queries: Sequence[str]) -> Iterator[Passage]:
    """What each hit of each query shows: the passage of its code, or of the part that was found by its words
    the one with most of them."""
    both = [(found, query) for found, query in zip(founds, queries, strict=True) if found is not None]
    positions = np.concatenate([np.empty(0, dtype=np.int64), *(found.positions for found, _ in both)])
    shown = [Passage("", "", None)] * len(positions)
    worded, coded = np.flatnonzero(positions < 0), np.flatnonzero(positions >= 0)
    if len(worded):
        by_part = [(int(part), query) for found, query in both for part in found.parts]
        for rank, passage in zip(worded, read_matches(archive, [by_part[i] for i in worded]), strict=True):
            shown[rank] = passage
    if len(coded):
        _, parts = archive._index()
        for rank, passage in zip(
            coded, read_passages(archive, parts, positions[coded].tolist()), strict=True
        ):
            shown[rank] = passage
    return iter(shown)


_BY_MODE: dict[str, Callable[..., Found]] = {
    SEMANTIC: _semantic,
    LEXICAL: _lexical,
    HYBRID: _hybrid,
}
