"""Makes the golden model, archive and blob: when a stream version is added, never to mend a test.

python -m tests.golden.make_model_v1
"""

from __future__ import annotations

import shutil
from pathlib import Path

from colazip import Archive, Record
from colazip.codec import Codec
from tests.tiny_model import passages, tiny_folder

HERE = Path(__file__).parent
MODEL, ARCHIVE, BLOB = HERE / "model-v1", HERE / "model-v1.cola", HERE / "model-v1.blob"


def records() -> list[Record]:
    """Text the model codes, text it does not, bytes, nothing, and one record of several segments."""
    texts = [t.encode() for t in passages()[:12]]
    rows = [*texts, "Größe, 日本, 😀".encode(), bytes(range(256)), b"", b" ".join(texts)]
    return [Record(data, f"r{i}", {"bytes": len(data)}) for i, data in enumerate(rows)]


def blob_text() -> str:
    return passages()[12]


def main() -> None:
    shutil.copytree(tiny_folder(), MODEL, dirs_exist_ok=True)
    (MODEL / "README.md").write_text("Made by `python -m tests.golden.make_model_v1`; for tests alone.\n")
    codec = Codec.from_pretrained(MODEL)
    Archive.pack(ARCHIVE, records(), codec=codec, overwrite=True)
    BLOB.write_bytes(codec.encode([blob_text()])[0])


if __name__ == "__main__":
    main()
