"""Multiplications that coding takes, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from colazip.config import ModelConfig, StackConfig
from colazip.nn.shapes import coding_shapes


@dataclass(frozen=True)
class Cost:
    """Multiply-adds a patch in the products with weights, and in attention over `positions` patches."""

    encoder: int
    latents: int  # context model and refiner
    decoder: int
    exact: int
    reading: int  # the head of the gist reading
    attention: int

    @property
    def pack(self) -> int:
        """All layers of a patch, written."""
        return self.encoder + self.latents + self.decoder + self.exact + self.attention

    @property
    def unpack(self) -> int:
        """The exact text of a patch, read."""
        return self.latents + self.decoder + self.exact + self.attention


def cost(config: ModelConfig, positions: int) -> Cost:
    """positions: patches of a lane; a causal network attends to half of them on average."""
    products = dict.fromkeys(("encoder", "latents", "decoder", "exact", "reading"), 0)
    for name, (shape, dtype) in coding_shapes(config).items():
        if dtype != "int8":
            continue
        part, times = _use(name, config)
        if part:
            products[part] += shape[-1] * shape[-2] * times
    attention = 0
    for stack, causal in (
        (config.encoder, False),
        (config.context, True),
        (config.refiner, False),
        (config.decoder, False),
        (config.exact, True),
    ):
        attention += _attention(stack, positions, causal=causal)
    return Cost(attention=attention, **products)


def _use(name: str, config: ModelConfig) -> tuple[str, int]:
    """(part, times a patch) of a matrix by its tensor's name; no part for tables that are looked up."""
    root, rest = name.split(".", 1)
    if root != "vae":
        return "", 0
    owner = rest.split(".", 1)[0]
    if owner == "encoder":
        return ("", 0) if ".places." in name else ("encoder", 1)
    if owner in ("context", "refiner"):
        return "latents", 1
    if owner == "decoder":
        head = rest.split(".")[1] in ("slots", "up", "down")
        return ("reading", 1 if ".slots." in name else config.patch) if head else ("decoder", 1)
    if owner == "exact":
        kind = rest.split(".")[1]
        if kind in ("bigrams", "trigrams", "kinds"):
            return "", 0
        return "exact", config.patch if kind in ("recent", "ups", "downs", "trust") else 1
    if owner == "readout":  # one class's slots are computed, a matrix [slots, inputs] of the stack
        return "exact", config.patch
    return "", 0


def _attention(stack: StackConfig, positions: int, *, causal: bool) -> int:
    keys = positions / 2 if causal else positions
    return int(2 * keys * stack.width * stack.layers)
