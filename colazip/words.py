"""Words that take several tokens, found by a hash of their letters: rows of the search head. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BASE = 16777619  # of the polynomial, as in FNV
_MASK = np.uint64(0xFFFFFFFF)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: Fibonacci hashing
_LONGEST = 16  # tokens of a word that its hash reads
_UNIT = 8  # tokens of a unit, at most: scripts without spaces make words of a whole sentence


class WordHash:
    """token_bytes: bytes of each token. Everything is integer arithmetic, hence the same on every machine.

    A word is a run of tokens in which each but the first begins with a letter or digit, right after one that
    ends with such; bytes above 127 count as letters, the punctuation of U+2000 to U+203F does not. Its hash
    is a polynomial over its bytes from the first letter on, ASCII in lower case, so that "Warsaw", " warsaw"
    and '"Warsaw' are one word however they are cut.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        cores = [_core(t) for t in token_bytes]
        self._value = np.array([_polynomial(c) for c in cores], np.uint64)
        self._shift = np.array([pow(_BASE, len(c), 1 << 32) for c in cores], np.uint64)
        self._begins = np.array(
            [len(t) > 0 and len(c) == len(t) for t, c in zip(token_bytes, cores, strict=True)]
        )
        self._ends = np.array([_is_letter(t[-1:]) and not t.endswith(_MARKS) for t in token_bytes])

    def joined(self, tokens: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
        """Whether a token goes on with the word of the one before: int64 [T] -> bool [T]. starts: where a
        text begins, of several that are end to end, int64 [n]."""
        joined = np.zeros(len(tokens), bool)
        joined[1:] = self._begins[tokens[1:]] & self._ends[tokens[:-1]]
        if starts is not None:
            joined[starts] = False
        return joined

    def units(self, tokens: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
        """First tokens of what an encoder takes for one position, int64 [U]: words, long ones in pieces of
        _UNIT tokens. Arguments as `joined` has them."""
        first = np.flatnonzero(~self.joined(tokens, starts))
        inside = np.arange(len(tokens)) - np.repeat(first, np.diff(np.append(first, len(tokens))))
        return np.flatnonzero(inside % _UNIT == 0)

    def words(
        self, tokens: np.ndarray, starts: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens int64 [T] -> of each word of several tokens (hash uint32 [N], first token [N], length
        [N]). Arguments as `joined` has them."""
        first = np.flatnonzero(~self.joined(tokens, starts))
        length = np.diff(np.append(first, len(tokens)))
        first, length = first[length > 1], length[length > 1]
        value = self._value[tokens[first]]
        for k in range(1, min(_LONGEST, int(length.max(initial=1)))):
            longer = np.flatnonzero(length > k)
            token = tokens[first[longer] + k]
            value[longer] = (value[longer] * self._shift[token] + self._value[token]) & _MASK
        return (value * _SPREAD >> np.uint64(32)).astype(np.uint32), first, length


_MARKS = tuple(bytes([0xE2, 0x80, last]) for last in range(0x80, 0xC0))


def _is_letter(byte: bytes) -> bool:
    return byte.isalnum() or byte > b"\x7f"


def _core(token: bytes) -> bytes:
    """The token from its first letter or digit on, in lower case."""
    while token and (token[:3] in _MARKS or not _is_letter(token[:1])):
        token = token[3 if token[:3] in _MARKS else 1 :]
    return token.lower()


def _polynomial(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value * _BASE + byte + 1) & 0xFFFFFFFF
    return value
