"""Writes archive-v1.cola, once: the committed file stays as it is, so that later releases still read it.

Run from the root of the repository: python -m tests.golden.make_archive_v1 OUT
"""

from __future__ import annotations

import sys

from colazip.archive import Archive, Record
from tests.plain_codec import PlainCodec

RECORDS = [
    Record(b"The first record of the first format.", "first", {"n": 1, "tags": ["a", "b"]}),
    Record("Ünïcödé, 猫 and 🐈".encode(), "second", {"n": 2, "day": "monday"}),
    Record(b"\x00\xff\xfe bytes that are no text", None, {"n": None}),
    Record(b"", "empty"),
    Record(b"a long record " * 6_000, "long", {"n": 4, "day": "monday"}),
    *(Record(f"number {i}".encode(), None, {"n": i, "day": "sunday"}) for i in range(5, 12)),
]
SOURCE = {"files": ["golden"]}


if __name__ == "__main__":
    Archive.pack(sys.argv[1], RECORDS, codec=PlainCodec("golden"), source=SOURCE)
