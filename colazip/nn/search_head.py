"""Search vectors: pooled encoder states and token rows -> a unit vector, the same bits on every machine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colazip.config import ModelConfig
from colazip.nn.exact import ExactEmbedding, ExactLinear
from colazip.nn.layers import straight_through

# Summands live on a grid of 1/256 within +-127, so that up to 512 of them add up exactly in float32.
_GRID = 256.0
_TOP = 127.0


class SearchHead(nn.Module):
    """Sum over a text of a projection of each patch's encoder state and of a row for each token.

    The rows learn which tokens matter and where they point; the states bring in context.
    """

    codebook: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.states = ExactLinear(config.encoder.width, config.vector, norm=True, zero=True)
        self.tokens = ExactEmbedding(config.vocabulary, config.vector)
        # Centroids of the product quantizer behind the search codes [M, 256, D / M].
        self.register_buffer(
            "codebook", torch.zeros(config.code_bytes, 256, config.vector // config.code_bytes)
        )

    def forward(self, hidden: Tensor, tokens: Tensor, counts: Tensor) -> Tensor:
        """hidden [B, P, W], tokens int64 [B, P, K], counts int64 [B] -> sums over each segment [B, D]."""
        return self.patches(hidden, tokens, counts).sum(1)

    def patches(self, hidden: Tensor, tokens: Tensor, counts: Tensor) -> Tensor:
        """What each patch adds to the sum of a passage it lies in: [B, P, D], zero behind a segment's end."""
        patch = tokens.shape[-1]
        real = torch.arange(tokens.shape[1] * patch, device=tokens.device)[None] < counts[:, None]
        real = real.view(tokens.shape)
        rows = (_on_grid(self.tokens(tokens)) * real[..., None]).sum(2)  # [B, P, D]
        states = _on_grid(self.states(hidden)) * real[..., :1]
        return rows + states


def _on_grid(x: Tensor) -> Tensor:
    scaled = x.clamp(-_TOP, _TOP) * _GRID
    rounded = torch.round(scaled)
    return (straight_through(scaled, rounded) if x.requires_grad else rounded) / _GRID
