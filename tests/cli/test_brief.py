"""`pack --brief` from the shell, with the model of the package."""

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


def test_pack_search_and_read_briefs(tmp_path: Path) -> None:
    long = " ".join(passages()[:8])
    (tmp_path / "long.txt").write_text(long)
    (tmp_path / "short.txt").write_text("The tide turns at six.")

    def run(*arguments: str, code: int = 0) -> bytes:
        result = process(*arguments, cwd=tmp_path)
        assert result.returncode == code, result
        return result.stderr if code else result.stdout

    run("pack", "long.txt", "short.txt", "-o", "a.cola", "--brief", "0.125")
    run("pack", "long.txt", "short.txt", "-o", "b.cola", "--layers", "search,gist")
    assert (tmp_path / "a.cola").stat().st_size < 0.6 * (tmp_path / "b.cola").stat().st_size
    assert json.loads(run("info", "a.cola", "--json"))["layers"] == ["search", "gist"]
    assert b"brief 0.125" in run("info", "a.cola") and b"brief" not in run("info", "b.cola")
    reading = run("get", "a.cola", "long.txt", "--from", "gist").decode()
    assert 40 < len(reading.split()) <= 100 < len(long.split())
    assert run("get", "a.cola", "short.txt", "--from", "gist") == b"The tide turns at six."
    (hit,) = json.loads(run("search", "a.cola", "when does the water rise", "-k", "1", "--json"))
    assert hit["id"] == "short.txt"
    run("verify", "a.cola")
    for arguments, said in (
        (("get", "a.cola", "long.txt"), b"no exact layer"),
        (("regenerate", "a.cola", "long.txt"), b"without brief"),
    ):
        error = run(*arguments, code=1)
        assert said in error and error.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--brief", "0.001"), b"--brief"),
        (("--brief", "0.1", "--layers", "search"), b"none is written"),
        (("--brief", "0.1", "--layers", "search,gist,exact"), b"leaves words out"),
        (("--brief", "0.1", "--preset", "fast"), b"no gist"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, arguments: tuple[str, ...], said: bytes) -> None:
    (tmp_path / "text").write_text("The tide turns at six.")
    result = process("pack", "text", "-o", "a.cola", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and said in result.stderr and result.stderr.count(b"\n") == 1, result
    assert not (tmp_path / "a.cola").exists()
