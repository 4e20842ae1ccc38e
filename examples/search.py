"""Search texts by meaning, on the codes in the archive.

python examples/search.py ["a question" ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import colazip
from colazip.demo import handbook

QUESTIONS = [
    "how long should green tea steep",
    "which boat has to get out of the way",
    "why do my cakes collapse when I bake in the mountains",
]


def main(questions: list[str]) -> None:
    codec = colazip.Codec.from_pretrained()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "handbook.cola"
        records = [
            colazip.Record(passage.text.encode(), passage.id, {"title": passage.title})
            for passage in handbook()
        ]
        # Search needs no text: this archive holds vectors and gist readings for the snippets.
        colazip.Archive.pack(path, records, codec=codec, layers=["search", "gist"])
        with colazip.Archive(path, codec) as archive:
            for question in questions:
                print(question)
                for hit in archive.search(question, k=3):
                    print(f"  {hit.score:5.2f}  {hit.id:28} {hit.metadata['title']}")


if __name__ == "__main__":
    main(sys.argv[1:] or QUESTIONS)
