"""Options of the diffusion prior: what does not go together is one line, before anything heavy loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import colazip
from tests.cli.conftest import process

TEXT = "The harbour was quiet in the morning, and the boats lay side by side, waiting for the tide to turn.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("regenerate", "a.cola", "x", "--fill", "--strength", "0.2"), "exclude each other"),
        (("regenerate", "a.cola", "x", "--fill", "--continue", "20"), "exclude each other"),
        (("regenerate", "a.cola", "x", "--missing", "0.3"), "add --fill"),
        (("regenerate", "a.cola", "x", "--fill", "--missing", "some"), "give a share"),
        (("regenerate", "a.cola", "x", "--fill", "--missing", "5-3"), "give a share"),
        (("regenerate", "a.cola", "x", "--fill", "--missing", "0-99999999999"), "give a share"),
        (("regenerate", "a.cola", "x", "--steps", "0"), "--steps"),
        (("regenerate", "a.cola", "x", "--solver", "rk4"), "--solver"),
        (("regenerate", "a.cola", "x", "--seed", "-1"), "--seed"),
        (("regenerate", "a.cola", "x", "--guidance", "nan"), "guidance"),
        (("regenerate", "a.cola", "x", "--by", "me"), "--by"),
        (("regenerate", "a.cola", "x", "--steps", "4"), "--steps is the prior's; add --by prior"),
        (("regenerate", "a.cola", "x", "--continue", "9", "--guidance", "2"), "add --by prior"),
        (("regenerate", "a.cola", "x", "--continue", "9", "--by", "me"), "--by"),
        (("regenerate", "a.cola", "x", "--by", "prior", "--temperature", "1"), "leave it out"),
        (("regenerate", "a.cola", "x", "--continue", "9", "--temperature", "-1"), "--temperature"),
        (("unpack", "a.cola", "--denoise"), "--from gist"),
        (("unpack", "a.cola", "--from", "gist", "--detail", "1"), "--denoise"),
        (("unpack", "a.cola", "--from", "gist", "--missing", "0.5"), "--missing goes with --denoise"),
        (("unpack", "a.cola", "--from", "gist", "--denoise", "--missing", "1"), "--missing"),
        (("unpack", "a.cola", "--from", "gist", "--seed", "1"), "--seed is the prior's; add --denoise"),
    ],
)
def test_wrong_usage(fails: Callable[..., str], arguments: tuple[str, ...], said: str) -> None:
    assert said in fails(*arguments, code=2)


@pytest.mark.skipif(
    not (Path(colazip.__file__).parent / "models").is_dir(), reason="this checkout has no model"
)
def test_with_the_model_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "boat").write_text(TEXT)
    quick = ("--steps", "1", "--solver", "euler")

    def run(*arguments: str, code: int = 0) -> bytes:
        result = process(*arguments, cwd=tmp_path)
        assert result.returncode == code, result
        return result.stderr if code else result.stdout

    run("pack", "boat", "-o", "a.cola", "--layers", "gist")
    reading = run("get", "a.cola", "boat", "--from", "gist")
    assert run("regenerate", "a.cola", "boat", "--strength", "0").strip() == reading.strip()
    variant = run("regenerate", "a.cola", "boat", "--strength", "0.4").strip()
    assert (
        variant != reading.strip()
        and variant == run("regenerate", "a.cola", "boat", "--strength", "0.4").strip()
    )
    drawn = run("regenerate", "a.cola", "boat", "--strength", "0.4", "--by", "prior", *quick).strip()
    assert drawn not in (reading.strip(), variant)
    assert (
        run("regenerate", "a.cola", "boat", "--fill", "--missing", "0-3", "--by", "prior", *quick).strip()
        != reading.strip()
    )
    filled = run("regenerate", "a.cola", "boat", "--fill", "--missing", "2", "--temperature", "0").strip()
    assert filled != reading.strip() and filled[-20:] == reading.strip()[-20:]
    on = ("regenerate", "a.cola", "boat", "--continue", "40", "--by", "prior", *quick)
    assert run(*on).strip() and run(*on) != run(*on, "--guidance", "2")
    assert run(*on, "--temperature", "0") == run(*on, "--temperature", "0", "--seed", "3")
    guided = run("regenerate", "a.cola", "boat", "--by", "prior", "--guidance", "2", *quick, code=2)
    assert b"leave it out" in guided and guided.count(b"\n") == 1
    likely = ("regenerate", "a.cola", "boat", "--continue", "40", "--temperature", "0")
    assert run(*likely).strip() and run(*likely) == run(*likely, "--seed", "3")
    denoised = run("unpack", "a.cola", "--from", "gist", "--denoise", "-o", "-", *quick)
    assert denoised.strip() and denoised == run(
        "unpack", "a.cola", "--from", "gist", "--denoise", "-o", "-", *quick
    )
    outside = run("regenerate", "a.cola", "boat", "--fill", "--missing", "9999", code=2)
    assert b"patches" in outside and outside.count(b"\n") == 1
    more = ("unpack", "a.cola", "--from", "gist", "--denoise", "-o", "-", *quick)
    assert run(*more, "--detail", "0") == denoised
    thinned = run(*more, "--missing", "0.5")
    assert (
        thinned not in (b"", denoised) and thinned[:7] == denoised[:7]
    )  # of the patches, the second is lost
    outside = run(*more, "--detail", "9", code=2)
    assert b"detail" in outside and outside.count(b"\n") == 1
