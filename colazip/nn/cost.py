"""Multiplications that coding takes, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from colazip.config import ModelConfig, StackConfig
from colazip.nn.shapes import coding_shapes


@dataclass(frozen=True)
class Cost:
    """Multiply-adds a patch in the products with weights, and in attention over `positions` patches."""

    coder: int  # the gist
    decoder: int  # what its open tokens are
    attention: int

    @property
    def pack(self) -> int:
        """All layers of a patch, written."""
        return self.coder + self.decoder + self.attention

    @property
    def unpack(self) -> int:
        """The exact text of a patch, read."""
        return self.pack


def cost(config: ModelConfig, positions: int) -> Cost:
    """positions: patches of a lane; a causal network attends to half of them on average."""
    products = dict.fromkeys(("coder", "decoder"), 0)
    for name, (shape, dtype) in coding_shapes(config).items():
        if dtype != "int8":
            continue
        part, times = _use(name, config)
        if part:
            products[part] += shape[-1] * shape[-2] * times
    if config.conditional:  # how alike the slots of a class are; what a passage takes once is next to nothing
        for part in products:
            products[part] += config.patch * config.slots * config.vector
    attention = _attention(config.coder, positions, causal=True)
    attention += _attention(config.decoder, positions, causal=False)
    if config.pointer is not None:  # tokens meet the keys of those before
        attention += config.patch * positions * config.patch * config.pointer // 2
    return Cost(attention=attention, **products)


def _use(name: str, config: ModelConfig) -> tuple[str, int]:
    """(part, times a patch) of a matrix by its tensor's name; no part for tables that are looked up."""
    root, rest = name.split(".", 1)
    owner, _, kind = rest.removesuffix(".q").partition(".")
    kind = kind.split(".")[0]
    if root != "vae" or kind in ("bigrams", "trigrams", "kinds", "details", "about", ""):
        return "", 0
    if owner == "readout":  # one class's slots are computed, a matrix [slots, inputs] of the stack
        return "coder", config.patch
    return owner, 1 if kind in ("enter", "stack", "slots") else config.patch


def _attention(stack: StackConfig, positions: int, *, causal: bool) -> int:
    keys = positions / 2 if causal else positions
    return int(2 * keys * stack.width * stack.layers)
