"""What the diffusion prior does with stored latents: regenerate a record, from its gist reading to free
variation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from colazip.errors import UsageError
from colazip.layers import GIST, PLAIN, Block
from colazip.nn.dit import DiT, History
from colazip.nn.grid import LEVEL

if TYPE_CHECKING:
    from colazip.codec import Codec


def regenerate(
    codec: Codec, parts: Sequence[tuple[Block, int]], *, strength: float = 0.3, steps: int = 8, seed: int = 0
) -> str:
    """Text of a record's parts, read from latents that were noised and denoised by the prior.

    strength: 0 gives the gist reading, 1 starts from noise alone; in between the latents are taken back to
    time 1 - strength of the flow and carried forward again in `steps` Euler steps, block after block. Parts
    kept in PLAIN have no latents and come back as they are. Raises UsageError on values out of range.
    """
    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"strength {strength}: must lie between 0 and 1")
    if not 1 <= steps <= 1000:
        raise UsageError(f"steps {steps}: must lie between 1 and 1000")
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for block, slot in parts:
        segments = codec.latents(block).get(slot)
        if segments is None:
            only = Block(block.count, {n: v for n, v in block.layers.items() if n in (GIST, PLAIN)})
            texts.append(codec.read_gist([only])[0][slot])
            continue
        for levels, count in segments:
            drawn = resample(codec.model.prior, levels, strength=strength, steps=steps, generator=generator)
            tokens = codec.read_levels(drawn, count)
            texts.append(codec.model.tokenizer.decode(tokens.tolist()).decode("utf-8", "replace"))
    return "".join(texts)


@torch.inference_mode()
def resample(
    prior: DiT, levels: np.ndarray, *, strength: float, steps: int, generator: torch.Generator
) -> np.ndarray:
    """Latent levels [P, C] -> new levels [P, C]: noised to time 1 - strength and denoised, block by block."""
    if strength == 0.0:
        return levels
    device = prior.deviation.device
    data = torch.from_numpy(np.ascontiguousarray(levels, np.float32)).to(device)[None] / prior.deviation
    past = History(prior.layers)
    result = []
    for lo in range(0, data.shape[1], prior.block):
        target = data[:, lo : lo + prior.block]
        noise = torch.randn(target.shape, generator=generator).to(device)
        x = strength * noise + (1.0 - strength) * target
        x = integrate(prior, x, past, start=1.0 - strength, steps=steps)
        rounded = torch.round(x * prior.deviation).clamp(-LEVEL, LEVEL)
        prior.finish(rounded / prior.deviation, past)
        result.append(rounded)
    return torch.cat(result, 1)[0].cpu().numpy()


def integrate(prior: DiT, x: Tensor, past: History, *, start: float, steps: int) -> Tensor:
    """Euler's method along the flow from time `start` to 1. x [B, n, C] in units of the prior's deviation."""
    for i in range(steps):
        t = start + (1.0 - start) * i / steps
        x = x + prior.velocity(x, t, past) * ((1.0 - start) / steps)
    return x
