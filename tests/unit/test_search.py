"""The Faiss index against its brute-force twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.search import SearchIndex, brute_force


def make(seed: int, m: int, width: int, count: int, owners: int, spread: float):
    """Random codebook, codes and owners. spread: how much vectors differ in length."""
    rng = np.random.default_rng(seed)
    codebook = rng.standard_normal((m, 256, width), dtype=np.float32)
    codebook *= rng.uniform(1, 1 + spread, (m, 256, 1)).astype(np.float32) / np.sqrt(m * width)
    codes = rng.integers(0, 256, (count, m), dtype=np.uint8)
    query = rng.standard_normal(m * width).astype(np.float32)
    return codebook, codes, rng.integers(0, owners, count), query / np.sqrt((query**2).sum())


def index_of(codebook: np.ndarray, codes: np.ndarray, owners: np.ndarray) -> SearchIndex:
    index = SearchIndex(codebook)
    half = len(codes) // 2
    index.add(codes[:half], owners[:half])
    index.add(codes[half:], owners[half:])
    return index


@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 4, 32]),
    st.sampled_from([1, 2, 8]),
    st.integers(0, 3000),
    st.sampled_from([1, 7, 10_000]),
    st.sampled_from([1, 10, 100, 10_000]),
    st.sampled_from([0.0, 0.2, 5.0]),
)
@settings(max_examples=60, deadline=None)
def test_equals_brute_force(seed, m, width, count, owners, k, spread) -> None:
    codebook, codes, owner, query = make(seed, m, width, count, owners, spread)
    positions, scores = index_of(codebook, codes, owner).search(query, k)
    expected, expected_scores = brute_force(codebook, codes, owner, query, k)
    assert len(positions) == len(expected) == min(k, len(np.unique(owner)))
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    # Each answer has the score the oracle gives it: so the two differ in the order of equal scores at most.
    decoded = codebook[np.arange(m), codes[positions]].reshape(len(positions), m * width)
    np.testing.assert_allclose(decoded @ query / np.linalg.norm(decoded, axis=1), expected_scores, atol=1e-5)
    assert len(set(owner[positions])) == len(positions)


def test_length_does_not_count() -> None:
    """A short vector in the right direction beats a long one nearby, however many long ones there are."""
    codebook = np.zeros((2, 256, 1), dtype=np.float32)
    codebook[:, 0, 0] = 0.1
    codebook[0, 1, 0], codebook[1, 1, 0] = 3.0, 2.0
    codes = np.array([[1, 1]] * 500 + [[0, 0]], dtype=np.uint8)
    query = np.array([1, 1], dtype=np.float32) / np.sqrt(np.float32(2))
    positions, scores = index_of(codebook, codes, np.arange(501)).search(query, 1)
    assert positions.tolist() == [500]
    assert scores[0] == pytest.approx(1)


def test_equal_scores_keep_their_order() -> None:
    codebook, codes, _, query = make(1, 4, 4, 1, 1, 0)
    positions, _ = index_of(codebook, np.repeat(codes, 300, axis=0), np.arange(300)).search(query, 300)
    assert positions.tolist() == list(range(300))


@pytest.mark.parametrize("sign", [1, -1])
def test_zero_vectors(sign: int) -> None:
    codebook = np.zeros((2, 256, 2), dtype=np.float32)
    codebook[:, 1] = sign
    codes = np.array([[0, 0]] * 100 + [[1, 1]] * 100, dtype=np.uint8)
    query = np.full(4, 0.5, dtype=np.float32)
    positions, scores = index_of(codebook, codes, np.arange(200)).search(query, 150)
    expected, expected_scores = brute_force(codebook, codes, np.arange(200), query, 150)
    assert set(positions[:100]) == set(expected[:100])
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert len(index_of(codebook, codes[:100], np.arange(100)).search(query, 5)[0]) == 5


def test_nothing_to_find() -> None:
    codebook, codes, owners, query = make(1, 4, 4, 10, 10, 0)
    assert len(SearchIndex(codebook).search(query, 5)[0]) == 0
    index = index_of(codebook, codes, owners)
    assert len(index) == 10
    assert len(index.search(query, 0)[0]) == 0
    assert len(index.search(query * np.float32(np.nan), 5)[0]) == 0
    assert len(brute_force(codebook, codes[:0], owners[:0], query, 5)[0]) == 0


@given(
    st.integers(0, 2**32), st.integers(0, 2000), st.sampled_from([0.0, 0.01, 0.5, 1.0]), st.integers(1, 50)
)
@settings(max_examples=30, deadline=None)
def test_filtered_equals_brute_force_over_what_is_left(seed, count, share, k) -> None:
    codebook, codes, owner, query = make(seed, 4, 2, count, 300, 0.5)
    allowed = np.random.default_rng(seed).random(300) < share
    kept = np.flatnonzero(allowed[owner]) if count else np.empty(0, dtype=np.int64)
    _, scores = brute_force(codebook, codes[kept], owner[kept], query, k)
    positions, found = index_of(codebook, codes, owner).search(query, k, allowed)
    assert len(positions) == min(k, len(np.unique(owner[kept])))
    np.testing.assert_allclose(found, scores, atol=1e-5)
    assert allowed[owner[positions]].all()
