"""Archives over Arrow Flight, on loopback: every kind of request, side by side, with tokens and with TLS."""

from __future__ import annotations

import datetime
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest

import colazip
from colazip.archive import Archive, Hit, Record
from colazip.cli.main import main
from colazip.errors import (
    ColazipError,
    FormatError,
    InputError,
    MissingLayerError,
    ModelMismatchError,
    RecordNotFoundError,
    SearchIndexError,
    UsageError,
)
from colazip.layers import GIST, SEARCH
from colazip.transport.answers import FILE_BYTES, HITS, from_batch, to_batch
from colazip.transport.client import ArchiveClient, RemoteBytes, connect
from colazip.transport.requests import (
    BytesRequest,
    RecordsRequest,
    Request,
    SearchRequest,
    check_token,
    one_line,
    parse,
    spell,
)
from colazip.transport.server import ArchiveServer
from tests.plain_codec import PlainCodec

CODEC = PlainCodec(passage_bytes=40)
DAY = datetime.date(2024, 5, 31)
COUNT = 300
RECORDS = [
    Record(
        f"record {i}: {'the cat sat on the mat ' * (i % 5)}and number {i} is all".encode(),
        f"id-{i}",
        {"n": i, "day": DAY, "kind": "even" if i % 2 == 0 else "odd"},
    )
    for i in range(COUNT)
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flight") / "letters.cola"
    Archive.pack(path, RECORDS, codec=CODEC)
    return path


@pytest.fixture(scope="module")
def local(path: Path) -> Iterator[Archive]:
    """The archive itself, as what clients get has to agree with it."""
    with Archive(path, CODEC) as archive:
        yield archive


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer({"letters": path}, codec=CODEC) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ArchiveServer) -> Iterator[ArchiveClient]:
    with connect(server.location) as client:
        yield client


@pytest.fixture(scope="module")
def plain(server: ArchiveServer) -> Iterator[fl.FlightClient]:
    """A client that knows nothing of colazip."""
    with fl.connect(server.location) as client:
        yield client


def ticket(**fields: Any) -> fl.Ticket:
    return fl.Ticket(json.dumps({"archive": "letters", **fields}))


def test_names_and_descriptions(path: Path, local: Archive, client: ArchiveClient) -> None:
    assert client.names() == ["letters"]
    info = client.info("letters")
    assert (info.name, info.size, info.records, info.decoded) == (
        "letters",
        path.stat().st_size,
        COUNT,
        True,
    )
    assert info.fingerprint == local._store.fingerprint
    assert (info.layers, info.model) == (local.layers, CODEC.id)
    assert info.text_bytes == sum(len(record.data) for record in RECORDS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"columns": ["n", "text"]},
        {"columns": ["day", "id"], "start": 5, "stop": 9},
        {"start": -3},
        {"start": 10, "stop": 5},
        {"where": "n >= 100 and kind = 'odd'"},
        {"where": "n = -1"},
        {"layer": GIST, "stop": 20},
        {"binary": True},
    ],
)
def test_records(local: Archive, client: ArchiveClient, options: dict[str, Any]) -> None:
    expected = local.to_arrow(**options).read_all()
    reader = client.to_arrow("letters", **options)
    assert isinstance(reader, pa.RecordBatchReader)
    assert reader.read_all().equals(expected)


def test_a_client_without_colazip(local: Archive, plain: fl.FlightClient) -> None:
    table = plain.do_get(ticket(columns=["id", "n"], where="n < 3")).read_all()
    assert table.to_pylist() == [{"id": f"id-{i}", "n": i} for i in range(3)]
    (listed,) = plain.list_flights()
    assert listed.descriptor.path == [b"letters"]
    assert (listed.total_records, listed.total_bytes) == (COUNT, local.manifest.text_bytes)
    descriptor = fl.FlightDescriptor.for_path("letters")
    assert plain.get_schema(descriptor).schema == listed.schema == local.to_arrow().schema
    assert [action.type for action in plain.list_actions()] == ["describe"]


