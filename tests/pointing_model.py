"""The tiny model with a sentinel that gives way, so that what its tokens point at counts."""

from __future__ import annotations

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from colazip.pretrained import Model, load, model_id
from tests.tiny_model import tiny_folder, tiny_model

OFFSET = 30.0  # log2 units of the sentinel; tokens meet their like at 40 or so


def write_pointing_model(folder: Path) -> None:
    """Into a folder that is not there yet."""
    model = tiny_model()
    shutil.copytree(tiny_folder(), folder)
    tensors = {**model.tensors, "vae.coder.pointer.offset": np.array([OFFSET], np.float32)}
    made = model_id(model.config, model.tokenizer, tensors, model.dictionary)
    save_file(tensors, folder / "weights.safetensors", metadata={"id": made})


@lru_cache(maxsize=1)
def pointing_model() -> Model:
    with tempfile.TemporaryDirectory(prefix="colazip-pointing-") as folder:
        write_pointing_model(Path(folder) / "model")
        return load(Path(folder) / "model")
