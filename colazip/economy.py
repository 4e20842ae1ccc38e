"""Which words a gist leaves out at a price: those whose bits buy too few tokens that read right. No torch.

Rate-distortion optimization as in video coders, over the units of a text: its words, and every other token.
What a unit left out saves is known, the bits it took; what it costs beyond its own tokens is that what comes
next is harder to foresee, once for each gap. So the best choice under that model is a shortest path through
two states, kept and left out. The text that remains is coded and read again, which tells what the gaps cost
in truth, and the choice is made anew. docs/experiments.md, 38.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from colazip.brief import WORD

LOWEST, HIGHEST = 1.0, 100.0  # prices that can be asked for
ROUNDS = 5
LEAST = 0.5  # of the tokens of a text is kept at least

# Bits that a gap costs where it has not been tried: fewer before a unit that is hard to foresee anyway.
_GAP, _RELIEF = 5.2, 0.3
_NEAR = 3  # units after a gap that are dearer because of it
_GRID = (
    256.0  # bits are rounded to 1 / 256, so that their sums are exact and the choice is the same everywhere
)
_DEARER = 2.0, 5  # what a price is multiplied with where too little would be kept, and how often
_TABLE = 1 << 20  # units of a batch, padding included

# Tokens of texts -> of each text what its tokens take, bits float64 [T], and which read right, bool [T].
Judge = Callable[[list[np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]


@dataclass
class _Text:
    """tokens: int64 [T]. starts: of its units, int64 [U + 1] with the end. Of each unit, float64 [U]: bits
    and rights (tokens that read right) as they are now and at first, what a gap that ends before it costs;
    kept, bool [U]."""

    tokens: np.ndarray
    starts: np.ndarray
    bits: np.ndarray
    rights: np.ndarray
    first_bits: np.ndarray
    first_rights: np.ndarray
    gaps: np.ndarray
    kept: np.ndarray

    def remaining(self) -> np.ndarray:
        return self.tokens[np.repeat(self.kept, np.diff(self.starts))]


def economize(
    texts: Sequence[bytes], tokens: Sequence[np.ndarray], lengths: np.ndarray, price: float, judge: Judge
) -> list[np.ndarray]:
    """What is left of texts: the tokens of each, int64 [T], without those of the units that are left out.

    tokens: of each text, int64 [T]; an empty one stays. lengths: bytes of each token of the vocabulary.
    price: bits that a token which reads right may cost.
    """
    found = [_start(text, own, lengths) for text, own in zip(texts, tokens, strict=True)]
    remaining = list(tokens)
    for number in range(ROUNDS):
        for text, (bits, right) in zip(found, judge(remaining), strict=True):
            if text is not None:
                _learn(text, np.rint(bits * _GRID) / _GRID, right, price, first=number == 0)
        _choose_all([text for text in found if text is not None], price)
        remaining = [
            own if text is None else text.remaining() for text, own in zip(found, tokens, strict=True)
        ]
    return remaining


def split(text: bytes, ends: np.ndarray) -> np.ndarray:
    """Starts of the units of a text and its end, in tokens, int64 [U + 1]. ends: byte at which each token
    ends, int64 [T], T above 0. A token is of the word that its last byte is in; no unit cuts a character."""
    decoded = text.decode("utf-8")
    offsets = np.concatenate([[0], np.cumsum([len(c.encode()) for c in decoded])])
    word = np.full(len(text), -1, np.int64)
    for number, match in enumerate(WORD.finditer(decoded)):
        word[offsets[match.start()] : offsets[match.end()]] = number
    last = word[ends - 1]
    begins = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80  # bytes that begin a character
    cut = begins[ends[:-1]] & ((last[1:] != last[:-1]) | (last[1:] < 0))
    return np.concatenate([[0], np.flatnonzero(cut) + 1, [len(ends)]])


def _start(text: bytes, tokens: np.ndarray, lengths: np.ndarray) -> _Text | None:
    """None for what stays as it is: nothing, and what is no UTF-8."""
    if not len(tokens):
        return None
    try:
        starts = split(text, np.cumsum(lengths[tokens]))
    except UnicodeDecodeError:
        return None
    bits, rights, first_bits, first_rights, gaps = np.zeros((5, len(starts) - 1))
    kept = np.ones(len(starts) - 1, bool)
    return _Text(tokens, starts, bits, rights, first_bits, first_rights, gaps, kept)


def _learn(text: _Text, bits: np.ndarray, right: np.ndarray, price: float, *, first: bool) -> None:
    """Take in what the tokens that are left take and which read right, [T] each."""
    kept = np.flatnonzero(text.kept)
    if not len(kept):
        return
    places = np.concatenate([[0], np.cumsum(np.diff(text.starts)[kept])])[:-1]
    now, rights = np.add.reduceat(bits, places), np.add.reduceat(right.astype(np.float64), places)
    if first:
        text.bits, text.rights, text.first_bits, text.first_rights = now, rights, now, rights
        text.gaps = np.maximum(0.0, np.rint((_GAP - _RELIEF * now) * _GRID) / _GRID)
        return
    dearer = np.zeros(len(text.kept))
    dearer[kept] = now - text.first_bits[kept] + price * (text.first_rights[kept] - rights)
    near = np.zeros(len(text.kept), bool)
    for unit in (np.flatnonzero(text.kept[1:] & ~text.kept[:-1]) + 1).tolist():
        end = unit
        while end < min(unit + _NEAR, len(near)) and text.kept[end]:
            end += 1
        text.gaps[unit] = dearer[unit:end].sum()
        near[unit:end] = True
    # What is dearer further away is so whatever gap comes next.
    far = kept[~near[kept]]
    text.bits[far], text.rights[far] = now[~near[kept]], rights[~near[kept]]


def _choose_all(texts: list[_Text], price: float) -> None:
    """Set `kept` of every text; where less than LEAST would remain, the price rises, at last all is kept."""
    factor, tries = _DEARER
    for _ in range(tries):
        for batch in _batches(texts):
            _choose(batch, price)
        texts = [text for text in texts if len(text.remaining()) < LEAST * len(text.tokens)]
        price *= factor
    for text in texts:
        text.kept[:] = True


def _batches(texts: list[_Text]) -> Iterator[list[_Text]]:
    """Texts of like length together, so that there is little padding."""
    batch: list[_Text] = []
    for text in sorted(texts, key=lambda text: len(text.kept)):
        if batch and (len(batch) + 1) * len(text.kept) > _TABLE:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _choose(texts: list[_Text], price: float) -> None:
    """The best path of each text by dynamic programming, position after position of all of them."""
    longest = max(len(text.kept) for text in texts)
    # Behind its end a text is kept at no price, whichever state it ended in.
    gain, gap = np.zeros((2, longest, len(texts)))
    for lane, text in enumerate(texts):
        gain[: len(text.kept), lane] = price * text.rights - text.bits
        gap[: len(text.kept), lane] = text.gaps
    keep, leave = gain[0].copy(), np.zeros(len(texts))
    was_left, stays_left = np.zeros((2, longest, len(texts)), bool)
    for at in range(1, longest):
        reopened = leave - gap[at]
        was_left[at] = reopened > keep
        stays_left[at] = leave >= keep
        leave = np.maximum(leave, keep)
        keep = np.where(was_left[at], reopened, keep) + gain[at]
    left = leave > keep
    kept = np.zeros((longest, len(texts)), bool)
    for at in range(longest - 1, -1, -1):
        kept[at] = ~left
        left = np.where(left, stays_left[at], was_left[at])
    for lane, text in enumerate(texts):
        text.kept = kept[: len(text.kept), lane].copy()
