"""What a passage's search code says about its tokens: side information for the coder and the decoder.

A search vector is a sum of rows, one for each token and word of the passage, so tokens whose rows lie near
it are likelier to be in the passage than others. A gist beside search codes is coded given them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from colazip.config import ModelConfig
from colazip.nn.exact import grouped_product, integer_matmul, quantize_rows
from colazip.nn.grid import LOOKED_UP

_VECTORS = 256  # that meet all tokens at once
_SHARPNESS = 10.0  # log2 units of a token whose row is the vector itself, where training starts


class Alike(NamedTuple):
    """What C vectors say of tokens, log2 units. q: int8 [C, D], scale: float32 [C, 1], the vectors; classes:
    float32 [C, classes], how like a class's likeliest token is; products: float32 [C, classes, slots], with
    the row of each token, where vectors are few enough to look that up."""

    q: Tensor
    scale: Tensor
    classes: Tensor
    products: Tensor | None


class Likeness(nn.Module):
    """How like each token is to a vector, in log2 units; how much of it counts, the networks decide.

    scale, shift: float32 [classes, slots], of each token.
    """

    rows: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = config.classes, config.slots
        self.scale = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.zeros(shape))
        # The search head's, which ships them: int8 [classes, slots, D].
        self.register_buffer("rows", torch.zeros(*shape, config.vector, dtype=torch.int8), persistent=False)

    def set_rows(self, rows: Tensor, token_of: Tensor) -> None:
        """rows: int8 [V, D], the integers of the search rows; token_of: int64 [classes, slots]."""
        self.rows = rows.to(token_of.device)[token_of].contiguous()

    def begin(self, rank: Tensor) -> None:
        """Where training starts. rank: int64 [classes, slots], of each token among all, 0 for the
        commonest."""
        length = self.rows.float().norm(dim=-1).clamp_min(1.0)
        frequency = 1.0 / (rank.float() + 10.0)  # Zipf's law
        with torch.no_grad():
            self.scale.copy_(_SHARPNESS / length)
            self.shift.copy_(torch.log2(frequency / frequency.sum(-1, keepdim=True)))

    def forward(self, vectors: Tensor) -> Alike:
        """Vectors float32 [C, D]."""
        q, scale = quantize_rows(vectors)
        q = q.to(torch.int8)
        flat = self.rows.flatten(0, 1)
        looked_up = len(q) <= LOOKED_UP
        classes, products = [], []
        for lo in range(0, len(q), _VECTORS):
            with torch.no_grad():
                raw = integer_matmul(q[lo : lo + _VECTORS], flat) * scale[lo : lo + _VECTORS]
            raw = raw.view(-1, *self.scale.shape)
            classes.append((raw * self.scale + self.shift).amax(-1))
            if looked_up:
                products.append(raw)
        return Alike(q, scale, torch.cat(classes), torch.cat(products) if looked_up else None)

    def slots(self, alike: Alike, which: Tensor, classes: Tensor) -> Tensor:
        """How like the tokens of a class are: vector int64 [N], class int64 [N] -> [N, slots]."""
        if alike.products is not None:
            raw = alike.products[which, classes]
        else:
            with torch.no_grad():
                raw = grouped_product(alike.q[which], self.rows, alike.scale[which], classes)
        return raw * nn.functional.embedding(classes, self.scale)
