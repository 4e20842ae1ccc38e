"""The command as a whole: what it imports, its help, terminals, threads."""

from __future__ import annotations

import importlib
import os
import pty
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colazip.archive import Archive
from colazip.cli.main import COMMANDS
from colazip.version import __version__
from tests.cli.conftest import ROOT, command, environment, process
from tests.plain_codec import PlainCodec

HEAVY = {"torch", "numba", "pyarrow", "faiss", "numpy", "tokenizers", "safetensors", "zstandard", "msgpack"}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from colazip.cli.main import main; code = main(sys.argv[1:]);"
        "print(code, *(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], env=environment(), capture_output=True)
    code, *modules = result.stderr.decode().split()
    assert code == "0"
    assert not HEAVY & set(modules)
    assert result.stdout.startswith(b"Usage: colazip")


def test_summaries_are_those_of_the_commands() -> None:
    for name, entry in COMMANDS.items():
        module, _, attribute = entry.target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert found.name == name
        assert found.help


def test_help_lists_every_command() -> None:
    listed = process("--help").stdout.decode()
    for name, entry in COMMANDS.items():
        assert name in listed and entry.summary in listed


def test_no_arguments() -> None:
    result = process()
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"Usage: colazip")


def test_version() -> None:
    assert process("--version").stdout.decode() == f"colazip {__version__}\n"


@pytest.mark.skipif(shutil.which("colazip") is None, reason="the console script is not on PATH")
def test_the_console_script() -> None:
    result = subprocess.run(["colazip", "--version"], capture_output=True, env=environment())
    assert result.stdout.decode() == f"colazip {__version__}\n"


def test_the_reference_is_current() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_cli_reference.py"))
    assert script["PAGE"].read_text() == script["reference"](), "run: python docs/make_cli_reference.py"


def test_a_locale_that_is_not_utf8(tmp_path: Path) -> None:
    Archive.pack(tmp_path / "a.cola", ["Größe 🦜\n"], codec=PlainCodec(), source={"kind": "lines"})
    options = {"env": environment(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii"), "cwd": tmp_path}
    for arguments, code in (
        (["search", "a.cola", "größe"], 0),
        (["info", "größe"], 1),
        (["unpack", "a.cola"], 0),
    ):
        result = subprocess.run(command(*arguments, plain=True), capture_output=True, **options)
        assert result.returncode == code, result
        assert b"Traceback" not in result.stderr
    assert result.stdout.decode() == "Größe 🦜\n"


def on_terminal(*arguments: str, cwd: Path) -> tuple[int, str]:
    """Exit code and what a terminal shows that is stdout and stderr of the command."""
    near, far = pty.openpty()
    with subprocess.Popen(
        command(*arguments, plain=True), env=environment(), cwd=cwd, stdin=far, stdout=far, stderr=far
    ) as running:
        os.close(far)
        shown = b""
        while True:
            try:
                piece = os.read(near, 4096)
            except OSError:  # what Linux says at the end
                break
            if not piece:
                break
            shown += piece
        os.close(near)
        return running.wait(60), shown.decode()


def test_nothing_binary_on_a_terminal(tmp_path: Path) -> None:
    Archive.pack(tmp_path / "a.cola", [b"text", b"\xff\0"], codec=PlainCodec())
    assert on_terminal("get", "a.cola", "0", cwd=tmp_path) == (0, "text\r\n")
    for arguments in (["get", "a.cola", "1"], ["unpack", "a.cola", "-o", "-", "--format", "parquet"]):
        code, shown = on_terminal(*arguments, cwd=tmp_path)
        assert code == 2
        assert "not written to a terminal" in shown and "PAR1" not in shown
    code, shown = on_terminal("compress", "a.cola", "-o", "-", cwd=tmp_path)
    assert code == 2 and "not written to a terminal" in shown


def test_progress_only_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"a line of some length to be packed\n" * 10_000)
    arguments = ["pack", "log", "--format", "lines", "-o", "a.cola", "-f"]
    code, shown = on_terminal(*arguments, cwd=tmp_path)
    assert code == 0 and "packing  " in shown and "% " in shown and "left" in shown
    code, shown = on_terminal(*arguments, "-q", cwd=tmp_path)
    assert (code, shown) == (0, "")
    piped = process(*arguments, plain=True, cwd=tmp_path)
    assert piped.stderr.count(b"\n") == 1 and b"\r" not in piped.stderr


def test_threads_and_batches_do_not_change_the_archive(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"".join(b"line %d\n" % n for n in range(2000)))
    made = []
    for options in (["-T", "1"], ["-T", "2"], ["--batch-size", "1"], ["--batch-size", "7"]):
        result = process("pack", "log", "-o", "a.cola", "-f", *options, plain=True, cwd=tmp_path)
        assert result.returncode == 0, result
        made.append((tmp_path / "a.cola").read_bytes())
    assert len(set(made)) == 1
