"""Search by cosine over product-quantizer codes that are stored already: a Faiss index without training.

A code is M bytes; it stands for the vector of its M centroids, which isn't of unit length, so the score is
<query, decoded code> / |decoded code|.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from colazip.vectors import read_codes

# Slack for sums that Faiss and NumPy round differently; vectors are about unit length.
_SLACK = 1e-4

_NORM_CHUNK = 1 << 16


class SearchIndex:
    """Codes of the passages of an archive, each owned by a record; a record ranks by its best passage.

    codebook: float32 [M, 256, D / M]. Memory: M + 4 bytes a code (M + 8 with `owner_type` int64).
    """

    def __init__(self, codebook: np.ndarray, owner_type: type[np.integer] = np.uint32) -> None:
        import faiss

        codebook = np.ascontiguousarray(codebook, dtype=np.float32)
        m, entries, width = codebook.shape
        if entries != 256:
            raise ValueError(f"a codebook has 256 centroids for each of its parts, not {entries}")
        self._codebook = codebook
        self._index = faiss.IndexPQ(m * width, m, 8, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(codebook.ravel(), self._index.pq.centroids)
        self._index.is_trained = True
        self._square_norms = (codebook.astype(np.float64) ** 2).sum(axis=2)  # [M, 256]
        self._owner_chunks: list[np.ndarray] = []
        self._owner_type = owner_type
        self._shortest, self._longest = np.inf, 0.0

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, codes: np.ndarray, owners: np.ndarray) -> None:
        """Append codes. codes: uint8 [n, M]; owners: int [n], the record that each code belongs to."""
        if len(codes) == 0:
            return
        codes = np.ascontiguousarray(codes, dtype=np.uint8)
        self._index.add_sa_codes(codes)
        self._owner_chunks.append(owners.astype(self._owner_type))
        for start in range(0, len(codes), _NORM_CHUNK):
            chunk = codes[start : start + _NORM_CHUNK]
            squares = self._square_norms[np.arange(chunk.shape[1]), chunk].sum(axis=1)
            nonzero = squares[squares > 0]
            self._shortest = min(self._shortest, float(np.sqrt(nonzero.min(initial=np.inf))))
            self._longest = max(self._longest, float(np.sqrt(nonzero.max(initial=0.0))))

    def search(
        self, query: np.ndarray, k: int, allowed: np.ndarray | None = None, group: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best records, best first: float [D] -> (positions int64 [<= k], scores float32 [<= k]).

        A position counts codes in the order of `add`; it is the best code of its record, or with group false
        any of the k best codes. Equal scores keep that order. allowed: bool [records], which records may be
        found; None for all. Exact: Faiss ranks by the inner product, and is asked for more candidates until
        none that it left out could score higher once divided by its length.
        """
        if allowed is not None:
            places, chosen = self.among(allowed)
            positions, scores = chosen.search(query, k, None, group)
            return places[positions], scores
        total = len(self)
        if total == 0 or k < 1 or not np.isfinite(query).all():
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        query = np.ascontiguousarray(query, dtype=np.float32)
        fetch = min(total, max(64, 4 * k))
        while True:
            products, positions = self._index.search(query[None], fetch)
            products, positions = products[0], np.sort(positions[0])
            scores = cosines(self._index.reconstruct_batch(positions), query)
            owners = self.owners[positions] if group else positions
            best, scores = best_of_each(positions, scores, owners, k)
            unseen = self._best_cosine(float(products[-1]))
            if fetch == total or (len(best) == k and scores[-1] > unseen + _SLACK):
                return best, scores
            fetch = min(total, 4 * fetch)

    def among(self, allowed: np.ndarray) -> tuple[np.ndarray, SearchIndex]:
        """(positions int64 [n] of the codes of allowed records, an index of those). allowed: bool [records].

        Searched among them, k are found where k exist.
        """
        return among(self._codebook, self.codes, self.owners, allowed)

    def near(self, query: np.ndarray, count: int) -> np.ndarray:
        """Candidates: positions of about the `count` codes nearest to a query, int64, ascending."""
        if not len(self) or not np.isfinite(query).all():
            return np.empty(0, dtype=np.int64)
        query = np.ascontiguousarray(query, dtype=np.float32)
        return np.sort(self._index.search(query[None], min(count, len(self)))[1][0])

    def cosines(self, query: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How near these records are: (position of the best code int64 [n], its score float32 [n]).

        A record without a code has position -1 and score NaN. records: int [n], distinct. Codes must have
        been added in the order of their records.
        """
        return best_of_records(
            self.owners,
            records,
            lambda start, stop: code_cosines(self._codebook, self.codes[start:stop], query),
        )

    @property
    def codes(self) -> np.ndarray:
        """uint8 [n, M]; a view of what the index holds, good until the next `add`."""
        import faiss

        count, width = len(self), len(self._codebook)
        if not count:
            return np.empty((0, width), dtype=np.uint8)
        return faiss.rev_swig_ptr(self._index.codes.data(), count * width).reshape(count, width)

    def _best_cosine(self, product: float) -> float:
        """The highest score a code can have whose inner product with the query is at most `product`."""
        if product > 0:
            return product / self._shortest
        return product / self._longest if self._longest else 0.0

    @property
    def owners(self) -> np.ndarray:
        """Record of each code, [n]."""
        if len(self._owner_chunks) > 1:
            self._owner_chunks = [np.concatenate(self._owner_chunks)]
        return self._owner_chunks[0] if self._owner_chunks else np.empty(0, dtype=self._owner_type)


def among(
    codebook: np.ndarray, codes: np.ndarray, owners: np.ndarray, allowed: np.ndarray
) -> tuple[np.ndarray, SearchIndex]:
    """What `SearchIndex.among` returns. owners: int [n]."""
    places = np.flatnonzero(allowed[owners])
    chosen = SearchIndex(codebook, owners.dtype.type)
    chosen.add(codes[places], owners[places])
    return places, chosen


def brute_force(
    codebook: np.ndarray, codes: np.ndarray, owners: np.ndarray, query: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """What `SearchIndex.search` returns, by decoding every code: the oracle of its tests.

    codebook: float32 [M, 256, D / M]; codes: uint8 [n, M]; owners: int [n]; query: float [D].
    """
    scores = code_cosines(codebook, codes, query)
    return best_of_each(np.arange(len(codes)), scores, owners, k)


def code_cosines(codebook: np.ndarray, codes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """How near codes are to a query: [M, 256, D / M], uint8 [n, M], float [D] -> float32 [n]."""
    return cosines(read_codes(codes, codebook), query.astype(np.float32))


def best_of_records(
    owners: np.ndarray, records: np.ndarray, score: Callable[[int, int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What `SearchIndex.cosines` returns. owners: int [n], ascending. score: (first position, end) ->
    float32."""
    places = np.full(len(records), -1, dtype=np.int64)
    best = np.full(len(records), np.nan, dtype=np.float32)
    first = np.searchsorted(owners, records, side="left")
    last = np.searchsorted(owners, records, side="right")
    for at, (start, stop) in enumerate(zip(first, last, strict=True)):
        if start < stop:
            scores = score(start, stop)
            places[at], best[at] = start + scores.argmax(), scores.max()
    return places, best


def cosines(decoded: np.ndarray, query: np.ndarray) -> np.ndarray:
    """<query, decoded> / |decoded|, 0 for a zero vector. decoded: float32 [n, D] -> float32 [n]."""
    norms = np.sqrt(np.einsum("nd,nd->n", decoded, decoded))
    products = np.einsum("nd,d->n", decoded, query)
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)


def best_of_each(
    positions: np.ndarray, scores: np.ndarray, owners: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best position of each owner, then the k best of those. positions: int64 [n], ascending."""
    order = np.argsort(-scores, kind="stable")
    _, first = np.unique(owners[order], return_index=True)  # first in `order` is the owner's best
    order = order[np.sort(first)[:k]]
    return positions[order].astype(np.int64), scores[order]
