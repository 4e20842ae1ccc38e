"""How much of a reference text another text says again: ROUGE-L and BLEU over words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_ORDERS = 4


def words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def rouge_l(candidate: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004), 0 to 1."""
    a, b = words(candidate), words(reference)
    if not a or not b:
        return 0.0
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0  # the row above, one to the left
        for j, other in enumerate(b, 1):
            above = row[j]
            row[j] = before + 1 if word == other else max(above, row[j - 1])
            before = above
    return 2.0 * row[-1] / (len(a) + len(b))


def bleu(candidates: Sequence[str], references: Sequence[str]) -> float:
    """BLEU-4 of a corpus with one reference each (Papineni et al., 2002), 0 to 1.

    Counts above single words are smoothed by adding 1 (Lin and Och, 2004): short texts often share no run of
    four words.
    """
    hits, totals = [0] * _ORDERS, [0] * _ORDERS
    length = reference_length = 0
    for candidate, reference in zip(candidates, references, strict=True):
        a, b = words(candidate), words(reference)
        length, reference_length = length + len(a), reference_length + len(b)
        for n in range(1, _ORDERS + 1):
            said, wanted = _grams(a, n), _grams(b, n)
            hits[n - 1] += sum((said & wanted).values())
            totals[n - 1] += sum(said.values())
    if not hits[0]:
        return 0.0
    smoothed = [(h + (n > 0)) / (t + (n > 0)) for n, (h, t) in enumerate(zip(hits, totals, strict=True))]
    penalty = min(0.0, 1.0 - reference_length / length)
    return math.exp(penalty + sum(map(math.log, smoothed)) / _ORDERS)


def _grams(text: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
