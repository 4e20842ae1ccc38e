"""Hybrid scores."""

from __future__ import annotations

import numpy as np
import pytest

from colazip.fusion import WEIGHT, depth, fuse


def test_a_score_is_from_zero_to_one() -> None:
    scores = fuse(np.array([20.0, 5.0, 0.0, 0.0]), np.array([1.0, -0.3, 0.8, np.nan]))
    assert scores.tolist() == pytest.approx([1.0, 0.25 / (1 + WEIGHT), 0.8 * WEIGHT / (1 + WEIGHT), 0.0])


def test_without_words_the_meaning_decides() -> None:
    scores = fuse(np.zeros(3), np.array([0.1, 0.9, 0.5]))
    assert np.argsort(-scores).tolist() == [1, 2, 0]
    assert len(fuse(np.empty(0), np.empty(0))) == 0


def test_depth_grows_with_k() -> None:
    assert depth(1) == depth(10) == 100
    assert depth(1000) == 5000
