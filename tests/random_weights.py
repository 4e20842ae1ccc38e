"""Random weights for every parameter of a network."""

from __future__ import annotations

import torch
from torch import nn


def randomize(network: nn.Module, seed: int) -> None:
    """Draw all parameters anew, matrices at the scale that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
            else:  # the temperatures of attention: one head sharp, another flat
                parameter.uniform_(0.2, 1.5, generator=generator)
