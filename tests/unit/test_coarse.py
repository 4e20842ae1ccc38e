"""The index for large archives against the exact one."""

from __future__ import annotations

import numpy as np
import pytest

from colazip.coarse import CoarseCodes, LargeIndex
from colazip.errors import FormatError
from colazip.search import SearchIndex, brute_force

M, WIDTH = 8, 4


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(codebook, codes, owners, queries) of 20,000 codes, two a record."""
    rng = np.random.default_rng(5)
    codebook = rng.standard_normal((M, 256, WIDTH), dtype=np.float32)
    codes = rng.integers(0, 256, (20_000, M), dtype=np.uint8)
    queries = rng.standard_normal((20, M * WIDTH)).astype(np.float32)
    return codebook, codes, np.arange(20_000) // 2, queries / np.linalg.norm(queries, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def index(data) -> LargeIndex:
    codebook, codes, owners, _ = data
    coarse = CoarseCodes.train(codebook, codes[::4])
    coarse.add(codes[:777])
    coarse.add(codes[777:])
    return LargeIndex(codebook, codes, owners, coarse)


def test_recall(data, index: LargeIndex) -> None:
    codebook, codes, owners, queries = data
    found = []
    for query in queries:
        positions, scores = index.search(query, 10)
        expected, expected_scores = brute_force(codebook, codes, owners, query, 10)
        found.append(len(set(positions.tolist()) & set(expected.tolist())) / 10)
        assert len(positions) == 10 and len(set(owners[positions])) == 10
        assert (np.diff(scores) <= 0).all() and (scores <= expected_scores + 1e-5).all()
    assert np.mean(found) >= 0.95


def test_filtered_search_is_exact(data, index: LargeIndex) -> None:
    codebook, codes, owners, queries = data
    allowed = np.zeros(10_000, dtype=bool)
    allowed[[3, 17, 4000, 9999]] = True
    kept = np.flatnonzero(allowed[owners])
    expected, _ = brute_force(codebook, codes[kept], owners[kept], queries[0], 10)
    assert index.search(queries[0], 10, allowed)[0].tolist() == kept[expected].tolist()
    assert len(index.search(queries[0], 10, np.zeros(10_000, dtype=bool))[0]) == 0


def test_cosines_are_those_of_the_scan(data, index: LargeIndex) -> None:
    codebook, codes, owners, queries = data
    scan = SearchIndex(codebook)
    scan.add(codes, owners)
    positions, scores = scan.search(queries[1], 5)
    for each in (scan, index):
        places, best = each.cosines(queries[1], owners[positions])
        assert places.tolist() == positions.tolist()
        np.testing.assert_allclose(best, scores, atol=1e-6)
        places, best = each.cosines(queries[1], np.array([123_456]))
        assert places.tolist() == [-1] and np.isnan(best).all()


def test_more_hits_than_candidates(data, index: LargeIndex) -> None:
    assert len(index.search(data[3][0], 10_000)[0]) == 10_000
    assert len(index.search(data[3][0], 20_000)[0]) == 10_000
    assert len(index.search(data[3][0], 0)[0]) == 0


def test_saved_and_loaded(data, index: LargeIndex) -> None:
    codebook, codes, owners, queries = data
    coarse = index._coarse
    again = CoarseCodes(codebook, coarse.centroids)
    again.load(coarse.packed(), len(codes))
    loaded = LargeIndex(codebook, codes, owners, again)
    for query in queries:
        np.testing.assert_array_equal(loaded.search(query, 10)[0], index.search(query, 10)[0])


def test_what_does_not_fit_is_refused(data, index: LargeIndex) -> None:
    coarse = index._coarse
    with pytest.raises(FormatError, match="centroids"):
        CoarseCodes(data[0], coarse.centroids[:, :, :1])
    again = CoarseCodes(data[0], coarse.centroids)
    for packed, count in ((coarse.packed()[:-1], 20_000), (coarse.packed(), 30_000)):
        with pytest.raises(FormatError, match="length"):
            again.load(packed, count)
