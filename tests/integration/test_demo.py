"""`colazip demo` as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import colazip

MODEL = Path(colazip.__file__).parent / "models" / "default"

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="the embedded model is not in this tree")


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "colazip", "demo", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)


def test_demo_shows_every_use_and_keeps_the_archive(tmp_path: Path) -> None:
    kept = tmp_path / "kept.cola"
    done = run_demo("--keep", str(kept))
    assert done.returncode == 0, done.stderr
    for expected in (
        "zstd -19 per record",
        "colazip exact + gist + search",
        "Search by meaning",
        "160 passages",
        "all equal",
        "from its gist alone",
        "regenerated",
    ):
        assert expected in done.stdout
    assert f"{kept.stat().st_size:,}" in done.stdout
    assert list(tmp_path.iterdir()) == [kept]


def test_demo_overwrites_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept.cola"
    kept.write_bytes(b"mine")
    done = run_demo("--keep", str(kept))
    assert done.returncode == 2
    assert "kept.cola" in done.stderr
    assert kept.read_bytes() == b"mine"
