"""Search vectors: rows of tokens and words, and pooled encoder states, summed over a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colazip.config import ModelConfig
from colazip.nn.exact import ExactLinear
from colazip.nn.layers import straight_through

# Summands live on a grid of 1/256 within +-127, so that up to 512 of them add up exactly in float32.
_GRID = 256.0
_TOP = 127.0


class SearchHead(nn.Module):
    """Sum over a text of a row for each token and word, and of a projection of each patch's encoder state.

    The rows learn which tokens matter and where they point; the states bring in context. `forward` gives the
    states' part; that of the rows needs no network and is `colazip.vectors.RowSums`. A head whose projection
    is zero is `silent`: its vectors come of the rows alone.
    """

    codebook: Tensor
    rows: nn.Parameter | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vocabulary = config.vocabulary
        self.states = ExactLinear(config.encoder.width, config.vector, norm=True, zero=True)
        # Of tokens, then of words; float while training, packed once shipped.
        self.rows = nn.Parameter(torch.randn(config.vocabulary + config.word_rows, config.vector) * 0.5)
        self.packed: tuple[Tensor, Tensor] | None = None
        # Centroids of the product quantizer behind the search codes [M, 256, D / M].
        self.register_buffer(
            "codebook", torch.zeros(config.code_bytes, 256, config.vector // config.code_bytes)
        )

    @property
    def trainable(self) -> nn.Parameter:
        """The rows, float32 [V + W, D]. Raises ValueError in a shipped head."""
        if self.rows is None:
            raise ValueError("the rows are packed: there is nothing to train")
        return self.rows

    def freeze(self, packed: Tensor, scale: Tensor) -> None:
        """Drop the float rows for those that ship, which `forward` does not read."""
        self.rows, self.packed = None, (packed, scale)

    @property
    def silent(self) -> bool:
        weight = self.states.q if self.states.weight is None else self.states.weight
        return not bool(weight.any())

    def forward(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """hidden [B, P, W], valid bool [B, P] -> sums over the patches of each lane [B, D]."""
        return (_on_grid(self.states(hidden)) * valid[..., None]).sum(1)


def _on_grid(x: Tensor) -> Tensor:
    scaled = x.clamp(-_TOP, _TOP) * _GRID
    rounded = torch.round(scaled)
    return (straight_through(scaled, rounded) if x.requires_grad else rounded) / _GRID
