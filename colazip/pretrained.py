"""Model folders: config.json, tokenizer.json, weights.safetensors, README.md, and perhaps dictionary.bin.

Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colazip.config import ModelConfig
from colazip.errors import ModelError

if TYPE_CHECKING:
    import torch

    from colazip.nn.dit import DiT
    from colazip.nn.search_head import SearchHead
    from colazip.nn.vae import TextVAE
    from colazip.tokenizer import Tokenizer

STREAM_VERSION = 2  # raised whenever the same weights would give other bytes
DEFAULT = Path(__file__).parent / "models" / "default"
_MAX_FILE = 1 << 30
_DICTIONARY = "dictionary.bin"
_MAX_DICTIONARY = 1 << 20


@dataclass(frozen=True)
class Model:
    """A loaded model. `id` is the hash of all that decides a bit of what is stored.

    dictionary: of zstd, for text that no network codes; None if the model has none.
    """

    id: str
    config: ModelConfig
    tokenizer: Tokenizer
    vae: TextVAE
    search: SearchHead
    prior: DiT
    dictionary: bytes | None = None


def resolve(path: str | os.PathLike[str] | None) -> Path:
    """The folder of a model; None is the embedded default. Raises ModelError if it is not a model folder."""
    folder = DEFAULT if path is None else Path(path)
    for name in ("config.json", "tokenizer.json", "weights.safetensors"):
        if not (folder / name).is_file():
            what = "the embedded default model" if path is None else f"{folder}"
            raise ModelError(f"{what}: no {name}; name a folder that `colazip train` wrote")
        if (folder / name).stat().st_size > _MAX_FILE:
            raise ModelError(f"{folder / name}: larger than any model of this release")
    return folder


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as e:
        raise ModelError(f"{path}: not readable ({e}): re-install the model") from e


def _load_dictionary(path: Path) -> bytes | None:
    """The model's zstd dictionary, if it has one."""
    from colazip.classical import ClassicalCoder

    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_DICTIONARY:
        raise ModelError(f"{path}: larger than {_MAX_DICTIONARY} bytes, no dictionary of this release is")
    try:
        dictionary = path.read_bytes()
        ClassicalCoder(dictionary)
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}: not usable ({e}): re-install the model") from e
    return dictionary


def _exact_modules(root: torch.nn.Module) -> dict[str, Any]:
    from colazip.nn.exact import Quantized

    return {n: m for n, m in root.named_modules() if isinstance(m, Quantized)}


