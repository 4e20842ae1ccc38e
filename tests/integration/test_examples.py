"""The examples run as a reader would run them: no arguments, the demo text, the embedded model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import colazip

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(colazip.__file__).parent / "models" / "default"

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="the embedded model is not in this tree")


def run_example(name: str, *arguments: str) -> str:
    """Standard output of one example; fails with its standard error if the example does."""
    # The package under test, also where it is not installed.
    paths = [str(Path(colazip.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compress_corpus(tmp_path: Path) -> None:
    out = run_example("compress_corpus.py", str(tmp_path / "handbook.cola"))
    assert "all records came back exactly" in out
    full = (tmp_path / "handbook.cola").stat().st_size
    gist = (tmp_path / "handbook.cola.gist").stat().st_size
    assert gist < full
    assert f"{full} in the archive" in out


def test_search() -> None:
    lines = run_example("search.py", "clipper ships racing home with tea").splitlines()
    assert lines[0] == "clipper ships racing home with tea"
    assert len(lines) == 4


def test_regenerate() -> None:
    out = run_example("regenerate.py")
    assert "Two grams of leaf" in out
    assert out.count("regenerated, strength") == 3


def test_pipe_transport() -> None:
    out = run_example("pipe_transport.py")
    assert "receiver: 160 texts, all equal to what was sent" in out
    assert "sender: exact after" in out


def test_langchain_retriever() -> None:
    pytest.importorskip("langchain_core", reason="not installed: pip install 'colazip[langchain]'")
    out = run_example("langchain_retriever.py", "how long should green tea steep")
    assert out.endswith("Question: how long should green tea steep\n")
    assert out.count("\n[") == 3
