"""The judges of generated text: probabilities that add up, and figures worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.text_quality import KneserNey, distinct, self_bleu

TEXTS = [[0, 1, 2, 3, 0, 1], [0, 1, 3], [4, 4, 4]]


def test_probabilities_add_up_to_one() -> None:
    judge = KneserNey(TEXTS, 6)
    for a, b in ((6, 6), (0, 1), (4, 4), (5, 5), (2, 5), (5, 0)):
        assert sum(judge.probability(a, b, c) for c in range(6)) == pytest.approx(1.0)


def test_what_was_seen_is_likelier() -> None:
    judge = KneserNey(TEXTS, 6)
    assert judge.perplexity([[0, 1, 2]]) < judge.perplexity([[2, 1, 0]]) < 1000
    assert judge.perplexity([[3]], [[0, 1]]) < judge.perplexity([[4]], [[0, 1]])
    assert KneserNey([], 6).perplexity([[1, 2]]) == pytest.approx(6.0)


def test_distinct() -> None:
    assert distinct([[1, 2, 1, 2], [1, 2]], 1) == pytest.approx(2 / 6)
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 4)
    assert distinct([], 2) == 0.0


def test_self_bleu() -> None:
    same = [[1, 2, 3, 4, 5]] * 3
    assert self_bleu(same) == pytest.approx(1.0)
    assert self_bleu([[1, 2, 3, 4], [5, 6, 7, 8]]) == 0.0
    assert 0 < self_bleu([[1, 2, 3, 4], [1, 2, 7, 8]]) < 1
    assert self_bleu([[1, 2]]) == 0.0
