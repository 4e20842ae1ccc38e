"""Writes archive-v2.cola and embedder-v2.cola, once: the committed files stay as they are.

Run from the root of the repository: python -m tests.golden.make_archive_v2 FOLDER
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from colazip.archive import Archive, Record
from tests.golden.make_archive_v1 import RECORDS as SHORT
from tests.golden.make_archive_v1 import SOURCE
from tests.plain_codec import PlainCodec

CODEC = PlainCodec("golden", passage_bytes=20_000)
STORY = (
    b" ".join(b"Chapter %d of the long story." % i for i in range(5000)) + b" The lighthouse is dark." * 400
)
RECORDS = [*SHORT, Record(STORY, "story")]


def letters(texts: list[str]) -> np.ndarray:
    """A vector of 8 for each text, from its letters."""
    return np.array([[text.count(c) for c in "aeiounst"] for text in texts], np.float32)


def main(folder: Path) -> None:
    Archive.pack(folder / "archive-v2.cola", RECORDS, codec=CODEC, source=SOURCE)
    Archive.pack(folder / "embedder-v2.cola", RECORDS, codec=CODEC, embedder=letters)
    for path in (folder / "archive-v2.cola", folder / "embedder-v2.cola"):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
