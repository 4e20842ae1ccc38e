"""Pairs of a query and a passage, cut out of the training text: what the search head learns from."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from colazip.tokenizer import Tokenizer
from colazip.train.data import TokenStore

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[。！？])|\n\n+")
_WINDOW = 384  # tokens decoded around a place; a passage is cut from them
_TITLE = 150  # characters of a first line that still is a title
_ASK = (
    "What",
    "Who",
    "When",
    "Where",
    "Which",
    "How many",
    "Why",
    "How",
    "In what year",
    "What is",
    "What did",
)


class TextPairs:
    """Draws (query, passage) texts, a part at a time, by seed and part alone.

    A place in the text is drawn, every token with equal chance, and a passage of whole sentences around it.
    The query is the passage's title if it has one, or comes of one of its sentences: the sentence, some of
    its words, a span, or a question made of it by rule (an answer-like span falls out, an interrogative
    stands in front). With probability `cut` that sentence is taken out of the passage (inverse cloze, arXiv
    1906.00300).
    """

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, seed: int, *, cut: float = 0.3) -> None:
        self._store, self._tokenizer, self._seed, self._cut = store, tokenizer, seed, cut
        self._starts = np.concatenate([[0], store.ends[:-1]])

    def draw(self, part: int, count: int) -> list[tuple[str, str]]:
        """`count` pairs of part number `part`."""
        rng = np.random.default_rng((self._seed, part))
        pairs: list[tuple[str, str]] = []
        while len(pairs) < count:
            if pair := self._one(rng):
                pairs.append(pair)
        return pairs

    def _one(self, rng: np.random.Generator) -> tuple[str, str] | None:
        place = int(rng.integers(len(self._store.tokens)))
        record = int(np.searchsorted(self._store.ends, place, side="right"))
        lo, hi = int(self._starts[record]), int(self._store.ends[record])
        at_start = rng.random() < 0.25
        begin = lo if at_start else max(lo, min(place, hi - _WINDOW // 2))
        window = self._store.tokens[begin : min(hi, begin + _WINDOW)]
        text = self._tokenizer.decode(window.tolist()).decode("utf-8", "ignore").strip()
        title, gap, rest = text.partition("\n\n")
        if begin == lo and gap and 8 <= len(title) <= _TITLE and len(rest) >= 80 and rng.random() < 0.7:
            return title, " ".join(_passage(_SENTENCE.split(rest), rng))
        sentences = [s.strip() for s in _SENTENCE.split(text) if s and s.strip()]
        if begin > lo:
            sentences = sentences[1:]  # begins in the middle
        if begin + _WINDOW < hi:
            sentences = sentences[:-1]
        sentences = _passage(sentences, rng)
        long_enough = [i for i, s in enumerate(sentences) if len(s) >= 30]
        if not long_enough:
            return None
        pick = long_enough[int(rng.integers(len(long_enough)))]
        query = _query(sentences[pick][:400], rng)
        if len(sentences) > 2 and rng.random() < self._cut:
            del sentences[pick]
        passage = " ".join(sentences)
        return (query, passage) if len(passage) >= 40 and len(query) >= 4 else None


def _passage(sentences: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The first sentences up to a random length of 100 to 800 characters."""
    limit, size = int(rng.integers(100, 800)), 0
    taken: list[str] = []
    for sentence in sentences:
        if taken and size + len(sentence) > limit:
            break
        taken.append(sentence[:800])
        size += len(sentence)
    return taken


def _query(sentence: str, rng: np.random.Generator) -> str:
    words = sentence.split()
    kind = rng.random()
    if kind < 0.15 or len(words) < 5:
        return sentence
    if kind < 0.4:  # a span
        size = int(rng.integers(3, 13))
        at = int(rng.integers(max(1, len(words) - size + 1)))
        return " ".join(words[at : at + size])
    if kind < 0.6:  # some words, as typed into a search box
        keep = rng.random(len(words)) < min(0.5, 5 / len(words))
        keep[int(rng.integers(len(words)))] = True
        return " ".join(w for w, k in zip(words, keep, strict=True) if k).strip(" .,;:").lower()
    # A question: what it asks for, if we can guess, is a name or a number.
    telling = [i for i, w in enumerate(words) if i and (w[:1].isupper() or w[:1].isdigit())]
    at = telling[int(rng.integers(len(telling)))] if telling else int(rng.integers(len(words)))
    asked = range(at, at + int(rng.integers(1, 4)))
    size = int(rng.integers(6, 16))
    first = max(0, min(at - size // 2, len(words) - size))
    kept = [
        words[i]
        for i in range(first, min(len(words), first + size))
        if i not in asked and (rng.random() > 0.15)
    ]
    return f"{_ASK[int(rng.integers(len(_ASK)))]} {' '.join(kept).strip(' .,;:')}?"
