"""Records that benchmarks make themselves."""

from __future__ import annotations

import random

from colazip.demo import handbook

# Random bytes of these lengths: every short one, then ever sparser up to 4 KiB.
RANDOM_LENGTHS = (*range(1, 65), *(round(64 * 2 ** (i / 4)) for i in range(1, 25)))
EMOJI = "😀🏳️‍🌈👩‍👩‍👧‍👦🇰🇷👍🏽🧑‍🚀"


def prose(size: int) -> bytes:
    """One record of `size` bytes of English: passages of the handbook, over and over. ASCII."""
    text = " ".join(passage.text for passage in handbook()).encode("ascii", "ignore")
    return (text * (size // len(text) + 1))[:size]


def hostile(seed: int = 0) -> dict[str, list[bytes]]:
    """Records that no model expects, by kind."""
    rng = random.Random(seed)
    return {
        "random bytes, 1 to 4,096": [rng.randbytes(n) for n in RANDOM_LENGTHS],
        "empty": [b""],
        "single bytes": [bytes([b]) for b in range(256)],
        "all byte values in a row": [bytes(range(256)), bytes(range(255, -1, -1)) * 4],
        "emoji": [(EMOJI * n).encode() for n in (1, 2, 10, 100)],
    }
