"""How a long text is cut into passages for search: windows that overlap, while the text is kept once.

A passage is a run of patches of one part. Windows are spread evenly, so that none is a short tail, and follow
from the number of patches and of passages alone: an archive stores only how many passages a part has.
"""

from __future__ import annotations

PASSAGE_TOKENS = 640  # of a passage, about: docs/experiments.md, 24
OVERLAP = 32  # tokens that neighbours share, whatever their size


def count_passages(patches: int, patch: int, tokens: int) -> int:
    """Passages of a part of `patches` patches of `patch` tokens, where one should have about `tokens` tokens.

    0 for an empty part. A part has another passage only once that holds at least half a passage of new text.
    """
    shared = OVERLAP // patch
    step = max(1, tokens // patch - shared)
    return min(1, patches) if patches <= shared else max(1, (patches - shared + step // 2) // step)


def windows(patches: int, patch: int, count: int) -> list[tuple[int, int]]:
    """(first, end) patch of each of `count` passages. Window i of n begins at i * (patches - shared) // n and
    ends `shared` patches after the next one begins, shared = OVERLAP // patch (none in shorter parts)."""
    shared = min(OVERLAP // patch, max(0, patches - 1))
    fresh = patches - shared
    return [(i * fresh // count, (i + 1) * fresh // count + shared) for i in range(count)]
