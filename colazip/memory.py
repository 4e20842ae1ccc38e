"""What a block has said so far: guesses at the next token from the last time its context occurred.

The match model of PPM and cmix, over tokens: cheap, adaptive, in integers. Lanes of a block advance together
and share one memory, so that a short record profits from what its neighbours said a moment ago. The networks
take a guess as input and learn how far to trust it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ORDERS = 3  # contexts of 1 to ORDERS tokens; the longest one that is known makes the guess
RUNS = 4  # how often in a row the guess was right, counted up to RUNS - 1
KINDS = 1 + ORDERS * RUNS  # kinds of guesses; kind 0 is none

SLOT_BITS = 15  # a block holds at most 2**16 tokens, many of them in contexts that came before
TAG_BITS = (
    40  # of a context's hash, kept with the entry: a wrong match is as good as impossible, and harmless
)
TOKEN_BITS, RUN_BITS = 16, 2
ODD = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93  # of each order
_ODDS = np.array(ODD, np.uint64)[:, None]

_WORD, _TAG, _TOKEN = (1 << 64) - 1, (1 << TAG_BITS) - 1, (1 << TOKEN_BITS) - 1


class BlockMemory:
    """Memories of `blocks` blocks. Guess for all lanes first, then learn: lanes of one step don't see each
    other."""

    def __init__(self, blocks: int) -> None:
        # One entry a slot: tag, runs, token, in this order from the top.
        self._table = np.zeros((ORDERS * blocks) << SLOT_BITS, np.uint64)
        self._blocks = blocks

    def guess(self, block: np.ndarray, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """block int64 [n], tokens before int64 [n, ORDERS] (latest first) -> (guess int64 [n], kind int64
        [n]). The guess is 0 where there is none."""
        if len(block) == 1:
            guess_of_one, kind_of_one = self._guess_one(int(block[0]), history[0].tolist())
            return np.array([guess_of_one]), np.array([kind_of_one])
        context = np.empty((ORDERS, len(block)), np.uint64)
        context[0] = history[:, 0] + 1
        for order in range(1, ORDERS):
            context[order] = context[order - 1] << np.uint64(TOKEN_BITS) | history[:, order].astype(np.uint64)
        mixed = context * _ODDS  # modulo 2**64
        tag = np.maximum((mixed >> np.uint64(8)) & np.uint64((1 << TAG_BITS) - 1), np.uint64(1))  # 0: empty
        place = np.arange(ORDERS)[:, None] * self._blocks + block
        slot = (place << SLOT_BITS) + (mixed >> np.uint64(64 - SLOT_BITS)).astype(np.int64)
        entry = self._table[slot]
        hit = entry >> np.uint64(TOKEN_BITS + RUN_BITS) == tag
        token = (entry & np.uint64((1 << TOKEN_BITS) - 1)).astype(np.int64)
        runs = (entry >> np.uint64(TOKEN_BITS) & np.uint64(RUNS - 1)).astype(np.int64)
        self._asked = tag, slot, hit, token, runs
        guess, kind = np.zeros(len(block), np.int64), np.zeros(len(block), np.int64)
        for order in range(ORDERS):
            guess = np.where(hit[order], token[order], guess)
            kind = np.where(hit[order], 1 + order * RUNS + runs[order], kind)
        return guess, kind

    def learn(self, came: np.ndarray) -> None:
        """The tokens that came, int64 [n], of the lanes last given to `guess`. Where lanes of a block meet in
        a slot, the last lane stays (as NumPy assigns)."""
        if len(came) == 1:
            self._learn_one(int(came[0]))
            return
        tag, slot, hit, token, runs = self._asked
        runs = np.where(hit & (token == came), np.minimum(runs + 1, RUNS - 1), 0)
        low = (runs << TOKEN_BITS | came).astype(np.uint64)
        self._table[slot] = tag << np.uint64(TOKEN_BITS + RUN_BITS) | low

    def _guess_one(self, block: int, history: list[int]) -> tuple[int, int]:
        """`guess` for one lane: the same in Python's integers, of which few are faster than small arrays."""
        context, found, kind = 1, 0, 0
        self._asked_one = []
        for order, token in enumerate(history):
            context = context + token if order == 0 else context << TOKEN_BITS | token
            mixed = context * ODD[order] & _WORD
            tag = mixed >> 8 & _TAG or 1
            slot = ((order * self._blocks + block) << SLOT_BITS) + (mixed >> 64 - SLOT_BITS)
            entry = int(self._table[slot])
            hit = entry >> TOKEN_BITS + RUN_BITS == tag
            known, runs = entry & _TOKEN, entry >> TOKEN_BITS & RUNS - 1
            if hit:
                found, kind = known, 1 + order * RUNS + runs
            self._asked_one.append((tag, slot, hit, known, runs))
        return found, kind

    def _learn_one(self, came: int) -> None:
        """`learn` for one lane."""
        for tag, slot, hit, known, runs in self._asked_one:
            runs = min(runs + 1, RUNS - 1) if hit and known == came else 0
            self._table[slot] = tag << TOKEN_BITS + RUN_BITS | runs << TOKEN_BITS | came

    def follow(self, block: int) -> None:
        """Make all memories the one of `block`."""
        tables = self._table.reshape(ORDERS, self._blocks, -1)
        tables[:] = tables[:, block : block + 1].copy()


def recall(
    tokens: np.ndarray,
    block: np.ndarray,
    count: np.ndarray,
    memories: Callable[[int], BlockMemory] = BlockMemory,
) -> tuple[np.ndarray, np.ndarray]:
    """Guesses for all tokens of lanes, longest first: tokens int64 [L, T], block int64 [L] from 0, count
    int64 [L] -> (guess int64 [L, T], kind int64 [L, T]). memories: makes those of so many blocks."""
    guess, kind = np.zeros_like(tokens), np.zeros_like(tokens)
    memory = memories(int(block.max(initial=-1)) + 1)
    padded = np.concatenate([np.zeros((len(tokens), ORDERS), np.int64), tokens], 1)
    for at in range(int(count.max(initial=0))):
        n = int(np.searchsorted(-count, -at, side="left"))
        history = padded[:n, at : at + ORDERS][:, ::-1]
        guess[:n, at], kind[:n, at] = memory.guess(block[:n], history)
        memory.learn(padded[:n, at + ORDERS])
    return guess, kind
