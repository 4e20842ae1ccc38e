"""Every failure is one line that says what, where and what to do, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colazip.archive import Archive
from tests.cli.conftest import Run, command, environment, process
from tests.plain_codec import PlainCodec

Fails = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Usage: colazip"),
        (["pak"], "No such command"),
        (["pack", "x"], "Missing option"),
        (["pack", "-o", "x.cola"], "Missing argument"),
        (["pack", "--bogus", "x"], "No such option"),
        (["pack", "-", "-o", "-"], "standard output"),
        (["pack", "-", "x", "-o", "x.cola"], "'-' can't be combined"),
        (["pack", "-", "-o", "x.cola", "-q", "-v"], "-q and -v"),
        (["pack", "-", "-o", "x.cola", "-T", "0"], "0"),
        (["pack", "-", "-o", "x.cola", "--text-column", "t"], "only tables have columns"),
        (["pack", "-", "-o", "x.cola", "--format", "csv", "--text-column", "t", "--id-column", "t"], "both"),
        (["pack", "-", "-o", "x.cola", "--format", "parquet"], "pipe"),
        (["pack", "x", "-o", "x"], "both source and output"),
        (["pack", "-", "-o", "x.cola", "--preset", "fast", "--detail", "1"], "none is written"),
        (["pack", "-", "-o", "x.cola", "--layers", "search", "--detail", "0"], "none is written"),
        (["pack", "-", "-o", "x.cola", "--detail", "-1"], "--detail"),
        (["pack", "-", "-o", "x.cola", "--detail", "1"], "made for one detail"),
        (["pack", "-", "-o", "x.cola", "--layers", "gist", "--code-bytes", "40"], "none is written"),
        (["pack", "-", "-o", "x.cola", "--code-bytes", "0"], "--code-bytes"),
        (["pack", "-", "-o", "x.cola", "--code-bytes", "40"], "made for one size"),
        (["pack", "-", "-o", "x.cola", "--brief", "0.1"], "made to write as it does"),
        (["compress", "-", "--preset", "balanced", "--detail", "1"], "none is written"),
        (["search", "x.cola", " "], "query is empty"),
        (["search", "x.cola", "q", "-k", "0"], "0"),
        (["decompress", "x.txt"], "no suffix .cz"),
        (["strip", "x.cola", "--drop", ",", "-o", "y.cola"], "no layer"),
    ],
)
def test_wrong_usage(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    outcome = run(*arguments, stdin=b"text")
    assert outcome.code == 2, outcome
    assert words in outcome.error
    assert outcome.error.count("\n") == 1 or not arguments
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("missing.txt", None, "no such file"),
        ("empty.txt", b"", "nothing to pack"),
        ("empty.jsonl", b"", "is empty"),
        ("blank.jsonl", b"\n\n", "nothing to pack"),
        ("head.csv", b"text,n\n", "nothing to pack"),
        ("none.csv", b"title,body\na,b\n", "no column 'text'; it has 'title', 'body'"),
        ("none.jsonl", b'{"a": 1, "b": 2}\n', "no column 'text'; it has 'a', 'b'"),
        ("late.jsonl", b'{"text": "x"}\n{"t": 1}\n', "line 2 has no column 'text'"),
        ("bad.jsonl", b'{"text": "x"}\n\n{"text": \n', "line 3: bad JSON"),
        ("list.jsonl", b"[1]\n", "line 1: a JSON list"),
        ("deep.jsonl", b"[" * 100_000 + b"\n", "line 1: "),
        ("digits.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n", "line 1: bad JSON"),
        ("utf8.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "line 2: invalid UTF-8 at byte 11"),
        ("null.jsonl", b'{"text": null}\n', "line 1: column 'text' holds no text (null)"),
        ("number.jsonl", b'{"text": 1}\n', "int, not text"),
        ("lone.jsonl", b'{"text": "x", "n": "\\ud800"}\n', "lone surrogate"),
        ("keys.jsonl", b'{"text": "x", "text": "y"}\n', "key 'text' is there twice"),
        ("inner.jsonl", b'{"text": "x", "n": [{"a": 1, "a": 1}]}\n', "key 'a' is there twice"),
        ("large.jsonl", b'{"text": "x", "n": -1e999}\n', "number -1e999 is too large"),
        ("nul.csv", b"text,n\na,b\0\n", "line 2: a NUL"),
        ("utf16.csv", "text,n\na,b\n".encode("utf-16"), "NUL"),
        ("wide.csv", b"text,n\na,b\nc,d,e\n", "line 3: 3 fields, but the header has 2"),
        ("quote.csv", b'text,n\n"a,b\n', "bad CSV"),
        ("meta.csv", b"text,n\na,\xff\n", "line 2: invalid UTF-8"),
        ("twice.csv", b"text,n,n\na,b,c\n", "two columns are named 'n'"),
        ("bad.parquet", b"PAR1 not really", "can't be read as Parquet"),
    ],
)
def test_bad_sources(fails: Fails, tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    message = fails("pack", name, "-o", "x.cola")
    assert words in message and name in message
    assert sorted(os.listdir(tmp_path)) == ([] if data is None else [name])


def test_bad_ids(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "id": "1"}\n{"text": "b", "id": 1}\n')
    assert "line 2: id 1 is not of the type" in fails("pack", "a.jsonl", "--id-column", "id", "-o", "x.cola")
    (tmp_path / "b.jsonl").write_text('{"text": "a", "id": null}\n')
    assert "holds None" in fails("pack", "b.jsonl", "--id-column", "id", "-o", "x.cola")
    (tmp_path / "c.csv").write_text("text,id\na,same\nb,same\n")
    assert "same" in fails("pack", "c.csv", "--id-column", "id", "-o", "x.cola")
    assert "it has 'text', 'id'" in fails("pack", "c.csv", "--id-column", "no", "-o", "x.cola")
    pq.write_table(pa.table({"text": ["a", None], "id": [1, None]}), tmp_path / "d.parquet")
    assert "row 2: column 'text' holds no text" in fails("pack", "d.parquet", "-o", "x.cola")
    assert "d.parquet: column 'id' is int64, not text" in fails(
        "pack", "d.parquet", "--text-column", "id", "-o", "x.cola"
    )
    pq.write_table(
        pa.table({"text": ["a"], "m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8()))}),
        tmp_path / "e.parquet",
    )
    assert "can't be kept" in fails("pack", "e.parquet", "-o", "x.cola")
    assert not (tmp_path / "x.cola").exists()


def test_mixed_sources(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "a.txt").write_text("a")
    assert "don't mix" in fails("pack", "a.csv", "a.txt", "-o", "x.cola", code=2)
    assert "both be record 'a.txt'" in fails("pack", "a.txt", tmp_path / "a.txt", "-o", "x.cola", code=2)
    (tmp_path / "d").mkdir()
    assert "nothing to pack" in fails("pack", "d", "-o", "x.cola")
    assert "no csv files" in fails("pack", "d", "--format", "csv", "-o", "x.cola")


def test_file_names_that_are_not_utf8(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    try:
        with open(os.fsencode(tmp_path / "d") + b"/caf\xe9", "wb"):
            pass
    except OSError:
        pytest.skip("the file system has only UTF-8 names")
    assert "not valid UTF-8" in fails("pack", "d", "-o", "x.cola")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_entries(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "secret").touch(mode=0)
    assert "permission denied: d/secret; check the permissions" in fails("pack", "d", "-o", "x.cola")
    (tmp_path / "d" / "closed").mkdir(mode=0)
    assert "d/closed" in fails("pack", "d", "-o", "x.cola")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    texts = [f"record number {n} speaks of many things" for n in range(50)]
    Archive.pack(tmp_path / "a.cola", texts, codec=PlainCodec())
    return tmp_path / "a.cola"


def test_archives_that_are_none(fails: Fails, archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    (tmp_path / "bad.cola").write_bytes(b"")
    for make in (b"", b"text", whole[:-1], whole[: len(whole) // 2], whole + b"x"):
        (tmp_path / "bad.cola").write_bytes(make)
        for arguments in (["info"], ["search", "q"], ["get", "1"], ["unpack"], ["verify"]):
            assert "bad.cola" in fails(arguments[0], "bad.cola", *arguments[1:])
    for arguments in (
        ["info", "none.cola"],
        ["info", tmp_path],
        ["strip", "none.cola", "--drop", "exact", "-o", "x"],
    ):
        fails(*arguments)
    assert not (tmp_path / "x").exists()


def test_a_damaged_block_leaves_no_output(run: Run, fails: Fails, archive: Path, tmp_path: Path) -> None:
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    archive.write_bytes(damaged)
    (tmp_path / "kept").write_bytes(b"kept")
    fails("unpack", "a.cola", "-o", "kept", "-f")
    fails("unpack", "a.cola", "-o", "new", "--format", "files")
    assert sorted(os.listdir(tmp_path)) == ["a.cola", "kept"]
    assert (tmp_path / "kept").read_bytes() == b"kept"


def test_outputs_in_folders_that_are_not_there(fails: Fails, archive: Path) -> None:
    for arguments in (["-o", "no/x"], ["-o", "no/x", "--format", "files"]):
        assert "there is no folder" in fails("unpack", "a.cola", *arguments)
    assert "no/b.cola" in fails("strip", "a.cola", "--drop", "exact", "-o", "no/b.cola")
    assert "no/b.cola" in fails("pack", "-", "-o", "no/b.cola", stdin=b"text")


def test_unknown_ids_and_layers(run: Run, fails: Fails, archive: Path) -> None:
    assert "no record 'x'; it has '0', '1', '2' and 47 more" in fails("get", "a.cola", "1", "x")
    assert "no record 'x'" in fails("regenerate", "a.cola", "x")
    assert run("strip", "a.cola", "--drop", "exact", "-o", "g.cola").code == 0
    assert "--from gist" in fails("unpack", "g.cola")
    assert "exact" in fails("get", "g.cola", "1")
    fails("strip", "a.cola", "--drop", "gist", "-o", "h.cola", code=2)
    fails("strip", "a.cola", "--drop", "bogus", "-o", "h.cola", code=2)
    fails("pack", "-", "--layers", "bogus", "-o", "h.cola", stdin=b"x", code=2)


def test_another_model(fails: Fails, tmp_path: Path) -> None:
    Archive.pack(tmp_path / "o.cola", ["text"], codec=PlainCodec("other"))
    assert "model" in fails("unpack", "o.cola")


def test_one_bad_archive_among_good_ones(run: Run, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.cola").write_bytes(b"bad")
    outcome = run("verify", "bad.cola", "a.cola", "--json")
    assert outcome.code == 1
    assert "colazip: error: bad.cola" in outcome.error and "a.cola: ok (50 records" in outcome.error
    assert b'"ok": false' in outcome.out and b'"ok": true' in outcome.out


def test_no_traceback_unless_asked_for(tmp_path: Path) -> None:
    quiet = process("info", "none", cwd=tmp_path)
    assert (quiet.returncode, quiet.stderr.count(b"\n")) == (1, 1)
    loud = subprocess.run(
        command("info", "none"), env=environment(COLAZIP_DEBUG="1"), cwd=tmp_path, capture_output=True
    )
    assert loud.returncode == 1 and b"Traceback" in loud.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(archive: Path) -> None:
    with open("/dev/full", "wb") as full:
        for arguments in (["unpack", "a.cola"], ["info", "a.cola"], ["get", "a.cola", "1"]):
            result = process(*arguments, plain=True, stdout=full, cwd=archive.parent)
            assert result.returncode == 1
            assert result.stderr.startswith(b"colazip: error: no space left on device"), result.stderr
            assert result.stderr.count(b"\n") == 1
    result = process("unpack", "a.cola", "-o", "/dev/full", plain=True, cwd=archive.parent)
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)


def closed(stream: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """The command with a standard stream closed by the shell, such as `>&-`."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {stream}', "sh", *command(*arguments, plain=True)],
        env=environment(),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )


