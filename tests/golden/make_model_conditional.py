"""Makes the golden conditional model, its archive and its blobs: once, never to mend a test.

Run from the root of the repository: python -m tests.golden.make_model_conditional
"""

from __future__ import annotations

import shutil
from pathlib import Path

from colazip import Archive
from colazip.codec import Codec
from colazip.layers import GIST, SEARCH
from tests.golden.make_model_v3 import blob_text, brief_text, records
from tests.tiny_model import tiny_folder

HERE = Path(__file__).parent
MODEL, ARCHIVE = HERE / "model-conditional", HERE / "model-conditional.cola"
PASSAGE_TOKENS = 128  # so that records of several lanes have several codes
BLOB, BRIEF = HERE / "model-conditional.blob", HERE / "model-conditional-brief.blob"
CODE_BYTES = 8  # of the blob; 4 of the rest
SHARE = 0.5  # of the words of the brief


def main() -> None:
    if MODEL.exists():
        shutil.rmtree(MODEL)
    shutil.copytree(tiny_folder(), MODEL)
    (MODEL / "README.md").write_text(f"Made by `python -m {__spec__.name}`; for tests alone.\n")
    codec = Codec.from_pretrained(MODEL, passage_tokens=PASSAGE_TOKENS)
    Archive.pack(ARCHIVE, records(), codec=codec, overwrite=True)
    BLOB.write_bytes(Codec.from_pretrained(MODEL, code_bytes=CODE_BYTES).encode([blob_text()])[0])
    BRIEF.write_bytes(Codec.from_pretrained(MODEL, brief=SHARE).encode([brief_text()], (SEARCH, GIST))[0])


if __name__ == "__main__":
    main()
