"""`colazip serve`, as a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.flight as fl
import pytest

from colazip.archive import Archive, Record
from colazip.errors import UsageError
from colazip.transport.client import RemoteBytes, connect
from tests.cli.conftest import command, environment
from tests.plain_codec import PlainCodec

Fails = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With archives `a.cola` and `b.v2.cola`."""
    records = [Record(f"text {i}".encode(), None, {"n": i}) for i in range(10)]
    for name in ("a.cola", "b.v2.cola"):
        Archive.pack(tmp_path / name, records, codec=PlainCodec())
    return tmp_path


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str], str]]:
    """The process, what it wrote to stderr before it served, and where it does."""
    process = subprocess.Popen(
        command("serve", "--port", "0", *arguments, plain=True),
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while lines[-1] and " at grpc" not in lines[-1]:
            lines.append(process.stderr.readline())
        assert lines[-1], lines
        yield process, lines, lines[-1].rsplit(" ", 1)[1].strip()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_told_to_end(folder: Path, number: signal.Signals) -> None:
    with served(folder, "a.cola", "other=b.v2.cola") as (process, lines, location):
        assert len(lines) == 1 and lines[0].startswith("colazip: serving 2 archives at grpc://127.0.0.1:")
        with connect(location) as client:
            assert client.names() == ["a", "other"]
            assert client.to_arrow("a", ["text"], stop=2).read_all()["text"].to_pylist() == [
                "text 0",
                "text 1",
            ]
            assert len(client.search("other", "text", 3)) == 3
        process.send_signal(number)
        out, errors = process.communicate(timeout=30)
        assert (process.returncode, out, errors) == (0, "", "")


def test_ends_though_a_client_does_not_read(folder: Path) -> None:
    Archive.pack(
        folder / "long.cola", [bytes([97 + i % 26]) * 500_000 for i in range(60)], codec=PlainCodec()
    )
    with served(folder, "long.cola") as (process, _, location), fl.connect(location) as client:
        reader = client.do_get(fl.Ticket(b'{"archive": "long"}'))
        reader.read_chunk()
        process.terminate()
        assert process.wait(timeout=30) == 0
        reader.cancel()


def test_a_token(folder: Path) -> None:
    (folder / "token").write_text("s3cret\n")
    with served(folder, "b.v2.cola", "--token-file", "token") as (_, _, location):
        with connect(location, "s3cret") as client:
            assert client.names() == ["b.v2"]
        with connect(location) as client, pytest.raises(UsageError, match="give its token"):
            client.names()
        with RemoteBytes(location, "b.v2", "s3cret") as remote:
            assert remote.read(0, remote.size) == (folder / "b.v2.cola").read_bytes()


def test_what_is_worth_a_warning(folder: Path) -> None:
    Archive.pack(folder / "c.cola", ["x"], codec=PlainCodec("another"))
    with served(folder, "c.cola", "--host", "0.0.0.0") as (_, lines, _):
        assert len(lines) == 3
        assert lines[0].startswith("colazip: warning: c: packed with model another (")
        assert lines[1].startswith("colazip: warning: 0.0.0.0: whoever reaches the port can read all; see")
        assert " 1 archive at grpc://0.0.0.0:" in lines[2]


def test_a_port_in_use(folder: Path, fails: Fails) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port}: can't listen there: address already in use" in fails(
            "serve", folder / "a.cola", "--port", port
        )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.cola", "x=b.v2.cola", "x/a.cola"], 2, "would both be 'a'; name one, as in NAME=x/a.cola"),
        (["none.cola"], 1, "none.cola: can't be opened"),
        (["token"], 1, "token: not a colazip archive"),
        (["=a.cola"], 2, "no name for an archive"),
        ([], 2, "Missing argument"),
        (["a.cola", "--port", "65536"], 2, "--port"),
        (["a.cola", "--host", "nosuch.invalid"], 1, "nosuch.invalid:0: can't listen there"),
        (["a.cola", "--tls-cert", "token"], 2, "go together"),
        (["a.cola", "--tls-cert", "token", "--tls-key", "token"], 1, "no certificate and its key in PEM"),
        (["a.cola", "--token-file", "none"], 1, "none: can't be read"),
        (["a.cola", "--token-file", "empty"], 1, "empty: a token is 1 to 1,000 characters"),
        (["a.cola", "--token-file", "a.cola"], 1, "a.cola: a token is"),
    ],
)
def test_what_can_not_be_served(
    folder: Path, fails: Fails, arguments: list[str], code: int, words: str
) -> None:
    (folder / "token").write_text("two words\n")
    (folder / "empty").touch()
    port = [] if "--port" in arguments else ["--port", "0"]
    assert words in fails("serve", *arguments, *port, code=code)
