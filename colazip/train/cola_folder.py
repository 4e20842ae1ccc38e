"""The folder of a full float model: config.json, weights.safetensors, tokenizer.json."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colazip.errors import ModelError
from colazip.files import new_folder
from colazip.nn.cola import ColaConfig, ColaVAE
from colazip.nn.cola_dit import ColaDiT
from colazip.tokenizer import Tokenizer

_LIMIT = 1 << 20  # no field of a sane model is larger


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file that appears whole."""
    from safetensors.torch import save_file

    partial = path.with_suffix(".partial")
    save_file({n: t.contiguous() for n, t in tensors.items()}, partial)
    os.replace(partial, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises ModelError if it is not a readable safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise ModelError(f"{path}: not a readable weights file ({type(e).__name__})") from e


def save_cola(folder: Path, config: ColaConfig, tensors: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """tensors: of the VAE under `vae.`, of the prior under `prior.`."""
    with new_folder(folder, overwrite=True) as new:
        (new / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
        (new / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        write_tensors(new / "weights.safetensors", tensors)


def load_cola(folder: Path) -> tuple[ColaVAE, ColaDiT, Tokenizer]:
    """Both networks, ready for use on the CPU, and the tokenizer. Raises ModelError on damage."""
    try:
        config = _config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        tokenizer = Tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"{folder}: not a model of the training path ({type(e).__name__}: {e})") from e
    tensors = read_tensors(folder / "weights.safetensors")
    # On the meta device nothing is allocated for what a config claims; the tensors are those of the file.
    with torch.device("meta"):
        vae, prior = ColaVAE(config), ColaDiT(config)
    for prefix, module in (("vae.", vae), ("prior.", prior)):
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        try:
            module.load_state_dict(own, assign=True)
        except RuntimeError as e:
            raise ModelError(f"{folder}: weights and config.json do not fit each other") from e
        module.eval().requires_grad_(False)
    if tokenizer.size != config.vocabulary:
        raise ModelError(f"{folder}: tokenizer and config.json do not fit each other")
    return vae, prior, tokenizer


def _config(values: Any) -> ColaConfig:
    """Raises ValueError on unknown, missing or senseless fields."""
    known = {f.name for f in fields(ColaConfig)}
    if not isinstance(values, dict) or set(values) != known or not isinstance(values["name"], str):
        raise ValueError("config.json has other fields")
    for name in known - {"name"}:
        if type(values[name]) is not int or not 0 < values[name] <= _LIMIT:
            raise ValueError(f"{name} must be a positive integer below {_LIMIT}")
    if values["vae_layers"] > 1000 or values["prior_layers"] > 1000:
        raise ValueError("too many layers")
    for width, heads in (("vae_width", "vae_heads"), ("prior_width", "prior_heads")):
        if values[width] % (2 * values[heads]):
            raise ValueError(f"{width} must be a multiple of twice {heads}")
    if values["vae_hidden"] % 2:
        raise ValueError("vae_hidden must be even")
    return ColaConfig(**values)
