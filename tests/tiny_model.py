"""A model trained in seconds on the package's handbook: small, but it really codes text."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from importlib import resources
from pathlib import Path

from colazip.codec import Codec
from colazip.pretrained import Model, load
from colazip.train.pipeline import run
from colazip.train.recipes import tiny


@lru_cache(maxsize=1)
def passages() -> list[str]:
    """Texts of the handbook."""
    lines = (resources.files("colazip.demo") / "handbook.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def write_corpus(folder: Path) -> tuple[Path, Path]:
    """Training and validation files of handbook passages."""
    files = folder / "train.jsonl", folder / "validation.jsonl"
    for path, texts in zip(files, (passages()[:-20], passages()[-20:]), strict=True):
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return files


@lru_cache(maxsize=1)
def tiny_folder() -> Path:
    """Folder of the tiny model, trained once a test process."""
    # Kept in the process so that the folder lives as long as the tests do.
    keep = tempfile.TemporaryDirectory(prefix="colazip-tiny-")
    _KEPT.append(keep)
    root = Path(keep.name)
    train, validation = write_corpus(root)
    run(tiny(), data=[train], validation=[validation], out=root / "run")
    return root / "run" / "model"


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@lru_cache(maxsize=1)
def tiny_model() -> Model:
    return load(tiny_folder())


def tiny_codec(batch_size: int = 64) -> Codec:
    return Codec(tiny_model(), batch_size=batch_size)
