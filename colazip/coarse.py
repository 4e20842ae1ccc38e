"""Search in archives too large to scan at every query: 4-bit codes pick candidates, the stored codes rank
them.

Scanning the stored 8-bit codes takes a table look-up in memory a byte. Faiss's fast scan keeps tables of
4-bit codes in registers instead (André et al., Quicker ADC, arXiv 1812.09162): as many bytes, read several
times as fast. It looks at every code, so unlike an inverted file or a graph it can't miss a region, whatever
the data are like; its candidates are then ranked by the exact score. docs/experiments.md has the
measurements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from colazip.errors import FormatError
from colazip.search import SearchIndex, among, best_of_each, best_of_records, code_cosines
from colazip.vectors import read_codes, scaled

SAMPLE_CODES = 50_000  # that the 4-bit codebooks are trained on
_ENTRIES = 16
_CHUNK = 1 << 16
_FIRST_FETCH, _FETCH_EACH = 4096, 32  # candidates: at least so many, and so many a hit
_NEAR_EACH = 4  # and so many for each code that is asked for as a candidate itself
_SEED = 1234


class CoarseCodes:
    """4-bit codes of the unit vectors that stored codes stand for.

    codebook: float32 [M, 256, D / M], of the stored codes. centroids: float32 [m, 16, D / m].
    """

    def __init__(self, codebook: np.ndarray, centroids: np.ndarray) -> None:
        import faiss

        m, entries, width = centroids.shape
        dimensions = codebook.shape[0] * codebook.shape[2]
        if entries != _ENTRIES or m * width != dimensions:
            raise FormatError("the centroids of a coarse index don't fit the model")
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._codebook = np.ascontiguousarray(codebook, dtype=np.float32)
        self._index: Any = faiss.IndexPQFastScan(dimensions, m, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(self.centroids.ravel(), self._index.pq.centroids)
        self._index.is_trained = True

    @classmethod
    def train(cls, codebook: np.ndarray, sample: np.ndarray) -> CoarseCodes:
        """Codebooks from some of the stored codes. sample: uint8 [n, M]."""
        import faiss

        dimensions = codebook.shape[0] * codebook.shape[2]
        m = next(m for m in range(min(2 * len(codebook), dimensions), 0, -1) if dimensions % m == 0)
        quantizer = faiss.ProductQuantizer(dimensions, m, 4)
        quantizer.cp.seed = _SEED
        quantizer.train(scaled(read_codes(sample, codebook)))
        centroids = faiss.vector_to_array(quantizer.centroids).reshape(m, _ENTRIES, dimensions // m)
        return cls(codebook, centroids)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, codes: np.ndarray) -> None:
        """Append stored codes, uint8 [n, M], in bounded memory."""
        for start in range(0, len(codes), _CHUNK):
            self._index.add(scaled(read_codes(codes[start : start + _CHUNK], self._codebook)))

    def candidates(self, query: np.ndarray, count: int) -> np.ndarray:
        """Positions of about the best `count` codes, int64, ascending. query: float32 [D]."""
        positions = self._index.search(query[None], min(count, len(self)))[1][0]
        return np.sort(positions[positions >= 0])

    def packed(self) -> np.ndarray:
        """The codes as Faiss lays them out for its registers, uint8."""
        import faiss

        return faiss.vector_to_array(self._index.codes)

    def load(self, packed: np.ndarray, count: int) -> None:
        """Take what `packed` gave for `count` codes. Raises FormatError for another length."""
        import faiss

        block = self._index.bbs
        blocks = -(-count // block)
        if packed.dtype != np.uint8 or packed.shape != (blocks * block * self._index.M2 // 2,):
            raise FormatError("the codes of a coarse index have another length than their number says")
        self._index.codes.resize(len(packed))
        faiss.memcpy(self._index.codes.get(), faiss.swig_ptr(np.ascontiguousarray(packed)), len(packed))
        self._index.ntotal, self._index.ntotal2 = count, blocks * block


class LargeIndex:
    """What `SearchIndex` does, by `CoarseCodes`: near enough to exact for all, exact under a filter.

    codes: uint8 [n, M]; owners: int [n], ascending, the record of each code. Both may be memory-mapped.
    """

    def __init__(
        self, codebook: np.ndarray, codes: np.ndarray, owners: np.ndarray, coarse: CoarseCodes
    ) -> None:
        self._codebook = np.ascontiguousarray(codebook, dtype=np.float32)
        self.codes, self.owners, self._coarse = codes, owners, coarse

    def __len__(self) -> int:
        return len(self.codes)

    def search(
        self, query: np.ndarray, k: int, allowed: np.ndarray | None = None, group: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `SearchIndex.search`; without `allowed`, one of the k may be missed for the next best."""
        if k < 1 or not len(self) or not np.isfinite(query).all():
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        query = np.ascontiguousarray(query, dtype=np.float32)
        if allowed is not None:
            places, chosen = self.among(allowed)
            positions, scores = chosen.search(query, k, None, group)
            return places[positions], scores
        fetch = max(_FIRST_FETCH, _FETCH_EACH * k)
        while True:
            positions = self._coarse.candidates(query, fetch)
            scores = code_cosines(self._codebook, self.codes[positions], query)
            owners = self.owners[positions] if group else positions
            best, scores = best_of_each(positions, scores, owners, k)
            if len(best) == k or fetch >= len(self):
                return best, scores
            fetch *= 4

    def among(self, allowed: np.ndarray) -> tuple[np.ndarray, SearchIndex]:
        """As `SearchIndex.among`."""
        return among(self._codebook, self.codes, self.owners, allowed)

    def near(self, query: np.ndarray, count: int) -> np.ndarray:
        """As `SearchIndex.near`."""
        if not len(self) or not np.isfinite(query).all():
            return np.empty(0, dtype=np.int64)
        query = np.ascontiguousarray(query, dtype=np.float32)
        positions = self._coarse.candidates(query, max(_FIRST_FETCH, _NEAR_EACH * count))
        if len(positions) <= count:
            return positions
        scores = code_cosines(self._codebook, self.codes[positions], query)
        return np.sort(positions[np.argpartition(-scores, count)[:count]])

    def cosines(self, query: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `SearchIndex.cosines`."""
        return best_of_records(
            self.owners,
            records,
            lambda start, stop: code_cosines(self._codebook, self.codes[start:stop], query),
        )
