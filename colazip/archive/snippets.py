"""What a search shows of its hits: passages. Decodes their blocks only."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from colazip.layers import GIST, Span
from colazip.lexical import analyze

if TYPE_CHECKING:
    from colazip.archive.reader import Archive

_SNIPPET_CHARS = 160
_LEAD_CHARS = 120  # of a passage that begins inside a sentence: where a snippet may look for the next


@dataclass(frozen=True)
class Passage:
    """text: of the passage, or its gist. span: in its record, if the exact text is there."""

    text: str
    snippet: str
    span: Span | None


@dataclass(frozen=True)
class _Place:
    """Where the passage of a rank lies: passage `at` of the `count` of a part."""

    rank: int
    block: int
    slot: int
    at: int
    count: int


def read_passages(archive: Archive, parts: np.ndarray, positions: Sequence[int]) -> list[Passage]:
    """The passages at some positions of the index. parts: of each code its part, counted over the archive."""
    places: dict[int, list[_Place]] = {}  # of each group
    for rank, position in enumerate(positions):
        part = int(parts[position])
        first, end = (int(np.searchsorted(parts, part, side)) for side in ("left", "right"))
        group, block, slot = _lies(archive, part)
        places.setdefault(group, []).append(_Place(rank, block, slot, position - first, end - first))
    found = [Passage("", "", None)] * len(positions)
    for group, mine in places.items():
        blocks = list(dict.fromkeys(place.block for place in mine))
        if archive.holds_text:
            exact = archive._decoded_blocks(group, blocks)
            spans = _spans(archive, [(place, exact[place.block][place.slot]) for place in mine])
            for place, span in zip(mine, spans, strict=True):
                found[place.rank] = _exact(archive, group, place, exact[place.block], span)
        elif GIST in archive.layers:
            gists = archive._read_gists(group, blocks)
            readings = [gists[place.block][place.slot].encode() for place in mine]
            spans = _spans(archive, list(zip(mine, readings, strict=True)))
            for place, reading, span in zip(mine, readings, spans, strict=True):
                text = reading[slice(*span)].decode("utf-8", "replace")
                found[place.rank] = Passage(text, _snippet(text, place.at > 0), None)
    return found


def read_matches(archive: Archive, matches: Sequence[tuple[int, str]]) -> list[Passage]:
    """Of each (part, counted over the archive, query) the passage with most of its words, or the first such.

    The archive has its exact text. Passages are cut as its codec would: no codes are read for it.
    """
    places: dict[int, list[_Place]] = {}  # of each group
    for rank, (part, _) in enumerate(matches):
        group, block, slot = _lies(archive, part)
        places.setdefault(group, []).append(_Place(rank, block, slot, 0, 1))
    words = {query: set(analyze(query)) for query in dict.fromkeys(query for _, query in matches)}
    found = [Passage("", "", None)] * len(matches)
    for group, mine in places.items():
        exact = archive._decoded_blocks(group, list(dict.fromkeys(place.block for place in mine)))
        texts = [exact[place.block][place.slot] for place in mine]
        for place, text, spans in zip(mine, texts, archive._model().passages(texts), strict=True):
            at, span = _most_words(text, spans or [(0, len(text))], words[matches[place.rank][1]])
            found[place.rank] = _exact(archive, group, replace(place, at=at), exact[place.block], span)
    return found


def _most_words(text: bytes, spans: Sequence[Span], words: set[str]) -> tuple[int, Span]:
    """The passage of a part with most of some words, and its number."""
    if len(spans) == 1:
        return 0, spans[0]
    shared = [
        len(words.intersection(analyze(text[slice(*span)].decode("utf-8", "replace")))) for span in spans
    ]
    at = shared.index(max(shared))
    return at, spans[at]


def _lies(archive: Archive, part: int) -> tuple[int, int, int]:
    """(group, block, slot) of a part, counted over the archive."""
    store = archive._store
    group = bisect_right(store.first_parts, part) - 1
    table, _ = store.tables(group)
    local = part - store.first_parts[group]
    block = int(np.searchsorted(table.starts, local, side="right")) - 1
    return group, block, local - int(table.starts[block])


def _exact(archive: Archive, group: int, place: _Place, parts: Sequence[bytes], span: Span) -> Passage:
    """A passage of exact text. parts: of its block. span: in its part."""
    text = parts[place.slot][slice(*span)].decode("utf-8", "replace")
    start = _offset(archive, group, place, parts)
    whole = None if start is None else (start + span[0], start + span[1])
    return Passage(text, _snippet(text, place.at > 0), whole)


def _spans(archive: Archive, found: Sequence[tuple[_Place, bytes]]) -> list[Span]:
    """The range of each place in the text of its part. Parts of one passage are not cut into tokens."""
    several = [(place, text) for place, text in found if place.count > 1]
    ranges = iter(
        archive._model().passages([text for _, text in several], [place.count for place, _ in several])
        if several
        else ()
    )
    return [next(ranges)[place.at] if place.count > 1 else (0, len(text)) for place, text in found]


def _offset(archive: Archive, group: int, place: _Place, parts: Sequence[bytes]) -> int | None:
    """Where in its record a part begins, in bytes; None if an archive of format 1 doesn't tell.

    parts: of its block, exact.
    """
    table, rows = archive._store.tables(group)
    start = int(table.starts[place.block])
    (row,) = rows.row_of(np.array([start + place.slot]))
    first = rows.parts(int(row))[0] - start
    before = sum(map(len, parts[max(0, first) : place.slot]))
    if first >= 0:
        return before
    return int(table.offsets[place.block]) + before if archive.manifest.version > 1 else None


def _snippet(text: str, continues: bool) -> str:
    """At most 160 printable characters in one line: they go to terminals, and the text may be anybody's.

    continues: the text begins inside a sentence or word of the passage before; then the snippet begins with
    the next sentence if that is near, else with the next word.
    """
    if continues:
        lead = text[:_LEAD_CHARS]
        cut = max((lead.find(end) + len(end) for end in (". ", "? ", "! ", "\n") if end in lead), default=0)
        text = text[cut or lead.find(" ") + 1 :]
    head = text[: 8 * _SNIPPET_CHARS]
    return " ".join("".join(c if c.isprintable() else " " for c in head).split())[:_SNIPPET_CHARS]
