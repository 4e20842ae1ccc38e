"""Serve an archive to other machines, and read it from there: with Arrow Flight alone, and with colazip.

python examples/flight_transport.py            (starts `colazip serve` as a second process and asks it)

A client without a model lets the server decode and search. One with colazip can read bytes of the file
instead, and decode them itself: what travels is then as small as what lies on disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.flight as flight

import colazip
from colazip.demo import handbook
from colazip.transport.client import connect

QUESTION = "how long should green tea steep"


@contextmanager
def served(path: Path) -> Iterator[str]:
    """Where a server of this archive is found, while it runs."""
    command = [sys.executable, "-m", "colazip", "serve", str(path), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()  # colazip: serving 1 archive at grpc://127.0.0.1:...
        try:
            if " at grpc" not in line:
                sys.exit(f"the server did not start: {line}")
            yield line.split()[-1]
        finally:
            server.terminate()


def without_colazip(location: str) -> None:
    """What any language with Arrow Flight can do."""
    with flight.connect(location) as client:
        info = client.get_flight_info(flight.FlightDescriptor.for_path("handbook"))
        print(f"{info.total_records} records, {info.total_bytes} bytes of text: {info.schema.names}")
        wanted = {"archive": "handbook", "columns": ["id", "title"], "where": "topic = 'tea'"}
        table = client.do_get(flight.Ticket(json.dumps(wanted))).read_all()
        print(f"{len(table)} about tea, {table.nbytes} bytes: {table['title'].to_pylist()[0]}, ...")
        question = {"archive": "handbook", "kind": "search", "query": QUESTION, "k": 2}
        for hit in client.do_get(flight.Ticket(json.dumps(question))).read_all().to_pylist():
            print(f"  {hit['score']:.2f}  {hit['id']}: {hit['snippet'][:60]}")


def with_colazip(location: str) -> None:
    with connect(location) as client:
        info = client.info("handbook")
        print(f"{info.name}: {', '.join(info.layers)}; {info.text_bytes} bytes of text in {info.size}")
        best = client.search("handbook", QUESTION, k=1)[0]
        print(f"  {best.id}: {best.metadata['title']}")
        gists = client.to_arrow("handbook", ["text"], stop=1, layer="gist").read_all()
        print(f"  gist of the first: {gists['text'][0].as_py()[:60]}")
    # The same archive, decoded here: what is asked for is fetched, and no more.
    with colazip.open(f"{location}/handbook") as archive:
        print(f"  decoded here: {archive.get(best.id).decode()[:60]}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "handbook.cola"
        records = [
            colazip.Record(
                passage.text.encode(), passage.id, {"topic": passage.topic, "title": passage.title}
            )
            for passage in handbook()
        ]
        colazip.Archive.pack(path, records)
        with served(path) as location:
            without_colazip(location)
            with_colazip(location)


if __name__ == "__main__":
    main()
