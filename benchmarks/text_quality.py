"""Judges of text that no network of the project has a part in: n-gram perplexity, distinct-n, self-BLEU.

Texts are sequences of token numbers, so that there are no unknown words to hide behind.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

Tokens = Sequence[int]


class KneserNey:
    """Interpolated Kneser-Ney trigrams (Chen and Goodman 1998), one discount, a closed vocabulary."""

    def __init__(self, texts: Iterable[Tokens], vocabulary: int, discount: float = 0.75) -> None:
        self.vocabulary, self.discount = vocabulary, discount
        self._three: Counter[tuple[int, int, int]] = Counter()
        for text in texts:
            self._three.update(_grams([vocabulary, vocabulary, *text], 3))
        self._two_before: Counter[tuple[int, int]] = Counter()
        self._two_kinds: Counter[tuple[int, int]] = Counter()
        # Lower orders count in how many contexts a gram stands, not how often.
        self._two: Counter[tuple[int, int]] = Counter()
        for (a, b, c), count in self._three.items():
            self._two_before[a, b] += count
            self._two_kinds[a, b] += 1
            self._two[b, c] += 1
        self._one_before: Counter[int] = Counter()
        self._one_kinds: Counter[int] = Counter()
        self._one: Counter[int] = Counter()
        for (b, c), count in self._two.items():
            self._one_before[b] += count
            self._one_kinds[b] += 1
            self._one[c] += 1
        self._all = sum(self._one.values())

    def probability(self, a: int, b: int, c: int) -> float:
        """Of token c after a and b; the vocabulary's size stands for the start of a text."""
        cut = self.discount
        p = 1.0 / self.vocabulary
        if self._all:
            p = (max(self._one[c] - cut, 0.0) + cut * len(self._one) * p) / self._all
        if before := self._one_before[b]:
            p = (max(self._two[b, c] - cut, 0.0) + cut * self._one_kinds[b] * p) / before
        if before := self._two_before[a, b]:
            p = (max(self._three[a, b, c] - cut, 0.0) + cut * self._two_kinds[a, b] * p) / before
        return p

    def perplexity(self, texts: Sequence[Tokens], contexts: Sequence[Tokens] | None = None) -> float:
        """Of all tokens of the texts, each text after its context (None: from the start)."""
        bits, count = 0.0, 0
        for text, context in zip(texts, contexts or [()] * len(texts), strict=True):
            whole = [self.vocabulary, self.vocabulary, *context, *text]
            for i in range(len(whole) - len(text), len(whole)):
                bits -= math.log2(self.probability(whole[i - 2], whole[i - 1], whole[i]))
            count += len(text)
        return float(2 ** (bits / max(count, 1)))


def distinct(texts: Sequence[Tokens], n: int) -> float:
    """Share of the n-grams of all texts together that are different (arXiv 1510.03055)."""
    grams = [g for text in texts for g in _grams(text, n)]
    return len(set(grams)) / max(len(grams), 1)


def self_bleu(texts: Sequence[Tokens], n: int = 4) -> float:
    """Mean BLEU of each text against all others (arXiv 1802.01886), counts above unigrams smoothed by one."""
    if len(texts) < 2:
        return 0.0
    counted = [[Counter(_grams(text, k)) for k in range(1, n + 1)] for text in texts]
    return float(np.mean([_bleu(i, counted, [len(t) for t in texts]) for i in range(len(texts))]))


def _bleu(at: int, counted: Sequence[Sequence[Counter[tuple[int, ...]]]], lengths: Sequence[int]) -> float:
    others = [i for i in range(len(counted)) if i != at]
    total = 0.0
    for k, mine in enumerate(counted[at]):
        found = sum(min(c, max(counted[i][k][gram] for i in others)) for gram, c in mine.items())
        plus = 1 if k else 0
        if found + plus == 0:
            return 0.0
        total += math.log((found + plus) / (sum(mine.values()) + plus)) if mine else -math.inf
    nearest = min((abs(lengths[i] - lengths[at]), lengths[i]) for i in others)[1]
    brevity = min(0.0, 1 - nearest / lengths[at]) if lengths[at] else -math.inf
    return math.exp(brevity + total / len(counted[at]))


def _grams(text: Tokens, n: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
