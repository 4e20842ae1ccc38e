"""Runs commands: in this process where that shows the same, else in one of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from colazip.cli.main import main
from tests.plain_codec import PlainCodec

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind. error: what stderr holds, decoded."""

    code: int
    out: bytes
    error: str

    @property
    def text(self) -> str:
        return self.out.decode()


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """run(*arguments, stdin=b"") in tmp_path, with the plain codec."""
    monkeypatch.chdir(tmp_path)
    codec = PlainCodec()

    def run(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
        capfdbinary.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments], codec)
        out, error = capfdbinary.readouterr()
        return Outcome(code, out, error.decode())

    return run


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    """fails(*arguments, code=1, stdin=b""): the one line that a failing command writes, nothing on stdout."""

    def fails(*arguments: str | Path, code: int = 1, stdin: bytes = b"") -> str:
        outcome = run(*arguments, stdin=stdin)
        assert outcome.code == code, outcome
        assert outcome.out == b""
        assert outcome.error.startswith("colazip: error: ")
        assert outcome.error.count("\n") == 1 and outcome.error.endswith("\n")
        return outcome.error

    return fails


def command(*arguments: str, plain: bool = False) -> list[str]:
    """The command line of `colazip`; plain: with the plain codec in place of the model."""
    return [sys.executable, "-m", "tests.cli.plain_main" if plain else "colazip", *arguments]


def process(*arguments: str, plain: bool = False, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run `colazip` in a process of its own."""
    options.setdefault("stdin", subprocess.DEVNULL)
    if "input" in options:
        del options["stdin"]
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command(*arguments, plain=plain), stderr=subprocess.PIPE, env=environment(), timeout=120, **options
    )


def environment(**more: str) -> dict[str, str]:
    """That of this process, with this checkout importable from any folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}