def _export(root: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of a network as shipped: integers with their scales, everything else in float32 or int32."""
    import torch

    from colazip.nn.exact import quantize_rows

    tensors: dict[str, torch.Tensor] = {}
    exact = _exact_modules(root)
    for name, module in exact.items():
        q, scale = (
            (module.q, module.scale) if module.weight is None else quantize_rows(module.weight.detach())
        )
        tensors[f"{prefix}{name}.q"] = q.to(torch.int8).contiguous()
        tensors[f"{prefix}{name}.scale"] = scale.float().contiguous()
    inside = tuple(f"{n}." for n in exact)
    for name, value in root.state_dict().items():
        if not name.startswith(inside):
            small = torch.int32 if value.dtype == torch.int64 else torch.float32
            tensors[prefix + name] = value.detach().to(small).contiguous()
    return tensors


def _import(root: torch.nn.Module, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    """Install shipped tensors, each checked against the shape the configuration gives it."""
    import torch

    def take(name: str, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        value = tensors.pop(prefix + name, None)
        if value is None or value.shape != torch.Size(shape) or value.dtype != dtype:
            raise ModelError(f"weights.safetensors: {prefix + name} is missing or of another shape or type")
        if dtype.is_floating_point and not torch.isfinite(value).all():
            raise ModelError(f"weights.safetensors: {prefix + name} holds values that are not finite")
        return value

    exact = _exact_modules(root)
    for name, module in exact.items():
        shape = module.weight.shape
        module.freeze(
            take(f"{name}.q", shape, torch.int8), take(f"{name}.scale", (*shape[:-1], 1), torch.float32)
        )
    inside = tuple(f"{n}." for n in exact)
    with torch.no_grad():
        for name, value in root.state_dict().items():
            if not name.startswith(inside):
                small = torch.int32 if value.dtype == torch.int64 else torch.float32
                value.copy_(take(name, value.shape, small))
    root.requires_grad_(False)
    root.eval()


def _export_prior(prior: DiT) -> dict[str, torch.Tensor]:
    """Matrices in int8 with a scale a row, as everything else is; the prior computes with the floats they
    stand for."""
    import torch

    from colazip.nn.exact import quantize_rows

    tensors = {}
    for name, value in prior.state_dict().items():
        if value.ndim == 2:
            q, scale = quantize_rows(value.detach())
            tensors[f"prior.{name}.q"] = q.to(torch.int8).contiguous()
            tensors[f"prior.{name}.scale"] = scale.float().contiguous()
        else:
            tensors[f"prior.{name}"] = value.detach().float().contiguous()
    return tensors


def _import_prior(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {}
    for name, value in tensors.items():
        key = name[len("prior.") :]
        if key.endswith(".q"):
            state[key[:-2]] = value.float() * tensors[f"{name[:-2]}.scale"]
        elif not key.endswith(".scale"):
            state[key] = value
    return state


def model_id(
    config: ModelConfig,
    tokenizer: Tokenizer,
    tensors: dict[str, torch.Tensor],
    dictionary: bytes | None = None,
) -> str:
    """Hash of stream version, shapes, token bytes, coding tensors and zstd dictionary; prior and name stand
    outside."""
    import numpy as np

    digest = hashlib.sha256(f"colazip {STREAM_VERSION}\n".encode())
    shape = json.loads(config.to_json())
    for field in ("name", "prior", "prior_block"):
        shape.pop(field)
    digest.update(json.dumps(shape, sort_keys=True).encode())
    for token in tokenizer.table:
        digest.update(len(token).to_bytes(2, "little") + token)
    for name in sorted(tensors):
        if not name.startswith("prior."):
            value = np.ascontiguousarray(tensors[name].cpu().numpy())
            digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
            digest.update(value.tobytes())
    if dictionary is not None:
        digest.update(f"dictionary {len(dictionary)}\n".encode() + dictionary)
    return digest.hexdigest()[:32]


def save_pretrained(
    folder: Path,
    *,
    config: ModelConfig,
    tokenizer: Tokenizer,
    vae: TextVAE,
    search: SearchHead,
    prior: DiT,
    card: str,
    figures: dict[str, Any],
    dictionary: bytes | None = None,
) -> str:
    """Write a model folder; returns the model's id. `figures` go into config-side metadata, `card` into
    README.md."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {**_export(vae, "vae."), **_export(search, "search.")}
    tensors.update(_export_prior(prior))
    tensors = {n: v.to("cpu", memory_format=torch.contiguous_format) for n, v in tensors.items()}
    identity = model_id(config, tokenizer, tensors, dictionary)
    partial = folder / "weights.partial"
    save_file(tensors, partial, metadata={"id": identity, "figures": json.dumps(figures)})
    os.chmod(partial, 0o644)  # the library writes it for the owner alone
    os.replace(partial, folder / "weights.safetensors")
    (folder / "config.json").write_text(config.to_json())
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    if dictionary is None:
        (folder / _DICTIONARY).unlink(missing_ok=True)
    else:
        (folder / _DICTIONARY).write_bytes(dictionary)
    return identity


def load(path: str | os.PathLike[str] | None = None) -> Model:
    """Load a model folder, or the embedded default. Raises ModelError on anything that does not fit or is
    damaged."""
    from safetensors import SafetensorError, safe_open

    from colazip.nn.dit import DiT
    from colazip.nn.search_head import SearchHead
    from colazip.nn.vae import TextVAE
    from colazip.tokenizer import Tokenizer

    folder = resolve(path)
    config = ModelConfig.from_json(_text(folder / "config.json"))
    tokenizer = Tokenizer(_text(folder / "tokenizer.json"))
    if tokenizer.size != config.vocabulary:
        raise ModelError(
            f"{folder}: {tokenizer.size} tokens in tokenizer.json, {config.vocabulary} in config.json"
        )
    try:
        with safe_open(folder / "weights.safetensors", framework="pt") as file:
            claimed = (file.metadata() or {}).get("id")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise ModelError(f"{folder / 'weights.safetensors'}: not readable ({e}): re-install the model") from e
    dictionary = _load_dictionary(folder / _DICTIONARY)
    identity = model_id(config, tokenizer, tensors, dictionary)
    if identity != claimed:
        raise ModelError(f"{folder}: its files hash to {identity}, not to {claimed}: re-install the model")
    try:
        vae, search, prior = TextVAE(config), SearchHead(config), DiT(config)
    except (ValueError, RuntimeError) as e:
        raise ModelError(f"{folder / 'config.json'}: {e}") from e
    _import(vae, "vae.", tensors)
    _check_classes(vae)
    _import(search, "search.", tensors)
    try:
        prior.load_state_dict(_import_prior(tensors))
    except (RuntimeError, KeyError) as e:
        raise ModelError(f"{folder}: the prior's weights do not fit config.json") from e
    return Model(identity, config, tokenizer, vae, search, prior.eval().requires_grad_(False), dictionary)


def _check_classes(vae: TextVAE) -> None:
    """class_of, slot_of and token_of index each other; a lie would read outside of a table."""
    import torch

    readout = vae.readout
    tokens = readout.token_of.flatten()
    everything = torch.arange(len(tokens))
    if not torch.equal(tokens.sort().values, everything) or not torch.equal(
        readout.token_of[
            readout.class_of.clamp(0, vae.config.classes - 1), readout.slot_of.clamp(0, vae.config.slots - 1)
        ],
        everything,
    ):
        raise ModelError("weights.safetensors: the token classes are not a partition of the vocabulary")


def describe(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Name, id, configuration, size, figures and card of a model, without loading torch."""
    from safetensors import SafetensorError, safe_open

    folder = resolve(path)
    config = ModelConfig.from_json(_text(folder / "config.json"))
    try:
        with safe_open(folder / "weights.safetensors", framework="np") as file:
            metadata = file.metadata() or {}
            figures = json.loads(metadata.get("figures", "{}"))
    except (SafetensorError, OSError, ValueError) as e:
        raise ModelError(f"{folder / 'weights.safetensors'}: not readable ({e}): re-install the model") from e
    card = folder / "README.md"
    return {
        "name": config.name,
        "id": metadata.get("id", ""),
        "path": str(folder),
        "bytes": sum(f.stat().st_size for f in folder.iterdir() if f.is_file()),
        "config": json.loads(config.to_json()),
        "figures": figures,
        "card": _text(card) if card.is_file() else "",
    }
