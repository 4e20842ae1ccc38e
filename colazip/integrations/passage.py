"""What every retriever says of a hit, whatever library it is for."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from colazip.archive import Archive, Hit


def passage_id(hit: Hit) -> str:
    """A name for the passage of a hit: the record's id, and its range of bytes where that is known."""
    return hit.id if hit.span is None else f"{hit.id}#{hit.span[0]}-{hit.span[1]}"


def passage_metadata(hit: Hit) -> dict[str, Any]:
    """The record's metadata, untouched, and under the key `colazip` the record's id, score and span."""
    return {**hit.metadata, "colazip": {"record": hit.id, "score": hit.score, "span": hit.span}}


class Searcher:
    """`Archive.search` for callers in several threads, of which an archive's codec serves one at a time."""

    def __init__(self, archive: Archive, k: int, options: Mapping[str, Any]) -> None:
        self._archive, self._k, self._options = archive, k, dict(options)
        self._lock = threading.Lock()

    def __call__(self, query: str) -> list[Hit]:
        with self._lock:
            return self._archive.search(query, self._k, **self._options)