def test_closed_streams(archive: Path) -> None:
    for arguments in (["info", "a.cola"], ["get", "a.cola", "1"], ["--version"]):
        result = closed(">&-", *arguments, folder=archive.parent)
        assert (result.returncode, result.stderr) == (1, b"colazip: error: standard output is closed\n")
    result = closed("<&-", "pack", "-", "-o", "x.cola", folder=archive.parent)
    assert (result.returncode, result.stderr) == (1, b"colazip: error: standard input is closed\n")
    assert [path.name for path in archive.parent.iterdir()] == ["a.cola"]
    # What needs none of them goes on, and no file gets their numbers.
    result = closed(
        "<&- >&- 2>&-", "strip", "a.cola", "--drop", "search", "-o", "b.cola", folder=archive.parent
    )
    assert result.returncode == 0
    assert closed("<&-", "verify", "b.cola", folder=archive.parent).returncode == 0


def test_an_output_is_never_its_own_source(fails: Fails, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("kept")
    (tmp_path / "link.cola").symlink_to("a.cola")
    before = archive.read_bytes()
    for arguments in (
        ("get", "a.cola", "1", "-o", "a.cola"),
        ("unpack", "a.cola", "-o", "link.cola", "--format", "jsonl"),
        ("compress", "t.txt", "-o", "./t.txt"),
    ):
        assert "both source and output" in fails(*arguments, "-f", code=2)
    assert archive.read_bytes() == before and (tmp_path / "t.txt").read_text() == "kept"


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    Archive.pack(
        tmp_path / "a.cola", [b"y" * 60_000 + b"\n"] * 20, codec=PlainCodec(), source={"kind": "lines"}
    )
    options = {"env": environment(), "cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command("unpack", "a.cola", plain=True), **options) as writer:
        assert writer.stdout is not None and writer.stderr is not None
        assert writer.stdout.read(1) == b"y"
        writer.stdout.close()
        error = writer.stderr.read()
        assert writer.wait(60) == 1
    assert error.startswith(b"colazip: error: the reader of the output went away") and error.count(b"\n") == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_interrupts_leave_nothing_behind(tmp_path: Path, number: int, code: int) -> None:
    def listen() -> None:  # under nohup, tests and all that they start would not
        signal.signal(number, signal.SIG_DFL)

    arguments = ["pack", "-", "--format", "lines", "-o", "a.cola"]
    options = {"env": environment(), "cwd": tmp_path, "stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(*arguments, plain=True), preexec_fn=listen, **options) as packing:
        assert packing.stdin is not None and packing.stderr is not None
        packing.stdin.write(b"a line\n" * 10_000)
        packing.stdin.flush()
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(tmp_path.iterdir())
        packing.send_signal(number)
        error = packing.stderr.read()
        assert packing.wait(60) == code
    assert error.startswith(b"colazip: error: ") and error.count(b"\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unexpected_error_is_one_line_too(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "colazip.ingest", None)
    assert "installation" in fails("pack", "x", "-o", "y")
