"""`pack --price` from the shell, with the model of the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import colazip
from tests.cli.conftest import process
from tests.tiny_model import passages

pytestmark = pytest.mark.skipif(
    not (Path(colazip.__file__).parent / "models").is_dir(), reason="this checkout has no model"
)


def test_pack_and_read_at_a_price(tmp_path: Path) -> None:
    text = " ".join(passages()[:6])
    (tmp_path / "text.txt").write_text(text)

    def run(*arguments: str, code: int = 0) -> bytes:
        result = process(*arguments, cwd=tmp_path)
        assert result.returncode == code, result
        return result.stderr if code else result.stdout

    run("pack", "text.txt", "-o", "a.cola", "--price", "8")
    run("pack", "text.txt", "-o", "b.cola", "--layers", "search,gist")
    assert (tmp_path / "a.cola").stat().st_size < 0.95 * (tmp_path / "b.cola").stat().st_size
    assert json.loads(run("info", "a.cola", "--json"))["layers"] == ["search", "gist"]
    reading, whole = (
        run("get", name, "text.txt", "--from", "gist").decode().split() for name in ("a.cola", "b.cola")
    )
    assert 0.5 * len(whole) < len(reading) < len(whole)
    run("verify", "a.cola")
    assert run("regenerate", "a.cola", "text.txt", "--strength", "0").decode().split() == reading
    assert b"no exact layer" in run("get", "a.cola", "text.txt", code=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--price", "0.5"), b"--price"),
        (("--price", "nan"), b"price"),
        (("--price", "9", "--brief", "0.5"), b"give one"),
        (("--price", "9", "--layers", "search"), b"none is written"),
        (("--price", "9", "--layers", "search,gist,exact"), b"leaves words out"),
        (("--price", "9", "--preset", "fast"), b"no gist"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, arguments: tuple[str, ...], said: bytes) -> None:
    (tmp_path / "text").write_text("The tide turns at six.")
    result = process("pack", "text", "-o", "a.cola", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and said in result.stderr and result.stderr.count(b"\n") == 1, result
    assert not (tmp_path / "a.cola").exists()
