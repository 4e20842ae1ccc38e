"""What goes into an archive and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """One text of an archive.

    data: the text, or any bytes.
    id: unique in its archive. None stands for the record's ordinal as a decimal string, which takes no space.
    metadata: JSON-like values (dates, times, decimals and bytes too, where a whole column has the one type).
    """

    data: bytes
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """One record found by a search, or one passage of it.

    score: what hits are ranked by: by meaning the cosine, by words BM25 (any number above 0, for comparison
    within one query), by both a mixture from 0 to 1. scores: what that was made of, `cosine` and `bm25`, as
    far as the record has them. snippet: one line of at most 160 characters of the passage that was found, by
    words the one with most of them. text: all of that passage, from the exact text, else the gist's reading,
    else empty. span: the passage's first byte and end in the record; None in an archive without the exact
    text (its gist doesn't know).
    """

    id: str
    score: float
    metadata: dict[str, Any]
    snippet: str
    text: str = ""
    span: tuple[int, int] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PackSummary:
    """Counts of a finished pack; sizes in bytes."""

    records: int
    parts: int
    blocks: int
    text_bytes: int
    file_bytes: int
