"""`--workers` and `--device` of `pack` and `unpack` from the shell, with the model of the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import colazip
from tests.cli.conftest import process
from tests.tiny_model import passages

pytestmark = pytest.mark.skipif(
    not (Path(colazip.__file__).parent / "models").is_dir(), reason="this checkout has no model"
)


def test_workers_write_and_read_the_same(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text * 4}, ensure_ascii=False) for text in passages()[:60]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")

    def run(*arguments: str) -> None:
        result = process(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result

    run("pack", "a.jsonl", "-o", "one.cola", "--batch-size", "2")
    run("pack", "a.jsonl", "-o", "two.cola", "--workers", "2")
    assert (tmp_path / "one.cola").read_bytes() == (tmp_path / "two.cola").read_bytes()
    run("unpack", "two.cola", "-o", "b.jsonl", "--workers", "2")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workers", "0"), b"--workers"),
        (("--device", "abacus"), b"must be cpu or cuda"),
        pytest.param(
            ("--device", "cuda"),
            b"finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_is_not_there(tmp_path: Path, arguments: tuple[str, ...], said: bytes) -> None:
    (tmp_path / "text").write_text("The tide turns at six.")
    result = process("pack", "text", "-o", "a.cola", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and said in result.stderr and result.stderr.count(b"\n") == 1, result
    assert not (tmp_path / "a.cola").exists()
