"""The zstd dictionary of a model, for text that its networks don't code."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

# What ZDICT's cover algorithm is run with: of k 50 to 400 and d 6, 8 the best on a validation split.
_SEGMENT, _DMER = 100, 8


def train_dictionary(samples: Iterable[str], size: int) -> bytes | None:
    """A dictionary of at most `size` bytes; None, with a line on stderr, where none can be made: zstandard is
    not installed (training needs it for nothing else), or the samples are too few."""
    try:
        import zstandard
    except ImportError:
        print("no zstd dictionary: the package zstandard is not installed", file=sys.stderr)
        return None
    texts: list[bytes | bytearray | memoryview[int]] = [text.encode("utf-8", "replace") for text in samples]
    try:
        return zstandard.train_dictionary(size, texts, k=_SEGMENT, d=_DMER).as_bytes()
    except (zstandard.ZstdError, ValueError) as e:
        print(f"no zstd dictionary: the training text does not give one ({e})", file=sys.stderr)
        return None


def smaller_dictionary(dictionaries: Sequence[bytes], texts: Sequence[str]) -> bytes:
    """The dictionary with which texts take the fewest bytes, each text alone; the first of equals."""
    import zstandard

    data = [text.encode("utf-8", "replace") for text in texts]
    totals = []
    for dictionary in dictionaries:
        loaded = zstandard.ZstdCompressionDict(dictionary)
        compressor = zstandard.ZstdCompressor(level=12, dict_data=loaded)
        totals.append(sum(len(compressor.compress(text)) for text in data))
    return dictionaries[totals.index(min(totals))]
