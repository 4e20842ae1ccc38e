"""The commands with the model of the package, as installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import colazip
from tests.cli.conftest import process

pytestmark = pytest.mark.skipif(
    not (Path(colazip.__file__).parent / "models").is_dir(), reason="this checkout has no model"
)

TEXT = "The harbour was quiet in the morning, and the boats lay side by side. Größe, 🦜.\n"


def test_the_main_job(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name, data in {
        "boat": TEXT.encode(),
        "bread": b"Bread is flour and water.",
        "raw": b"\xff\0" * 9,
    }.items():
        (tmp_path / "docs" / name).write_bytes(data)

    def run(*arguments: str) -> bytes:
        result = process(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result
        return result.stdout

    run("compress", "docs/boat", "--detail", "0", "-o", "boat.cz")
    assert run("decompress", "boat.cz", "-o", "-") == TEXT.encode()
    run("pack", "docs", "-o", "a.cola", "-T", "1")
    run("verify", "a.cola")
    assert run("get", "a.cola", "boat", "raw") == TEXT.encode() + b"\xff\0" * 9
    run("unpack", "a.cola", "-o", "back")
    assert (tmp_path / "back" / "boat").read_bytes() == TEXT.encode()
    hits = json.loads(run("search", "a.cola", "ships at sea", "-k", "1", "--json"))
    assert len(hits) == 1
    assert run("regenerate", "a.cola", "boat", "--by", "prior", "--steps", "2") == run(
        "regenerate", "a.cola", "boat", "--by", "prior", "--steps", "2"
    )


def test_one_shot(tmp_path: Path) -> None:
    for data in (TEXT.encode(), b"", b"\xff\0"):
        packed = process("compress", input=data)
        assert packed.returncode == 0, packed
        assert len(packed.stdout) <= len(data) + 8
        assert process("decompress", input=packed.stdout).stdout == data
    (tmp_path / "t.txt").write_text(TEXT)
    assert process("compress", "t.txt", cwd=tmp_path).returncode == 0
    refused = process("decompress", "t.txt.cz", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count(b"\n")) == (2, 1)
    (tmp_path / "t.txt").unlink()
    assert process("decompress", "t.txt.cz", cwd=tmp_path).returncode == 0
    assert (tmp_path / "t.txt").read_text() == TEXT
    damaged = process("decompress", input=b"not a blob")
    assert (damaged.returncode, damaged.stdout, damaged.stderr.count(b"\n")) == (1, b"", 1)


def test_describe() -> None:
    shown = process("model", "--json")
    assert shown.returncode == 0, shown
    assert {"name", "id"} <= set(json.loads(shown.stdout))
    missing = process("model", "no-such-folder")
    assert (missing.returncode, missing.stderr.count(b"\n")) == (1, 1)
