"""Shapes and types of the tensors that a model ships, from its configuration alone."""

from __future__ import annotations

from colazip.config import ModelConfig, StackConfig
from colazip.memory import KINDS, TOKEN_BITS
from colazip.nn.grid import LEVEL, MAX_K, PLANE

Shape = tuple[int, ...]
_MAX_HIDDEN = 1024
_MAX_TENSOR = 1 << 28  # elements of one tensor: bounds what a hostile config.json asks for


def hidden_width(width: int) -> int:
    """Hidden units of the MLP in a block of this width."""
    return min(_MAX_HIDDEN, 4 * width)


def coding_shapes(config: ModelConfig) -> dict[str, tuple[Shape, str]]:
    """Name -> (shape, NumPy type) of every tensor outside the prior; ValueError if no model can be so."""
    found: dict[str, tuple[Shape, str]] = {}

    def quantized(name: str, *shape: int) -> None:
        if shape[-1] > MAX_K:
            raise ValueError(f"{name}: {shape[-1]} inputs, at most {MAX_K} give exact sums")
        if _size(shape) > _MAX_TENSOR:
            raise ValueError(f"{name}: larger than any tensor of this release")
        found[f"{name}.q"] = shape, "int8"
        found[f"{name}.scale"] = (*shape[:-1], 1), "float32"

    def stack(name: str, config: StackConfig) -> None:
        if config.width % config.heads:
            raise ValueError(f"{name}: {config.heads} heads do not divide a width of {config.width}")
        if config.layers > 1024:
            raise ValueError(f"{name}: {config.layers} layers")
        width, hidden = config.width, hidden_width(config.width)
        for i in range(config.layers):
            block = f"{name}.blocks.{i}"
            quantized(f"{block}.qkv", 3 * width, width)
            quantized(f"{block}.out", width, width)
            quantized(f"{block}.up", hidden, width)
            quantized(f"{block}.down", width, hidden)
            found[f"{block}.temperature"] = (config.heads,), "float32"

    patch, channels, embedding = config.patch, config.channels, config.embedding
    if channels > 4 or patch > 64:
        raise ValueError(f"{channels} channels a token, {patch} tokens a patch: too many")
    if config.vocabulary > 1 << TOKEN_BITS:
        raise ValueError(f"{config.vocabulary} tokens: at most {1 << TOKEN_BITS}")
    plane, cells = 2 * patch * channels + 1, PLANE**channels
    local, hidden, vocabulary = config.local_width, config.local_hidden, config.vocabulary
    quantized("vae.embed", vocabulary, embedding)
    quantized("vae.encoder.patch", config.encoder.width, patch * embedding)
    stack("vae.encoder.stack", config.encoder)
    quantized("vae.encoder.places", vocabulary, channels)
    quantized("vae.encoder.shift", patch * channels, config.encoder.width)
    width = config.context.width
    quantized("vae.context.enter", width, plane)
    stack("vae.context.stack", config.context)
    for k in range(patch):
        if k:
            quantized(f"vae.context.mix.{k}", width, 2 * k * channels + 1)
        quantized(f"vae.context.heads.{k}.0", 2 * width, width)
        quantized(f"vae.context.heads.{k}.1", width, 2 * width)
        quantized(f"vae.context.heads.{k}.2", cells, width)
    quantized("vae.refiner.enter", config.refiner.width, plane)
    stack("vae.refiner.stack", config.refiner)
    quantized("vae.refiner.leave", patch * cells * cells, config.refiner.width)
    quantized("vae.decoder.enter", config.decoder.width, 2 * LEVEL * patch * channels + 1)
    stack("vae.decoder.stack", config.decoder)
    quantized("vae.decoder.slots", patch * local, config.decoder.width)
    quantized("vae.decoder.up", hidden, local)
    quantized("vae.decoder.down", local, hidden)
    width = config.exact.width
    quantized("vae.exact.enter_tokens", width, patch * embedding)
    quantized("vae.exact.enter_features", width, config.decoder.width)
    stack("vae.exact.stack", config.exact)
    quantized("vae.exact.slots", patch * local, width)
    quantized("vae.exact.bigrams", config.ngram_rows, config.ngram_width)
    quantized("vae.exact.trigrams", config.ngram_rows, config.ngram_width)
    quantized("vae.exact.kinds", KINDS, config.ngram_width)
    quantized("vae.exact.recent", local, 4 * embedding + 3 * config.ngram_width)
    for i in range(2):
        quantized(f"vae.exact.ups.{i}", hidden, local)
        quantized(f"vae.exact.downs.{i}", local, hidden)
    quantized("vae.exact.trust", 2, local)
    quantized("vae.readout.classes", config.classes, local)
    quantized("vae.readout.slots", config.classes, config.slots, local)
    found["vae.readout.class_of"] = (vocabulary,), "int32"
    found["vae.readout.slot_of"] = (vocabulary,), "int32"
    found["vae.readout.token_of"] = (config.classes, config.slots), "int32"
    quantized("search.states", config.vector, config.encoder.width)
    if config.word_rows:  # tokens and words, two integers of 4 bits in a byte
        if config.vector % 2:
            raise ValueError(f"vectors of {config.vector}: an odd number does not pack in bytes")
        rows = vocabulary + config.word_rows
        found["search.tokens.q"] = (rows, config.vector // 2), "uint8"
        found["search.tokens.scale"] = (rows, 1), "float32"
    else:
        quantized("search.tokens", vocabulary, config.vector)
    if config.vector % config.code_bytes:
        raise ValueError(f"codes of {config.code_bytes} bytes do not divide a vector of {config.vector}")
    found["search.codebook"] = (config.code_bytes, 256, config.vector // config.code_bytes), "float32"
    return found


def _size(shape: Shape) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