def test_endpoints_give_all_records_once(
    local: Archive, plain: fl.FlightClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colazip.transport.server._RANGE_RECORDS", 64)
    info = plain.get_flight_info(fl.FlightDescriptor.for_path("letters"))
    assert len(info.endpoints) == 5 and not any(endpoint.locations for endpoint in info.endpoints)
    with ThreadPoolExecutor(5) as pool:
        tables = list(pool.map(lambda end: plain.do_get(end.ticket).read_all(), info.endpoints))
    assert [len(table) for table in tables] == [64, 64, 64, 64, 44]
    assert pa.concat_tables(tables).equals(local.to_arrow().read_all())

    monkeypatch.setattr("colazip.transport.server._MAX_ENDPOINTS", 2)
    command = ticket(start=50, columns=["n"]).ticket
    info = plain.get_flight_info(fl.FlightDescriptor.for_command(command))
    assert (info.total_records, info.total_bytes, len(info.endpoints)) == (COUNT - 50, -1, 2)
    tables = [plain.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints]
    assert pa.concat_tables(tables)["n"].to_pylist() == list(range(50, COUNT))


@pytest.mark.parametrize(
    ("fields", "schema", "rows"),
    [
        ({"where": "n < 7", "columns": ["n"]}, None, 7),
        ({"start": 900, "columns": ["n"]}, None, 0),
        ({"kind": "search", "query": "cat", "k": 4}, HITS, 4),
        ({"kind": "bytes", "offset": 0, "length": 8}, FILE_BYTES, 1),
    ],
)
def test_commands_become_one_ticket(
    plain: fl.FlightClient, fields: dict[str, Any], schema: pa.Schema | None, rows: int
) -> None:
    descriptor = fl.FlightDescriptor.for_command(ticket(**fields).ticket)
    info = plain.get_flight_info(descriptor)
    (endpoint,) = info.endpoints
    table = plain.do_get(endpoint.ticket).read_all()
    assert len(table) == rows and table.schema == info.schema == plain.get_schema(descriptor).schema
    assert schema is None or info.schema == schema
    assert info.total_records == (0 if "start" in fields else -1)


def as_sent(hits: list[Hit]) -> list[Hit]:
    """With metadata as JSON has them."""
    return [
        Hit(h.id, h.score, h.metadata | {"day": "2024-05-31"}, h.snippet, h.text, h.span, h.scores)
        for h in hits
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3, "mode": "semantic"},
        {"where": "kind = 'odd'"},
        {"where": "n = -1"},
        {"group": False, "k": 20},
        {"snippets": False},
    ],
)
def test_search(local: Archive, client: ArchiveClient, options: dict[str, Any]) -> None:
    query = "the cat is number 7"
    expected = local.search(query, **options)
    assert client.search("letters", query, **options) == as_sent(expected)
    assert expected or options.get("where") == "n = -1"
    assert client.search("letters", "  ") == []


def test_records_like_one(local: Archive, client: ArchiveClient) -> None:
    expected = local.similar("id-7", 4, "n > 100")
    assert len(expected) == 4
    assert client.similar("letters", "id-7", 4, "n > 100") == as_sent(expected)


def test_hits_there_and_back() -> None:
    hits = [
        Hit("a", 0.5, {"x": [1, None]}, "s", "t", (3, 9), {"cosine": 0.5, "bm25": 2.0}),
        Hit("b", 1.0, {}, ""),
    ]
    assert from_batch(to_batch(hits)) == hits
    (broken,) = from_batch(to_batch([Hit("a", 0.0, {}, "half \ud800", "\udfff of it")]))
    assert (broken.snippet, broken.text) == ("half ?", "? of it")
    for wrong in ({"metadata": "[1]"}, {"metadata": "{"}, {"metadata": "[" * 100_000}, {"id": None}):
        row = to_batch(hits[:1]).to_pylist()[0] | wrong
        with pytest.raises(InputError):
            from_batch(
                pa.RecordBatch.from_pylist([row], schema=pa.schema([f.with_nullable(True) for f in HITS]))
            )


