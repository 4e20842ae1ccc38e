"""Time of a query by meaning against the number of codes, on synthetic codes, and recall against the exact
scan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from colazip.archive.sidecar import SCANNED_CODES
from colazip.coarse import SAMPLE_CODES, CoarseCodes, LargeIndex
from colazip.codec import Codec
from colazip.demo import handbook
from colazip.refine import RefinedIndex, pack_finer
from colazip.search import SearchIndex
from colazip.vectors import unpack_nibbles

DEPTH = 10
QUERIES = 100
_CHUNK = 50_000
_NOISE = 0.5  # length of the noise, against texts of length one


@dataclass(frozen=True)
class ScanRow:
    """milliseconds: median of a query on one thread. recall: of what an exact scan finds by the same scores.
    build_seconds: of an index for many codes, else 0. used: whether archives are searched so."""

    codes: int
    index: str
    milliseconds: float
    recall: float
    build_seconds: float
    used: str


YES, NO, REFINED = "yes", "no", "with --refine"


def synthetic(codec: Codec, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes uint8 [count, M], finer vectors as `colazip.refine` packs them, queries float32 [QUERIES, D])
    near the vectors of real text.

    Each stands for a random mixture of two passages of the handbook, and noise of half its length: denser
    than a corpus of that size, so neighbours are harder to tell apart.
    """
    import faiss

    book = np.ascontiguousarray(codec.codebook, dtype=np.float32)
    m, _, width = book.shape
    rng = np.random.default_rng(seed)
    anchors = codec.vectors([passage.text for passage in handbook()])
    quantizer = faiss.ProductQuantizer(m * width, m, 8)
    faiss.copy_array_to_vector(book.ravel(), quantizer.centroids)

    def draw(n: int) -> np.ndarray:
        one, other = (anchors[rng.integers(0, len(anchors), n)] for _ in range(2))
        share = rng.random((n, 1), dtype=np.float32)
        noise = rng.standard_normal((n, m * width), dtype=np.float32) * np.float32(
            _NOISE / np.sqrt(m * width)
        )
        mixed = share * one + (1 - share) * other + noise
        return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)

    codes, finer = [], []
    for at in range(0, count, _CHUNK):
        vectors = draw(min(_CHUNK, count - at))
        codes.append(quantizer.compute_codes(vectors))
        finer.append(pack_finer(vectors))
    return np.concatenate(codes), np.concatenate(finer), draw(QUERIES)


def measure(codec: Codec, sizes: Sequence[int]) -> list[ScanRow]:
    """The exact scan at every size, and where archives get one the index for many codes."""
    import faiss

    faiss.omp_set_num_threads(1)
    rows = []
    for count in sizes:
        codes, finer, queries = synthetic(codec, count)
        owners = np.arange(count)
        scan = SearchIndex(codec.codebook)
        scan.add(codes, owners)
        exact, milliseconds = _timed(lambda query, index=scan: index.search(query, DEPTH)[0], queries)
        large = count > SCANNED_CODES
        rows.append(ScanRow(count, "exact scan", milliseconds, 1.0, 0.0, NO if large else YES))
        if large:
            start = time.perf_counter()
            coarse = CoarseCodes.train(codec.codebook, codes[:: max(1, count // SAMPLE_CODES)])
            coarse.add(codes)
            seconds = time.perf_counter() - start
            index = LargeIndex(codec.codebook, codes, owners, coarse)
            found, milliseconds = _timed(lambda query, index=index: index.search(query, DEPTH)[0], queries)
            rows.append(ScanRow(count, "fast scan", milliseconds, _recall(found, exact), seconds, YES))
        refined = RefinedIndex(index if large else scan, finer)
        found, milliseconds = _timed(lambda query, index=refined: index.search(query, DEPTH)[0], queries)
        recall = _recall(found, _nearest(finer, queries))
        name = f"{'fast' if large else 'exact'} scan, refined"
        rows.append(ScanRow(count, name, milliseconds, recall, 0.0, REFINED))
    return rows


def _recall(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    return float(np.mean([len(set(f) & set(w)) / DEPTH for f, w in zip(found, wanted, strict=True)]))


def _nearest(finer: np.ndarray, queries: np.ndarray) -> list[list[int]]:
    """The DEPTH nearest of all finer vectors to each query."""
    scores = np.empty((len(queries), len(finer)), np.float32)
    for at in range(0, len(finer), _CHUNK):
        vectors = unpack_nibbles(finer[at : at + _CHUNK]).astype(np.float32)
        scores[:, at : at + _CHUNK] = queries @ vectors.T / np.linalg.norm(vectors, axis=1)
    return np.argsort(-scores, axis=1)[:, :DEPTH].tolist()


def _timed(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray) -> tuple[list[list[int]], float]:
    """(positions found by each query, median milliseconds)."""
    search(queries[0])
    found, seconds = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(search(query).tolist())
        seconds.append(time.perf_counter() - start)
    return found, 1000 * statistics.median(seconds)
