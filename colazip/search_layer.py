"""The search layer of a block: which parts have codes, how many, and the codes. See docs/FORMAT.md."""

from __future__ import annotations

import numpy as np

from colazip.errors import FormatError
from colazip.layers import BLOCK_BYTES
from colazip.wire import Reader, varint


def dump_codes(count: int, slots: np.ndarray, codes: np.ndarray) -> bytes:
    """Codes of a block of `count` parts. slots: int64 [n], ascending, the part of each code, repeated for the
    passages of a part; codes: uint8 [n, M].

    First comes one code for each part that has any, which is all there is in a block of short texts; then how
    many more the others have, and those.
    """
    found, first, passages = np.unique(slots, return_index=True, return_counts=True)
    bitmap = np.zeros(count, np.uint8)
    bitmap[found] = 1
    body = np.packbits(bitmap, bitorder="little").tobytes() + codes[first].tobytes()
    longer = np.flatnonzero(passages > 1)
    if not len(longer):
        return body
    body += varint(len(longer))
    gaps = np.diff(longer, prepend=-1) - 1
    for gap, more in zip(gaps.tolist(), (passages[longer] - 2).tolist(), strict=True):
        body += varint(gap) + varint(more)
    return body + np.delete(codes, first, axis=0).tobytes()


def load_codes(layer: bytes, count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(slots int64 [n], codes uint8 [n, M]) as given to `dump_codes`; width: M. Raises FormatError."""
    reader = Reader(layer, "search layer")
    bits = np.unpackbits(np.frombuffer(reader.take(-(-count // 8)), np.uint8), bitorder="little")
    if bits[count:].any():
        raise FormatError("search layer: a code of a part that is not there")
    found = np.flatnonzero(bits[:count])
    first = np.frombuffer(reader.take(len(found) * width), np.uint8).reshape(-1, width)
    if not reader.left:
        return found, first
    extra = np.zeros(len(found), np.int64)
    at = -1
    for _ in range(reader.varint(len(found))):
        at += 1 + reader.varint(len(found))
        if at >= len(found):
            raise FormatError("search layer: passages of a part that has none")
        extra[at] = 1 + reader.varint(BLOCK_BYTES)
    total = int(extra.sum())
    more = np.frombuffer(reader.take(total * width), np.uint8).reshape(-1, width)
    reader.end()
    slots = np.repeat(found, extra + 1)
    codes = np.empty((len(slots), width), np.uint8)
    leads = np.cumsum(extra + 1) - extra - 1
    rest = np.ones(len(slots), bool)
    rest[leads] = False
    codes[leads], codes[rest] = first, more
    return slots, codes
