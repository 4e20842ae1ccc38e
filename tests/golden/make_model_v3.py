"""Makes the golden model, archive and blob of stream version 3: once, never to mend a test.

Run from the root of the repository: python -m tests.golden.make_model_v3

A new stream version gets a script and files of its own. Of versions 1 and 2, whose networks no release has
any more, archive and blob are kept as files to refuse.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from colazip import Archive, Record
from colazip.codec import Codec
from colazip.layers import GIST, SEARCH
from tests.tiny_model import passages, tiny_folder

HERE = Path(__file__).parent
MODEL, ARCHIVE = HERE / "model-v3", HERE / "model-v3.cola"
PASSAGE_TOKENS = 512  # the default when the archive was made
SHARE = 0.5  # of the words of a brief
BRIEF = HERE / "model-v3-brief.blob"
BLOBS = [HERE / f"model-v3-detail-{detail}.blob" for detail in range(3)]


def records() -> list[Record]:
    """Text the model codes, text it does not, bytes, nothing, one record of several segments, and text that
    comes back, also after a record that is kept plain and says it too."""
    texts = [t.encode() for t in passages()[:12]]
    rows = [*texts, "Größe, 日本, 😀".encode(), bytes(range(256)), b"", b" ".join(texts)]
    rows += [texts[3] * 20, texts[3], texts[5][:-1]]
    return [Record(data, f"r{i}", {"bytes": len(data)}) for i, data in enumerate(rows)]


def blob_text() -> str:
    return passages()[12]


def brief_text() -> str:
    return " ".join(passages()[12:20])


def main() -> None:
    if MODEL.exists():
        shutil.rmtree(MODEL)
    shutil.copytree(tiny_folder(), MODEL)
    (MODEL / "README.md").write_text("Made by `python -m tests.golden.make_model_v3`; for tests alone.\n")
    codec = Codec.from_pretrained(MODEL, passage_tokens=PASSAGE_TOKENS)
    Archive.pack(ARCHIVE, records(), codec=codec, overwrite=True)
    for detail, path in enumerate(BLOBS):
        path.write_bytes(Codec.from_pretrained(MODEL, detail=detail).encode([blob_text()])[0])
    BRIEF.write_bytes(Codec.from_pretrained(MODEL, brief=SHARE).encode([brief_text()], (SEARCH, GIST))[0])


if __name__ == "__main__":
    main()
