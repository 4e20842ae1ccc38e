"""An archive on a web server: bytes and requests for what is read of it, beside a Parquet file of the text.

python -m benchmarks.remote FILE.parquet [--model PATH] [--query TEXT]

The server is a real one, on loopback, and counts the bodies that it sends. The Parquet file has zstd columns
in row groups of 1,000 rows, as a reader by record would want them, and beside the text a column of embeddings
of 384 halves, which a search by meaning needs; both sides are read through the same layer (fsspec).
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.command import note, run_command
from benchmarks.corpus import read_corpus
from benchmarks.web_server import Site, serve
from colazip.archive import Archive
from colazip.codec import Codec
from colazip.evaluate.table import markdown
from colazip.layers import GIST
from colazip.remote import open_url

ROW_GROUP = 1000
EMBEDDING = 384  # halves: what all-MiniLM-L6-v2 gives, at two bytes


def parquet_of(texts: list[str]) -> bytes:
    """A table of ids, texts and embeddings. The embeddings are random, and as long as real ones: they don't
    compress either way."""
    noise = np.random.default_rng(0).standard_normal((len(texts), EMBEDDING)).astype(np.float16)
    table = pa.table(
        {
            "id": [str(i) for i in range(len(texts))],
            "text": texts,
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(noise.ravel()), EMBEDDING),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=19, row_group_size=ROW_GROUP)
    return sink.getvalue()


def measure(site: Site, texts: list[str], codec: Codec, query: str) -> Iterator[tuple[str, str, int, int]]:
    """(what is read, from which file, bytes, requests); a reader of its own each time."""
    middle = len(texts) // 2
    group = middle // ROW_GROUP

    def own(job: Callable[[Archive], object]) -> tuple[int, int]:
        before = site.sent, site.requests
        with Archive(f"{site.address}/a.cola", codec) as archive:
            job(archive)
        return site.sent - before[0], site.requests - before[1]

    def parquet(job: Callable[[pq.ParquetFile], object]) -> tuple[int, int]:
        before = site.sent, site.requests
        job(pq.ParquetFile(open_url(f"{site.address}/a.parquet")[0], pre_buffer=False))
        return site.sent - before[0], site.requests - before[1]

    cola, peer = "colazip", "Parquet"
    yield "open", cola, *own(len)
    yield "open", peer, *parquet(lambda file: file.metadata)
    yield "one record, exact", cola, *own(lambda archive: archive.get(str(middle)))
    yield "one record, exact", peer, *parquet(lambda file: file.read_row_group(group, ["id", "text"]))
    yield "one record, as the gist reads", cola, *own(lambda archive: archive.gist(str(middle)))
    yield "10 hits by meaning and their text", cola, *own(lambda archive: archive.search(query, k=10))
    yield (
        "all embeddings, before a hit is known",
        peer,
        *parquet(lambda file: [file.read_row_group(i, ["embedding"]) for i in range(file.num_row_groups)]),
    )
    yield "all gists", cola, *own(lambda archive: list(archive.records(layer=GIST)))
    yield "all text", cola, *own(list)
    yield "all text", peer, *parquet(lambda file: file.read(["id", "text"]))


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", metavar="PATH", help="Folder of the model. [default: the one in the package]")
@click.option("--sample", type=click.IntRange(min=1), help="Only so many records. [default: all]")
@click.option("--query", default="the history of a city", show_default=True)
def main(file: Path, model: str | None, sample: int | None, query: str) -> None:
    """Pack FILE's text column and read the archive from a web server."""
    codec = Codec.from_pretrained(model)
    texts = [record.decode() for record in read_corpus(file, "text", sample).records]
    note(f"packing {len(texts)} records")
    with serve() as site, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.cola"
        Archive.pack(path, texts, codec=codec)
        site.files["/a.cola"] = path.read_bytes()
        site.files["/a.parquet"] = parquet_of(texts)
        sizes = {name: len(data) for name, data in site.files.items()}
        rows = [("what is read", "file", "bytes", "share of the file", "requests")]
        for what, which, count, requests in measure(site, texts, codec, query):
            size = sizes["/a.cola" if which == "colazip" else "/a.parquet"]
            rows.append((what, which, f"{count:,}", f"{count / size:.1%}", str(requests)))
    click.echo(
        f"{len(texts):,} records, archive {sizes['/a.cola']:,} bytes, Parquet {sizes['/a.parquet']:,}\n"
    )
    click.echo(markdown(rows))


if __name__ == "__main__":
    run_command(main, "benchmarks.remote")
