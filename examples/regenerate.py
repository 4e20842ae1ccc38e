"""Write variants of a text: the latents of its gist reading are noised and denoised by the prior.

python examples/regenerate.py [ID]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import colazip
from colazip.demo import handbook


def main(wanted: str) -> None:
    codec = colazip.Codec.from_pretrained()
    passages = {passage.id: passage for passage in handbook()}
    if wanted not in passages:
        sys.exit(f"no passage {wanted}; there are {', '.join(passages)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "passage.cola"
        colazip.Archive.pack(path, [colazip.Record(passages[wanted].text.encode(), wanted)], codec=codec)
        with colazip.Archive(path, codec) as archive:
            print(f"exact:\n{archive.get(wanted).decode()}\n")
            print(f"gist, one pass of the decoder:\n{archive.gist(wanted)}\n")
            for strength in (0.1, 0.3, 0.6):
                text = archive.regenerate(wanted, strength=strength, options=colazip.Sampling(seed=1))
                print(f"regenerated, strength {strength}:\n{text}\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tea/brewing")
