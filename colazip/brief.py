"""Which words of a text a brief keeps: those that carry its meaning, as the search rows know it. No torch.

A search vector is a sum of rows, so the words whose rows alone point where all of them do can be found
without any network. Long texts are cut into windows, so that each stretch of one is heard.
"""

from __future__ import annotations

import re

import numpy as np

from colazip.errors import UsageError
from colazip.tokenizer import Tokenizer
from colazip.vectors import RowSums

WORDS = 100  # that a window keeps at most
LONGEST = 800  # words of a window; where a share of it is fewer than WORDS, those are what it keeps at most
SMALLEST, LARGEST = 1 / 64, 1.0  # shares that can be asked for

# The least that a word may add to the cosine of what is kept with all of its window. Below this the words
# that are left say the same again: docs/experiments.md, 26.
_LEAST_GAIN = 3.5e-4

# A run of letters and digits, points and the like inside it included ("3.14", "well-known"). Scripts without
# spaces between words are taken character by character.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTER = rf"(?:(?![{_UNSPACED}])\w)"
WORD = re.compile(rf"[{_UNSPACED}]|{_LETTER}+(?:['’.,-]{_LETTER}+)*")


class Abridger:
    """Cuts texts down to the words that carry their meaning.

    share: about how many of the words of a long text are kept, from SMALLEST to LARGEST. A text is kept whole
    up to WORDS, with shares below WORDS / LONGEST up to that share of LONGEST. Raises UsageError for another.
    """

    def __init__(self, share: float, tokenizer: Tokenizer, rows: RowSums) -> None:
        if not SMALLEST <= share <= LARGEST:  # NaN too
            raise UsageError(f"a brief of {share} of the words: must be from 1/64 to 1")
        self.words = min(WORDS, round(LONGEST * share))  # that a window keeps at most
        self._window = round(self.words / share)
        self.share, self._tokenizer, self._rows = share, tokenizer, rows

    def abridge(self, data: bytes, tokens: np.ndarray) -> bytes:
        """The brief of a text: its words in their order, or all of it where it has no more than `words`.

        tokens: of the text, int64 [T]. Bytes that are no UTF-8 are in no word.
        """
        text = data.decode("utf-8", "replace")
        spans = [m.span() for m in WORD.finditer(text)]
        if len(spans) <= self.words:
            return data
        rows = self._word_rows(data, text, spans, tokens)
        count = -(-len(spans) // self._window)
        kept: list[int] = []
        for i in range(count):
            lo, hi = len(spans) * i // count, len(spans) * (i + 1) // count
            words = [text[start:end].lower() for start, end in spans[lo:hi]]
            kept += [lo + j for j in choose(words, rows[lo:hi], self.words)]
        return _join(text, [spans[i] for i in kept]).encode()

    def _word_rows(
        self, data: bytes, text: str, spans: list[tuple[int, int]], tokens: np.ndarray
    ) -> np.ndarray:
        """What each word adds to the search vector of the text, in integers: float64 [N, D].

        A token counts for the word that its last byte is in.
        """
        found = np.zeros((len(spans), self._rows.width))
        whole = text.encode()
        if len(whole) != len(data):  # some bytes were no text: tokens of what stands for them
            (tokens,) = self._tokenizer.encode([whole])
        lengths = np.array([len(c.encode()) for c in text], np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        starts, ends = offsets[np.array(spans, np.int64)].T
        last = np.cumsum(self._tokenizer.lengths[tokens]) - 1
        word = np.searchsorted(starts, last, side="right") - 1
        inside = (word >= 0) & (last < ends[word])
        word = word[inside]
        first = np.flatnonzero(np.diff(word, prepend=-1))
        if len(first):
            found[word[first]] = np.add.reduceat(self._rows.patches(tokens, 1)[inside] * 256.0, first, axis=0)
        return found


def choose(words: list[str], rows: np.ndarray, most: int) -> list[int]:
    """The words to keep of a window, at most `most`, ascending; of one that is there twice the first.

    rows: float64 [N, D], integers. Greedy: always the word that brings the sum of the rows kept nearest to
    the sum of all. Up to the cosines every sum is of integers below 2**53, hence the same in any order.
    """
    first = {word: i for i, word in reversed(list(enumerate(words)))}
    places = np.array(sorted(first.values()), np.int64)
    own = rows[places]
    total = rows.sum(0)
    towards, between = own @ total, own @ own.T
    squares = between.diagonal()
    size = np.sqrt(max(float(total @ total), 1.0))
    along = square = nearness = 0.0
    across = np.zeros(len(places))  # products of each word's row with the sum of those kept
    left = np.ones(len(places), bool)
    kept: list[int] = []
    while left.any() and len(kept) < most:
        cosine = (along + towards) / (np.sqrt(np.maximum(square + 2.0 * across + squares, 1.0)) * size)
        cosine[~left] = -np.inf
        best = int(cosine.argmax())
        if kept and cosine[best] - nearness < _LEAST_GAIN:
            break
        nearness = float(cosine[best])
        along += towards[best]
        square += 2.0 * across[best] + squares[best]
        across += between[best]
        left[best] = False
        kept.append(int(places[best]))
    return sorted(kept)


def _join(text: str, spans: list[tuple[int, int]]) -> str:
    """The words, a space between two that did not touch each other."""
    pieces: list[str] = []
    before = -1
    for start, end in spans:
        if pieces and start != before:
            pieces.append(" ")
        pieces.append(text[start:end])
        before = end
    return "".join(pieces)
