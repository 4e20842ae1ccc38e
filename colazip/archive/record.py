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

    score: cosine. snippet: one line of at most 160 characters of the passage that was found. text: all of
    that passage, from the exact text, else the gist's reading, else empty. span: the passage's first byte and
    end in the record; None in an archive without the exact text (its gist doesn't know).
    """

    id: str
    score: float
    metadata: dict[str, Any]
    snippet: str
    text: str = ""
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class PackSummary:
    """Counts of a finished pack; sizes in bytes."""

    records: int
    parts: int
    blocks: int
    text_bytes: int
    file_bytes: int