def test_bytes(
    path: Path, server: ArchiveServer, plain: fl.FlightClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colazip.transport.client.MAX_READ_BYTES", 1000)
    data = path.read_bytes()
    with RemoteBytes(server.location, "letters") as remote:
        assert remote.size == len(data) > 3000
        assert remote.read(0, remote.size) == data
        assert remote.read(999, 2) == data[999:1001] and remote.read(remote.size, 0) == b""
        with ThreadPoolExecutor(4) as pool:
            places = range(0, len(data) - 10, 97)
            assert list(pool.map(lambda at: remote.read(at, 10), places)) == [
                data[at : at + 10] for at in places
            ]
        for offset, length in ((-1, 2), (0, len(data) + 1), (len(data), 1), (5, -1)):
            with pytest.raises(InputError, match=r"letters: has .* bytes, not"):
                remote.read(offset, length)
    with pytest.raises(InputError, match="no archive 'numbers' is served here; there is 'letters'"):
        RemoteBytes(server.location, "numbers")
    with pytest.raises(fl.FlightServerError, match=r"letters: has .* bytes, not 8 from"):
        plain.do_get(ticket(kind="bytes", offset=len(data) - 7, length=8)).read_all()


def test_a_served_archive_opens_like_a_file(
    server: ArchiveServer, local: Archive, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    url = f"{server.location}/letters"
    with colazip.open(url, CODEC) as archive:
        assert archive.manifest == local.manifest
        assert archive.search("letter", k=5) == local.search("letter", k=5)
        assert list(archive.rows()) == list(local.rows())
        assert list(archive.gists()) == list(local.gists())
        archive.verify()
    assert main(["list", url], CODEC) == 0
    assert capfdbinary.readouterr().out.decode().splitlines() == list(local.ids())
    assert main(["strip", url, "--drop", "exact", "-o", str(tmp_path / "gist.cola"), "-q"], CODEC) == 0
    with Archive(tmp_path / "gist.cola", CODEC) as gist:
        assert list(gist.gists()) == list(local.gists())
    for wrong in (server.location, f"{server.location}/"):
        with pytest.raises(UsageError, match="names no archive"):
            Archive(wrong, CODEC)
    with pytest.raises(InputError, match="no archive 'numbers' is served here"):
        Archive(f"{server.location}/numbers", CODEC)
    with pytest.raises(UsageError, match="takes the options token and tls_root, not anon"):
        Archive(url, CODEC, storage_options={"anon": True})
    with pytest.raises(InputError, match="can't be reached"):
        Archive("grpc://127.0.0.1:1/letters")


def test_a_served_archive_behind_a_token(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ArchiveServer({"two words": path}, codec=CODEC, token="s3cret") as server:
        url = f"{server.location}/two%20words"
        with pytest.raises(InputError, match=r"refused: .* no token"):
            Archive(url, CODEC)
        with Archive(url, CODEC, storage_options={"token": "s3cret"}) as archive:
            assert len(archive) == len(RECORDS)
        monkeypatch.setenv("COLAZIP_TOKEN", "s3cret")
        with Archive(url, CODEC) as archive:
            assert len(archive) == len(RECORDS)


def test_vectors_travel(local: Archive, client: ArchiveClient) -> None:
    wanted = local.to_arrow(["vector", "id"]).read_all()
    assert client.to_arrow("letters", ["vector", "id"]).read_all().equals(wanted)
    assert "vector" not in client.to_arrow("letters").schema.names


def test_bytes_of_a_server_that_changes_or_goes(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.cola"
    Archive.pack(other, ["something else"] * 100, codec=CODEC)
    with ArchiveServer({"a": path}, codec=CODEC) as server:
        port = server.port
        remote = RemoteBytes(server.location, "a")
        assert remote.read(0, 4) == path.read_bytes()[:4]
    with (
        ArchiveServer({"a": other}, port=port, codec=CODEC),
        pytest.raises(InputError, match="a: is not the archive it was; open it again"),
    ):
        remote.read(0, 4)
    with remote, pytest.raises(InputError, match="can't be reached"):
        remote.read(0, 4)
    with pytest.raises(InputError, match="can't be reached"):
        RemoteBytes(f"grpc://127.0.0.1:{port}", "a")


def test_many_threads_get_right_answers(local: Archive, server: ArchiveServer) -> None:
    queries = [f"the cat sat on number {i}" for i in range(8)]
    hits = [as_sent(local.search(query, 5)) for query in queries]
    table = local.to_arrow().read_all()
    gists = local.to_arrow(layer=GIST).read_all()

    def ask(number: int) -> None:
        with connect(server.location) as client:
            for turn in range(3):
                which = (number + turn) % 4
                if which == 0:
                    assert client.search("letters", queries[number], 5) == hits[number]
                elif which == 1:
                    start = 30 * number
                    assert client.to_arrow("letters", start=start).read_all().equals(table.slice(start))
                elif which == 2:
                    assert client.to_arrow("letters", layer=GIST).read_all().equals(gists)
                else:
                    assert (
                        len(client.to_arrow("letters", ["n"], where="kind = 'even'").read_all()) == COUNT / 2
                    )

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(ask, number) for number in range(8)]:
            done.result()


@pytest.fixture
def long(tmp_path: Path) -> CountingServer:
    """Serves 60 records of half a megabyte, more than a connection holds while nobody reads."""
    codec = PlainCodec()
    Archive.pack(tmp_path / "long.cola", [bytes([97 + i % 26]) * 500_000 for i in range(60)], codec=codec)
    return CountingServer({"long": tmp_path / "long.cola"}, codec=codec)


class CountingServer(ArchiveServer):
    """Counts the batches of records that it makes."""

    made = 0

    def _records(self, *arguments: Any) -> Iterator[pa.RecordBatch]:
        for batch in super()._records(*arguments):
            self.made += 1
            yield batch

    def wait_until_nobody_reads(self) -> None:
        before = -1
        while before < self.made:
            before = self.made
            time.sleep(0.5)


def test_a_client_that_does_not_read_holds_up_nobody(long: CountingServer) -> None:
    slow, quick = fl.connect(long.location), connect(long.location, timeout=20)
    held = slow.do_get(fl.Ticket(b'{"archive": "long"}'))
    first = held.read_chunk().data
    assert first.nbytes < 4 << 20  # what any client takes in one message
    assert quick.search("long", "aaa", 1, snippets=False)
    assert len(quick.to_arrow("long", start=-2).read_all()) == 2
    long.wait_until_nobody_reads()
    assert not long.stop(grace=0.2)
    with pytest.raises(InputError, match="can't be reached"):
        connect(long.location).names()
    held.cancel()
    assert long.stop(grace=20)


def test_a_stream_ends_with_its_server(long: CountingServer) -> None:
    with connect(long.location) as client:
        reader = client.to_arrow("long")
        reader.read_next_batch()
        stopping = threading.Thread(target=long.stop, kwargs={"grace": 20})
        stopping.start()
        while not long._stopping:
            time.sleep(0.01)
        with pytest.raises(InputError, match="can't be reached: the server is stopping"):
            reader.read_all()
        stopping.join(20)
        assert not stopping.is_alive()


def test_tokens(path: Path) -> None:
    with ArchiveServer({"a": path}, codec=CODEC, token="s3cret") as server:
        with connect(server.location, "s3cret") as client:
            assert client.names() == ["a"]
            assert len(client.to_arrow("a", ["n"]).read_all()) == COUNT
        with RemoteBytes(server.location, "a", "s3cret") as remote:
            assert remote.read(0, 4) == path.read_bytes()[:4]
        for token, words in (
            (None, "no token"),
            ("s3cre", "another token"),
            ("s3cret1", "another token"),
        ):
            with connect(server.location, token) as client:
                for call in (
                    client.names,
                    lambda c=client: c.to_arrow("a"),
                    lambda c=client: c.search("a", "x"),
                ):
                    with pytest.raises(UsageError, match=f"the call came with {words}.*; give its token"):
                        call()
            with pytest.raises(InputError, match="; give its token"):
                RemoteBytes(server.location, "a", token)
        with fl.connect(server.location) as plain:
            twice = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer s3cret")] * 2)
            odd = fl.FlightCallOptions(headers=[(b"authorization", b"Basic \x01")])
            for options in (twice, odd, None):
                with pytest.raises(fl.FlightError):
                    list(plain.list_flights(options=options))
    for bad in ("", "two words", "ä", "x" * 1001, "line\n"):
        with pytest.raises(UsageError, match="a token is"):
            check_token(bad)
        with pytest.raises(UsageError, match="a token is"):
            connect("grpc://127.0.0.1:1", bad)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    arguments = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", *arguments, *names, *files], check=True, capture_output=True)
    return cert, key


def test_tls(path: Path, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    with ArchiveServer({"a": path}, codec=CODEC, token="t", tls=certificate) as server:
        assert server.location.startswith("grpc+tls://127.0.0.1:")
        with connect(server.location, "t", cert) as client:
            assert client.names() == ["a"] and len(client.to_arrow("a", ["n"]).read_all()) == COUNT
        with RemoteBytes(server.location, "a", "t", cert) as remote:
            assert remote.read(0, 4) == path.read_bytes()[:4]
        for location, root in ((server.location, None), (server.location.replace("+tls", ""), None)):
            with pytest.raises(InputError, match="can't be reached"), connect(location, "t", root) as client:
                client.names()
    empty = tmp_path / "empty.pem"
    empty.touch()
    for tls in ((key, cert), (cert, cert), (empty, empty), (cert, tmp_path / "none.pem")):
        with pytest.raises(InputError, match="no certificate and its key in PEM"):
            ArchiveServer({"a": path}, codec=CODEC, tls=tls)
    for root in (empty, tmp_path / "none.pem"):
        with pytest.raises(InputError, match="pem: "):
            connect("grpc+tls://127.0.0.1:1", tls_root=root)


def test_errors_are_those_of_the_archive(tmp_path: Path) -> None:
    Archive.pack(tmp_path / "a.cola", [Record(b"\xff", "x", {"n": 1}), Record(b"y")], codec=CODEC)
    Archive.pack(tmp_path / "s.cola", ["a cat"], codec=CODEC, layers=[SEARCH])
    paths = {"a": tmp_path / "a.cola", "s": tmp_path / "s.cola"}
    with ArchiveServer(paths, codec=CODEC) as server, connect(server.location) as client:
        cases: list[tuple[type[ColazipError], str, Any]] = [
            (UsageError, "no archive 'b' is served here; there is 'a', 's'", lambda: client.to_arrow("b")),
            (UsageError, "no archive 'b'", lambda: client.info("b")),
            (
                UsageError,
                "a: has no column 'm'; it has 'id', 'text', 'n'",
                lambda: client.to_arrow("a", ["m"]),
            ),
            (UsageError, "names column 'm'", lambda: client.to_arrow("a", where="m = 1").read_all()),
            (UsageError, "'layer' is exact or gist", lambda: client.to_arrow("a", layer="plain")),
            (UsageError, "'columns' is a list of names", lambda: client.to_arrow("a", ["n", "n"])),
            (UsageError, "not the text 'n'", lambda: client.to_arrow("a", "n")),
            (UsageError, "'k' is a number from 1 to 1,000, not 0", lambda: client.search("a", "x", 0)),
            (UsageError, "mode 'best' is none of", lambda: client.search("a", "x", mode="best")),
            (UsageError, "at most 65,536 are read", lambda: client.search("a", "x" * 70_000)),
            (UsageError, "can't be sent as JSON", lambda: client.search("a", "\ud800")),
            (UsageError, "can't be sent as JSON", lambda: client.to_arrow("a", [b"n"])),  # type: ignore[list-item]
            (UsageError, "give either 'query' or 'like'", lambda: client.search("a", None)),  # type: ignore[arg-type]
            (RecordNotFoundError, "a: no record has the id 'z'", lambda: client.similar("a", "z")),
            (
                SearchIndexError,
                "a: has no index of its words",
                lambda: client.search("a", "x", mode="lexical"),
            ),
            (MissingLayerError, "s: has no exact layer", lambda: client.to_arrow("s").read_all()),
            (InputError, "is not UTF-8 text", lambda: client.to_arrow("a").read_all()),
        ]
        for kind, words, call in cases:
            with pytest.raises(kind, match=words) as caught:
                call()
            assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)
        assert client.to_arrow("a", binary=True).read_all()["text"].to_pylist() == [b"\xff", b"y"]
        assert client.to_arrow("s", ["id"]).read_all()["id"].to_pylist() == ["0"]


def test_what_flight_has_and_archives_have_not(plain: fl.FlightClient) -> None:
    descriptor = fl.FlightDescriptor.for_path("letters")
    calls: list[tuple[str, Any]] = [
        ("no action 'drop'", lambda: list(plain.do_action(fl.Action("drop", b"")))),
        ("takes no criteria", lambda: list(plain.list_flights(b"x"))),
        ("read here, not written", lambda: plain.do_put(descriptor, pa.schema([]))[0].close()),
        ("path of one name", lambda: plain.get_flight_info(fl.FlightDescriptor.for_path("letters", "x"))),
        ("path of one name", lambda: plain.get_flight_info(fl.FlightDescriptor.for_path())),
    ]
    for words, call in calls:
        with pytest.raises(fl.FlightServerError, match=words) as caught:
            call()
        assert "Traceback" not in str(caught.value)
    # pyarrow sends what goes wrong there with a traceback, whatever the error.
    with pytest.raises(pa.ArrowException, match="no archive 'none' is served here"):
        plain.get_schema(fl.FlightDescriptor.for_path("none"))


def test_an_archive_whose_columns_can_not_be_told(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    Archive.pack(path, [Record(b"x", None, {"text": "other"})], codec=CODEC)
    with ArchiveServer({"a": path}, codec=CODEC) as server, fl.connect(server.location) as client:
        (listed,) = client.list_flights()
        assert (listed.schema.names, listed.endpoints, listed.total_records) == ([], [], 1)
        with pytest.raises(fl.FlightServerError, match="a: metadata column 'text' has the name of the text"):
            client.get_flight_info(listed.descriptor)


def test_a_file_that_is_removed_or_damaged(path: Path, tmp_path: Path) -> None:
    copy, cut = tmp_path / "copy.cola", tmp_path / "cut.cola"
    shutil.copy(path, copy)
    shutil.copy(path, cut)
    with ArchiveServer({"copy": copy, "cut": cut}, codec=CODEC) as server, connect(server.location) as client:
        copy.unlink()
        assert len(client.to_arrow("copy").read_all()) == COUNT
        with RemoteBytes(server.location, "copy") as remote:
            assert remote.read(0, remote.size) == path.read_bytes()
        cut.write_bytes(path.read_bytes()[:100])
        with pytest.raises(FormatError, match="cut: truncated while it was open"):
            client.to_arrow("cut").read_all()
        with (
            RemoteBytes(server.location, "cut") as remote,
            pytest.raises(FormatError, match="cut: truncated while it was open"),
        ):
            remote.read(0, 200)


def test_an_archive_of_another_model(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.cola"
    Archive.pack(other, RECORDS[:9], codec=PlainCodec("another"))
    with ArchiveServer({"a": path, "b": other}, codec=CODEC) as server, connect(server.location) as client:
        assert set(server.undecoded) == {"b"} and "packed with model another" in server.undecoded["b"]
        assert client.info("a").decoded and not client.info("b").decoded
        assert client.to_arrow("b", ["n"]).read_all()["n"].to_pylist() == list(range(9))
        with pytest.raises(ModelMismatchError, match="b: was packed with model another"):
            client.to_arrow("b").read_all()
        with RemoteBytes(server.location, "b") as remote:
            assert remote.read(0, remote.size) == other.read_bytes()


def test_servers_that_can_not_start(path: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port}: can't listen there: address already in use"):
            ArchiveServer({"a": path}, port=port, codec=CODEC)
    with (
        ArchiveServer({"a": path}, codec=CODEC) as server,
        pytest.raises(InputError, match="can't listen there: address already in use"),
    ):
        ArchiveServer({"a": path}, port=server.port, codec=CODEC)
    with pytest.raises(InputError, match=r"nosuch\.invalid:0: can't listen there"):
        ArchiveServer({"a": path}, "nosuch.invalid", codec=CODEC)
    with pytest.raises(UsageError, match="port 70000"):
        ArchiveServer({"a": path}, port=70_000, codec=CODEC)
    for name in ("", "a\nb", "x" * 201):
        with pytest.raises(UsageError, match="no name for an archive"):
            ArchiveServer({name: path}, codec=CODEC)
    with pytest.raises(InputError, match="can't be opened"):
        ArchiveServer({"a": tmp_path / "none.cola"}, codec=CODEC)


class LyingServer(fl.FlightServerBase):
    """Sends what it was given, whatever was asked for."""

    def __init__(self, batch: pa.RecordBatch | Exception, description: bytes = b"") -> None:
        super().__init__("grpc://127.0.0.1:0")
        self.batch = batch
        self.description = description

    @property
    def location(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def do_get(self, context: Any, ticket: fl.Ticket) -> fl.FlightDataStream:
        if isinstance(self.batch, Exception):
            raise self.batch
        return fl.GeneratorStream(self.batch.schema, iter([self.batch]))

    def do_action(self, context: Any, action: fl.Action) -> Iterator[bytes]:
        return iter([self.description])


def out_of_bounds() -> pa.RecordBatch:
    """A column of text whose offsets point outside of its bytes."""
    offsets = pa.py_buffer(b"".join(at.to_bytes(4, "little") for at in (0, 1 << 30, 5)))
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"short")])
    return pa.RecordBatch.from_arrays([texts], names=["id"])


HIT = to_batch([Hit("a", 1.0, {}, "s")])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (pa.RecordBatch.from_pydict({"x": [1]}), "other columns"),
        (pa.RecordBatch.from_pylist(HIT.to_pylist() * 3, schema=HITS), "more rows than were asked for"),
        (HIT.set_column(8, HITS.field("metadata"), pa.array(["no JSON"])), "no JSON object"),
        (pa.RecordBatch.from_pydict({"data": [b"12345"]}, schema=FILE_BYTES), "other columns|5 bytes"),
        (ValueError("odd\nthing"), "odd thing"),
        (fl.FlightServerError("no", b"KeyError"), ": no$"),
        (fl.FlightServerError("x" * 5000, b"\xff"), "xxx"),
        (fl.FlightInternalError("broken", b"FormatError"), "broken$"),
    ],
)
def test_what_a_lying_server_sends_is_refused(batch: pa.RecordBatch | Exception, words: str) -> None:
    with LyingServer(batch) as server, connect(server.location) as client:
        calls: list[Any] = [lambda: client.search("a", "x", 2), lambda: client.read("a", 0, 4)]
        for call in [*calls, lambda: client.to_arrow("a", ["n"])]:
            with pytest.raises((InputError, FormatError), match="grpc://") as caught:
                call()
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 1100
        if isinstance(batch, Exception) or batch.schema == HITS:
            with pytest.raises((InputError, FormatError), match=words):
                client.search("a", "x", 2)


def test_buffers_that_lie() -> None:
    with (
        LyingServer(out_of_bounds()) as server,
        connect(server.location) as client,
        pytest.raises(InputError, match="grpc://"),
    ):
        client.to_arrow("a").read_all()


@pytest.mark.parametrize(
    "description",
    [b"", b"[]", b"{}", b"[" * 60_000, b'{"archive": "a", "size": -1}', b'"' + b"x" * 70_000 + b'"'],
)
def test_descriptions_that_lie(description: bytes) -> None:
    with LyingServer(HIT, description) as server:
        with connect(server.location) as client, pytest.raises(InputError, match="description"):
            client.info("a")
        with pytest.raises(InputError, match="description"):
            RemoteBytes(server.location, "a")


def test_locations() -> None:
    for bad in ("", "127.0.0.1:8815", "http://x", 5):
        with pytest.raises(UsageError, match="is no location"):
            connect(bad)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        location = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        with connect(location, timeout=0.3) as client, pytest.raises(InputError, match=r"in time|reached"):
            client.names()


@pytest.mark.parametrize(
    "request_",
    [
        RecordsRequest("a"),
        RecordsRequest("ä", ("x", "y"), -4, 7, "n = 1", GIST, True),
        SearchRequest("a", "what"),
        SearchRequest("a", None, "id-1", 3, None, "n = 1", True, False),
        SearchRequest("a", "what", mode="hybrid", group=False),
        BytesRequest("a", 0, 1 << 24, "ff"),
    ],
)
def test_requests_there_and_back(request_: Request) -> None:
    assert parse(spell(request_)) == request_


def test_one_line() -> None:
    assert one_line("a\n\tb\x00c \ud800", 50) == "a b c"
    assert one_line("x" * 100, 10) == "xxxxxxx..."
