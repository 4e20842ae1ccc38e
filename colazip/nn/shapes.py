"""Shapes and types of the tensors that a model ships, from its configuration alone."""

from __future__ import annotations

from colazip.config import EncoderConfig, ModelConfig, StackConfig
from colazip.memory import KINDS, TOKEN_BITS
from colazip.nn.grid import MAX_K, POINTER_KEYS

Shape = tuple[int, ...]
_MAX_HIDDEN = 1024
_MAX_TENSOR = 1 << 28  # elements of one tensor: bounds what a hostile config.json asks for


def hidden_width(width: int) -> int:
    """Hidden units of the MLP in a block of this width."""
    return min(_MAX_HIDDEN, 4 * width)


def codebook_entry(config: ModelConfig, size: int) -> tuple[str, str]:
    """Name and NumPy type of the centroids of codes of `size` bytes."""
    return (
        ("search.codebook", "float32") if config.code_sizes is None else (f"search.codes.{size}", "float16")
    )


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

    def stack(name: str, config: StackConfig | EncoderConfig, hidden: int) -> None:
        if config.width % config.heads:
            raise ValueError(f"{name}: {config.heads} heads do not divide a width of {config.width}")
        if config.layers > 1024:
            raise ValueError(f"{name}: {config.layers} layers")
        width = config.width
        for i in range(config.layers):
            block = f"{name}.blocks.{i}"
            quantized(f"{block}.qkv", 3 * width, width)
            quantized(f"{block}.out", width, width)
            quantized(f"{block}.up", hidden, width)
            quantized(f"{block}.down", width, hidden)
            found[f"{block}.temperature"] = (config.heads,), "float32"

    patch, channels, embedding = config.patch, config.channels, config.embedding
    if patch > 64 or config.details > 16:
        raise ValueError(f"{patch} tokens a patch, {config.details} details: too many")
    if config.vocabulary > 1 << TOKEN_BITS:
        raise ValueError(f"{config.vocabulary} tokens: at most {1 << TOKEN_BITS}")
    local, hidden, vocabulary = config.local_width, config.local_hidden, config.vocabulary
    quantized("vae.embed", vocabulary, embedding)
    quantized("vae.places", vocabulary, channels)
    for name, inner in (("coder", config.coder), ("decoder", config.decoder)):
        quantized(f"vae.{name}.details", config.details, inner.width)
        quantized(f"vae.{name}.enter", inner.width, patch * embedding)
        stack(f"vae.{name}.stack", inner, hidden_width(inner.width))
        quantized(f"vae.{name}.slots", patch * local, inner.width)
    quantized("vae.decoder.near", local, 3 * embedding)
    quantized("vae.decoder.up", hidden, local)
    quantized("vae.decoder.down", local, hidden)
    quantized("vae.coder.bigrams", config.ngram_rows, config.ngram_width)
    quantized("vae.coder.trigrams", config.ngram_rows, config.ngram_width)
    quantized("vae.coder.kinds", KINDS, config.ngram_width)
    quantized("vae.coder.recent", local, 4 * embedding + 3 * config.ngram_width)
    for i in range(2):
        quantized(f"vae.coder.ups.{i}", hidden, local)
        quantized(f"vae.coder.downs.{i}", local, hidden)
    quantized("vae.coder.trust", 2, local)
    if config.pointer is not None:
        if config.segment * patch > POINTER_KEYS:
            raise ValueError(f"segments of {config.segment * patch} tokens: {POINTER_KEYS} can be pointed at")
        if max(config.classes, config.slots) > 128:
            raise ValueError("what is pointed at can be mixed with at most 128 classes and slots")
        quantized("vae.coder.pointer.both", 2 * config.pointer, local)
        quantized("vae.coder.pointer.sentinel", 1, local)
        found["vae.coder.pointer.temperature"] = found["vae.coder.pointer.offset"] = (1,), "float32"
    if config.conditional:
        quantized("vae.coder.about", config.coder.width, config.vector)
        quantized("vae.coder.heed", 2, local)
        quantized("vae.decoder.about", config.decoder.width, config.vector)
        quantized("vae.decoder.heed", 1, local)
        found["vae.likeness.scale"] = found["vae.likeness.shift"] = (config.classes, config.slots), "float32"
    quantized("vae.readout.classes", config.classes, local)
    quantized("vae.readout.slots", config.classes, config.slots, local)
    found["vae.readout.class_of"] = (vocabulary,), "int32"
    found["vae.readout.slot_of"] = (vocabulary,), "int32"
    found["vae.readout.token_of"] = (config.classes, config.slots), "int32"
    found["vae.readout.limits"] = (config.details, config.classes), "int32"
    if config.vector % 2:
        raise ValueError(f"vectors of {config.vector}: an odd number does not pack in bytes")
    # Of tokens, then of words: two integers of 4 bits in a byte.
    rows = vocabulary + config.word_rows
    if rows * config.vector > _MAX_TENSOR:
        raise ValueError(f"{rows} search rows of {config.vector}: larger than any tensor of this release")
    found["search.tokens.q"] = (rows, config.vector // 2), "uint8"
    found["search.tokens.scale"] = (rows, 1), "float32"
    if config.code_bytes not in config.codes or list(config.codes) != sorted(set(config.codes)):
        raise ValueError(f"code_sizes of {config.codes}: must ascend, with {config.code_bytes} among them")
    for size in config.codes:
        if config.vector % size:
            raise ValueError(f"codes of {size} bytes do not divide a vector of {config.vector}")
        name, kind = codebook_entry(config, size)
        found[name] = (size, 256, config.vector // size), kind
    if (encoder := config.search_encoder) is not None:
        quantized("search.encoder.enter", 3 * encoder.width, config.vector)
        stack("search.encoder", encoder, encoder.hidden)
        quantized("search.encoder.leave", config.vector, encoder.width)
    return found


def _size(shape: Shape) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
