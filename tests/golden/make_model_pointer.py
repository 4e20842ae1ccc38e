"""Makes the golden model whose tokens point at others, its archive and its blob: once, never to mend a test.

Run from the root of the repository: python -m tests.golden.make_model_pointer
"""

from __future__ import annotations

import shutil
from pathlib import Path

from colazip import Archive
from colazip.codec import Codec
from tests.golden.make_model_v3 import blob_text, records
from tests.pointing_model import write_pointing_model

HERE = Path(__file__).parent
MODEL, ARCHIVE, BLOB = HERE / "model-pointer", HERE / "model-pointer.cola", HERE / "model-pointer.blob"


def main() -> None:
    if MODEL.exists():
        shutil.rmtree(MODEL)
    write_pointing_model(MODEL)
    (MODEL / "README.md").write_text(f"Made by `python -m {__spec__.name}`; for tests alone.\n")
    codec = Codec.from_pretrained(MODEL)
    Archive.pack(ARCHIVE, records(), codec=codec, overwrite=True)
    BLOB.write_bytes(codec.encode([blob_text()])[0])


if __name__ == "__main__":
    main()
