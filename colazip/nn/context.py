"""The encoder of search vectors: what each word of a text adds to the text's vector, given the words around.

Its result is exact (`colazip.nn.exact`), so that codes are the same on every machine.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from colazip.config import ModelConfig
from colazip.nn.exact import ExactLinear
from colazip.nn.layers import ExactBlock


class ContextEncoder(nn.Module):
    """Sums of rows of each unit (`colazip.words.WordHash.units`) -> what context adds to them.

    vector: width of the rows and of the result.
    """

    def __init__(self, vector: int, width: int, layers: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.enter = ExactLinear(vector, 3 * width, norm=True)
        self.blocks = nn.ModuleList(ExactBlock(width, heads, hidden, causal=False) for _ in range(layers))
        self.leave = ExactLinear(width, vector, norm=True, zero=True)

    @classmethod
    def for_text(cls, config: ModelConfig) -> ContextEncoder:
        """The encoder of a model that has one; it adds nothing yet."""
        shape = config.search_encoder
        assert shape is not None
        return cls(config.vector, shape.width, shape.layers, shape.heads, shape.hidden)

    def forward(self, units: Tensor, valid: Tensor, *, fast: bool = False) -> Tensor:
        """units: [B, U, D], zeros where there is none; valid: bool [B, U] -> [B, U, D].

        fast: float attention, for training only.
        """
        own, before, after = self.enter(units).chunk(3, -1)
        edge = torch.zeros_like(own[:, :1])
        x = own + torch.cat([edge, before[:, :-1]], 1)
        x = x + torch.cat([after[:, 1:], edge], 1)
        blocks = cast("list[ExactBlock]", list(self.blocks))
        bias = blocks[0].training_bias(units.shape[1], valid) if fast else None
        for block in blocks:
            x = block(x, bias, valid)
        return self.leave(x) * valid[..., None]
