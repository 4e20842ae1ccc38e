"""Pack many texts with ids and metadata, see what they cost, and read single ones back.

python examples/compress_corpus.py [OUT]     (without OUT the archive goes to a temporary folder)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import colazip
from colazip.demo import handbook


def main(out: Path) -> None:
    codec = colazip.Codec.from_pretrained()
    passages = handbook()
    # Any iterable will do, a generator over millions of rows too: packing streams.
    records = (
        colazip.Record(passage.text.encode(), passage.id, {"topic": passage.topic, "title": passage.title})
        for passage in passages
    )
    summary = colazip.Archive.pack(out, records, codec=codec, overwrite=True, source={"name": "handbook"})
    print(
        f"{summary.records} records, {summary.text_bytes} bytes of text, {summary.file_bytes} in the archive"
    )

    with colazip.Archive(out, codec) as archive:
        for part, size in archive.info()["bytes"].items():
            print(f"  {part:10} {size:8}")
        # One record by its id: only the block that holds it is decoded.
        wanted = passages[3]
        assert archive.get(wanted.id).decode() == wanted.text
        print(f"{wanted.id} came back exactly; its metadata: {archive.metadata(wanted.id)}")
        # All of them in order, in bounded memory.
        assert [record.data.decode() for record in archive] == [passage.text for passage in passages]
        print("all records came back exactly")

        # A copy for readers who need no exact text.
        small = out.with_name(out.name + ".gist")
        archive.strip(["exact"], small, overwrite=True)
        print(f"without the exact layer: {small.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "handbook.cola")
