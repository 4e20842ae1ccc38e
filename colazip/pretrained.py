"""Model folders: config.json, tokenizer.json, weights.safetensors, README.md, and perhaps dictionary.bin and
axes.npy.

Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colazip.config import ModelConfig
from colazip.errors import ModelError
from colazip.nn.loading import is_worth_loading, load_kernels
from colazip.vectors import RowSums, SearchRows, pack_rows, unpack_nibbles

if TYPE_CHECKING:
    import torch

    from colazip.cells import TokenCells
    from colazip.nn.compiled import CompiledNetworks
    from colazip.nn.context import ContextEncoder
    from colazip.nn.dit import DiT
    from colazip.nn.entries import EntryDiT
    from colazip.nn.portable import ContextEncoder as PortableEncoder
    from colazip.nn.portable import PortableNetworks, Product
    from colazip.nn.vae import TextVAE
    from colazip.tokenizer import Tokenizer

STREAM_VERSION = 3  # raised whenever the same weights would give other bytes
DEFAULT = Path(__file__).parent / "models" / "default"
_MAX_FILE = 1 << 30
_DICTIONARY = "dictionary.bin"
_MAX_DICTIONARY = 1 << 20
_AXES = "axes.npy"
_MAX_AXES = 1 << 24


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model. `id` is the hash of all that decides a bit of what is stored.

    Tensors are NumPy arrays as shipped. Networks are built when they are first asked for: those in NumPy
    (`portable`) read archives without loading torch. dictionary: of zstd, for text that no network
    codes; None if the model has none. axes: what search vectors are shortened along, float16 [D, D], one a
    row; None in a model that knows one width only.
    """

    id: str
    config: ModelConfig
    tokenizer: Tokenizer
    tensors: dict[str, np.ndarray]
    dictionary: bytes | None = None
    axes: np.ndarray | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the networks: another process builds its own.
        return Model, (self.id, self.config, self.tokenizer, self.tensors, self.dictionary, self.axes)

    @cached_property
    def codebooks(self) -> dict[int, np.ndarray]:
        """Centroids of the search codes of each size M, float32 [M, 256, D / M]."""
        from colazip.nn.shapes import codebook_entry

        names = {size: codebook_entry(self.config, size)[0] for size in self.config.codes}
        return {size: self.tensors[name].astype(np.float32) for size, name in names.items()}

    @cached_property
    def cells(self) -> TokenCells:
        from colazip.cells import TokenCells

        return TokenCells(self.tensors)

    @cached_property
    def portable(self) -> PortableNetworks:
        from colazip.nn.portable import PortableNetworks

        return PortableNetworks(self.config, self.tensors)

    @cached_property
    def quick(self) -> PortableNetworks:
        """The same with torch's int8 products: for a few lanes, where torch is loaded anyway."""
        from colazip.nn.portable import PortableNetworks
        from colazip.nn.quick import int8_product

        return PortableNetworks(self.config, self.tensors, int8_product)

    @property
    def compiled(self) -> CompiledNetworks | None:
        """The same in compiled loops, for a few lanes; None while there is too little work for them, or where
        they don't run."""
        return self._compiled if is_worth_loading() else None

    @cached_property
    def _compiled(self) -> CompiledNetworks | None:
        found = load_kernels(
            "colazip.nn.compiled", lambda own: own.agrees(), "a few lanes without compiled loops"
        )
        return None if found is None else found.CompiledNetworks(self.config, self.tensors)

    @cached_property
    def rows(self) -> RowSums:
        """The search head's rows of tokens and words."""
        packed, scale = self.tensors["search.tokens.q"], self.tensors["search.tokens.scale"]
        return RowSums(packed, scale, self.tokenizer.table, self.config.word_rows)

    @cached_property
    def search_encoder(self) -> PortableEncoder | None:
        """What adds context to the rows, in NumPy; None in a model without."""
        from colazip.nn.portable import float_product

        return self._encoder_in_numpy(float_product)

    @cached_property
    def quick_encoder(self) -> PortableEncoder | None:
        """The same with torch's int8 products."""
        from colazip.nn.quick import int8_product

        return self._encoder_in_numpy(int8_product)

    def _encoder_in_numpy(self, product: Callable[[np.ndarray], Product]) -> PortableEncoder | None:
        from colazip.nn.portable import ContextEncoder, Weights

        config = self.config.search_encoder
        if config is None:
            return None
        return ContextEncoder(config, Weights(self.tensors, "search.encoder.", product))

    @cached_property
    def context_network(self) -> ContextEncoder | None:
        """That network itself."""
        from colazip.nn.context import ContextEncoder

        if self.config.search_encoder is None:
            return None
        network = ContextEncoder.for_text(self.config)
        _import(network, "search.encoder.", self.tensors)
        return network

    @cached_property
    def context_encoder(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
        """The same by torch's own operations, the fastest where there is much to read."""
        import torch

        if (network := self.context_network) is None:
            return None

        def run(units: np.ndarray, valid: np.ndarray) -> np.ndarray:
            device = network.enter.q.device  # a codec may have taken it to its own
            with torch.inference_mode():
                found = network(torch.from_numpy(units).to(device), torch.from_numpy(valid).to(device))
            return found.cpu().numpy()

        return run

    @cached_property
    def vae(self) -> TextVAE:
        return _coder(self, trainable=False)

    @cached_property
    def token_rows(self) -> np.ndarray:
        """Integers of the search rows of tokens, int8 [V, D]."""
        return unpack_nibbles(self.tensors["search.tokens.q"][: self.config.vocabulary])

    @cached_property
    def prior(self) -> DiT | EntryDiT:
        """Raises ModelError if the tensors do not fit the configuration."""
        import torch

        from colazip.nn.dit import DiT
        from colazip.nn.entries import EntryDiT

        state = _import_prior(self.tensors)
        prior: DiT | EntryDiT
        if self.config.prior_features:
            prior = EntryDiT.for_text(self.config, torch.from_numpy(self.cells.places))
        else:
            prior = DiT.for_text(self.config)
            state = prior.completed(state)
        try:
            prior.load_state_dict(state)
        except (RuntimeError, KeyError) as e:
            raise ModelError("weights.safetensors: the prior's weights do not fit config.json") from e
        return prior.eval().requires_grad_(False)


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


def _load_axes(path: Path, width: int) -> np.ndarray | None:
    """The axes of shorter search vectors, if the model has them."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_AXES:
            raise ValueError("too long")
        axes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise ModelError(f"{path}: not readable ({e}): re-install the model") from e
    if (
        not isinstance(axes, np.ndarray)
        or axes.shape != (width, width)
        or axes.dtype != np.float16
        or not np.isfinite(axes).all()
    ):
        raise ModelError(f"{path}: not {width} axes of vectors of {width} numbers: re-install the model")
    return axes


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


def token_cells(vae: TextVAE) -> TokenCells:
    """Cells of a network as they will be once it is shipped."""
    from colazip.cells import TokenCells

    return TokenCells({name: value.cpu().numpy() for name, value in _export(vae, "vae.").items()})


def _export_search(config: ModelConfig, search: SearchRows) -> dict[str, torch.Tensor]:
    import torch

    from colazip.nn.shapes import codebook_entry

    packed, scale = pack_rows(search.rows)
    tensors = {"search.tokens.q": packed, "search.tokens.scale": scale}
    for size in config.codes:
        name, kind = codebook_entry(config, size)
        tensors[name] = search.codebooks[size].astype(kind)
    found = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
    return found if search.encoder is None else {**found, **_export(search.encoder, "search.encoder.")}


def _coder(model: Model, *, trainable: bool) -> TextVAE:
    """The coding networks that its tensors are."""
    import torch

    from colazip.nn.vae import TextVAE

    vae = TextVAE(model.config)
    _import(vae, "vae.", model.tensors, trainable=trainable)
    if vae.likeness is not None:
        vae.likeness.set_rows(torch.from_numpy(model.token_rows), vae.readout.token_of)
    return vae


def _import(
    root: torch.nn.Module, prefix: str, tensors: dict[str, np.ndarray], *, trainable: bool = False
) -> None:
    """Install shipped tensors, whose shapes have been checked; trainable: as the floats they stand for."""
    import torch

    exact = _exact_modules(root)
    for name, module in exact.items():
        q, scale = (torch.from_numpy(tensors[f"{prefix}{name}.{part}"]) for part in ("q", "scale"))
        if trainable:
            with torch.no_grad():
                module.trainable.copy_(q * scale)
        else:
            module.freeze(q, scale)
    inside = tuple(f"{n}." for n in exact)
    with torch.no_grad():
        for name, value in root.state_dict().items():
            if not name.startswith(inside):
                value.copy_(torch.from_numpy(tensors[prefix + name]))
    if not trainable:
        root.requires_grad_(False)
        root.eval()


def _export_prior(prior: DiT | EntryDiT) -> dict[str, torch.Tensor]:
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


def _import_prior(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    import torch

    state = {}
    for name, value in tensors.items():
        if not name.startswith("prior.") or name.endswith(".scale"):
            continue
        key, tensor = name[len("prior.") :], torch.from_numpy(value)
        if key.endswith(".q"):
            state[key[:-2]] = tensor.float() * torch.from_numpy(tensors[f"{name[:-2]}.scale"])
        else:
            state[key] = tensor
    return state


def model_id(
    config: ModelConfig,
    tokenizer: Tokenizer,
    tensors: dict[str, np.ndarray],
    dictionary: bytes | None = None,
) -> str:
    """Hash of stream version, shapes, token bytes, coding tensors and zstd dictionary; prior and name stand
    outside."""
    digest = hashlib.sha256(f"colazip {STREAM_VERSION}\n".encode())
    shape = json.loads(config.to_json())
    for field in ("name", "prior", "prior_block", "prior_features"):
        shape.pop(field)
    digest.update(json.dumps(shape, sort_keys=True).encode())
    for token in tokenizer.table:
        digest.update(len(token).to_bytes(2, "little") + token)
    for name in sorted(tensors):
        if not name.startswith("prior."):
            value = np.ascontiguousarray(tensors[name])
            digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
            digest.update(value.tobytes())
    if dictionary is not None:
        digest.update(f"dictionary {len(dictionary)}\n".encode() + dictionary)
    return digest.hexdigest()[:32]


def from_networks(
    config: ModelConfig,
    tokenizer: Tokenizer,
    vae: TextVAE,
    search: SearchRows,
    prior: DiT | EntryDiT,
    dictionary: bytes | None = None,
) -> Model:
    """The model that these networks are once they are shipped, quantized."""
    shipped = {**_export(vae, "vae."), **_export_search(config, search), **_export_prior(prior)}
    tensors = {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in shipped.items()}
    identity = model_id(config, tokenizer, tensors, dictionary)
    return Model(identity, config, tokenizer, tensors, dictionary, search.axes)


def with_coder(model: Model, vae: TextVAE, name: str, dictionary: bytes | None) -> Model:
    """The same model with other coding networks, of the same shapes, and another zstd dictionary. Search and
    prior stay, so its search codes say what the other's say."""
    coder = {key: np.ascontiguousarray(value.cpu().numpy()) for key, value in _export(vae, "vae.").items()}
    tensors = {**model.tensors, **coder}
    config = replace(model.config, name=name)
    identity = model_id(config, model.tokenizer, tensors, dictionary)
    return Model(identity, config, model.tokenizer, tensors, dictionary, model.axes)


def with_prior(model: Model, prior: DiT | EntryDiT) -> Model:
    """The same model, with the same id, with another prior of the same shapes: archives don't know it."""
    own = {key: np.ascontiguousarray(value.cpu().numpy()) for key, value in _export_prior(prior).items()}
    kept = {key: value for key, value in model.tensors.items() if not key.startswith("prior.")}
    return Model(model.id, model.config, model.tokenizer, {**kept, **own}, model.dictionary, model.axes)


def thawed(model: Model) -> TextVAE:
    """Its coding networks with weights that can be trained, which stand for what the shipped ones do."""
    return _coder(model, trainable=True)


def save_pretrained(
    folder: Path,
    *,
    config: ModelConfig,
    tokenizer: Tokenizer,
    vae: TextVAE,
    search: SearchRows,
    prior: DiT | EntryDiT,
    card: str,
    figures: dict[str, Any],
    dictionary: bytes | None = None,
) -> str:
    """Write a model folder of networks as they were trained; returns the model's id. Arguments as of
    `write`."""
    model = from_networks(config, tokenizer, vae, search, prior, dictionary)
    write(folder, model, card, figures)
    return model.id


def write(folder: Path, model: Model, card: str, figures: dict[str, Any]) -> None:
    """Write a model folder. `figures` go into the metadata of the weights, `card` into README.md."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "weights.partial"
    save_file(model.tensors, partial, metadata={"id": model.id, "figures": json.dumps(figures)})
    os.chmod(partial, 0o644)  # the library writes it for the owner alone
    os.replace(partial, folder / "weights.safetensors")
    (folder / "config.json").write_text(model.config.to_json())
    (folder / "tokenizer.json").write_text(model.tokenizer.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    if model.dictionary is None:
        (folder / _DICTIONARY).unlink(missing_ok=True)
    else:
        (folder / _DICTIONARY).write_bytes(model.dictionary)
    if model.axes is None:
        (folder / _AXES).unlink(missing_ok=True)
    else:
        np.save(folder / _AXES, model.axes)


def load(path: str | os.PathLike[str] | None = None) -> Model:
    """Load a model folder, or the embedded default. Raises ModelError on anything that does not fit or is
    damaged."""
    from safetensors import SafetensorError, safe_open

    from colazip.nn.shapes import coding_shapes
    from colazip.tokenizer import Tokenizer

    folder = resolve(path)
    config = ModelConfig.from_json(_text(folder / "config.json"))
    tokenizer = Tokenizer(_text(folder / "tokenizer.json"))
    if tokenizer.size != config.vocabulary:
        raise ModelError(
            f"{folder}: {tokenizer.size} tokens in tokenizer.json, {config.vocabulary} in config.json"
        )
    try:
        shapes = coding_shapes(config)
    except ValueError as e:
        raise ModelError(f"{folder / 'config.json'}: {e}") from e
    try:
        with safe_open(folder / "weights.safetensors", framework="np") as file:
            claimed = (file.metadata() or {}).get("id")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as e:
        raise ModelError(f"{folder / 'weights.safetensors'}: not readable ({e}): re-install the model") from e
    dictionary = _load_dictionary(folder / _DICTIONARY)
    identity = model_id(config, tokenizer, tensors, dictionary)
    if identity != claimed:
        raise ModelError(f"{folder}: its files hash to {identity}, not to {claimed}: re-install the model")
    _check(tensors, shapes)
    _check_classes(config, tensors)
    axes = _load_axes(folder / _AXES, config.vector)
    return Model(identity, config, tokenizer, tensors, dictionary, axes)


def _check(tensors: dict[str, np.ndarray], shapes: dict[str, tuple[tuple[int, ...], str]]) -> None:
    for name, (shape, dtype) in shapes.items():
        value = tensors.get(name)
        if value is None or value.shape != shape or value.dtype != dtype:
            raise ModelError(f"weights.safetensors: {name} is missing or of another shape or type")
    for name, value in tensors.items():
        if name not in shapes and not name.startswith("prior."):
            raise ModelError(f"weights.safetensors: {name} does not belong to this configuration")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ModelError(f"weights.safetensors: {name} holds values that are not finite")


def _check_classes(config: ModelConfig, tensors: dict[str, np.ndarray]) -> None:
    """class_of, slot_of and token_of index each other; a lie would read outside of a table."""
    class_of, slot_of = tensors["vae.readout.class_of"], tensors["vae.readout.slot_of"]
    token_of = tensors["vae.readout.token_of"]
    inside = (class_of >= 0) & (class_of < config.classes) & (slot_of >= 0) & (slot_of < config.slots)
    everything = np.arange(config.vocabulary)
    if not inside.all() or not np.array_equal(token_of[class_of, slot_of], everything):
        raise ModelError("weights.safetensors: the token classes are not a partition of the vocabulary")
    limits = tensors["vae.readout.limits"]
    if (limits < 0).any() or (limits > config.slots).any():
        raise ModelError("weights.safetensors: a gist names more tokens of a class than there are")


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
