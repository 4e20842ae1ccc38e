"""The Text VAE of "Continuous Latent Diffusion Language Model" (arXiv 2605.06548), in float arithmetic.

One token becomes one latent of a few floats (or a patch of tokens does); encoder and decoder are causal
transformers (pre-norm, rotary positions, SwiGLU). Nothing here codes an archive: those networks are in
nn/vae.py and compute in integers. The prior over these latents is in nn/cola_dit.py.

With the published shape, 4 + 4 layers of width 1,536 over 100,278 tokens, the embedding and the output
matrix being two, this VAE has 497 M parameters; the paper says 500 M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class ColaConfig:
    """Shape of a Text VAE and its latent prior. The defaults are those published for the 2 B model."""

    name: str
    vocabulary: int = 100_278
    patch: int = 1  # tokens a latent
    latent: int = 16  # floats a latent
    context: int = 512  # tokens that see each other
    vae_width: int = 1536
    vae_hidden: int = 6144  # both halves of the SwiGLU
    vae_layers: int = 4  # of the encoder, and as many of the decoder
    vae_heads: int = 12
    prior_width: int = 2048
    prior_layers: int = 24
    prior_heads: int = 16
    prior_expand: int = 4
    block: int = 16  # latents of a block of the prior

    @property
    def positions(self) -> int:
        """Latents of a full context."""
        return -(-self.context // self.patch)


def rotation(positions: Tensor, head_width: int, base: float) -> Tensor:
    """Cosines and sines of rotary positions (arXiv 2104.09864): [P] -> [P, W / 2, 2]."""
    half = head_width // 2
    rate = base ** (-torch.arange(half, device=positions.device) / half)
    angle = positions[:, None] * rate
    return torch.stack([angle.cos(), angle.sin()], -1)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """x [B, H, P, W] turned by `rotation`."""
    a, b = x.chunk(2, -1)
    cosine, sine = turn[..., 0].to(x.dtype), turn[..., 1].to(x.dtype)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)


class KeysValues:
    """What one layer remembers of earlier positions: keys and values [B, H, P, W]."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def joined(self, key: Tensor, value: Tensor, *, keep: bool) -> tuple[Tensor, Tensor]:
        """Past and new keys and values; with `keep` the new ones are remembered."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], 2), torch.cat([self.value, value], 2)
        if keep:
            self.key, self.value = key, value
        return key, value


class Layer(nn.Module):
    """What the layers of both networks share: with `recompute` set, a training pass keeps their inputs alone
    and computes the rest again when the gradient is due (activation checkpointing)."""

    recompute = False

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.run, x, *rest, use_reentrant=False, preserve_rng_state=False)
        return self.run(x, *rest)

    def run(self, x: Tensor, *rest: Any) -> Tensor:
        raise NotImplementedError


class VAELayer(Layer):
    """Pre-norm causal attention and SwiGLU. x [B, P, D] -> [B, P, D]."""

    def __init__(self, config: ColaConfig) -> None:
        super().__init__()
        width = config.vae_width
        self.heads = config.vae_heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, config.vae_hidden, bias=False)
        self.down = nn.Linear(config.vae_hidden // 2, width, bias=False)

    def run(self, x: Tensor, turn: Tensor, past: KeysValues | None = None, skip: int = 0) -> Tensor:
        """turn: `rotation` of the positions. past: positions before x, which x is added to; None while
        training. skip: so many of the first positions are seen by those after them, and not returned."""
        batch, length, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, P, W]
        q, k = rotate(q, turn)[:, :, skip:], rotate(k, turn)
        if past is None and not skip:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = (k, v) if past is None else past.joined(k, v, keep=True)
            before = k.shape[2] - q.shape[2]
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device).tril(before)
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x[:, skip:] + self.out(mixed.transpose(1, 2).reshape(batch, length - skip, width))
        value, gate = self.up(self.before_mlp(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * value)


class _Stack(nn.Module):
    """Layers over positions that may follow others."""

    def __init__(self, config: ColaConfig) -> None:
        super().__init__()
        self.head_width = config.vae_width // config.vae_heads
        self.layers = nn.ModuleList(VAELayer(config) for _ in range(config.vae_layers))
        self.norm = nn.LayerNorm(config.vae_width)

    def forward(
        self, x: Tensor, start: int = 0, past: list[KeysValues] | None = None, skip: int = 0
    ) -> Tensor:
        at = torch.arange(start, start + x.shape[1], device=x.device)
        turn = rotation(at, self.head_width, 500_000.0)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x, turn, None if past is None else past[index], skip if index == last else 0)
        return self.norm(x)


class Encoder(nn.Module):
    """q(z | x): tokens -> mean and log-variance of each latent."""

    def __init__(self, config: ColaConfig) -> None:
        super().__init__()
        width = config.vae_width
        self.patch, self.latent = config.patch, config.latent
        self.embed = nn.Embedding(config.vocabulary, width)
        self.hidden = nn.Parameter(torch.zeros(width))  # stands for a token that is masked
        self.merge = nn.Linear(config.patch * width, width, bias=False) if config.patch > 1 else nn.Identity()
        self.stack = _Stack(config)
        self.leave = nn.Linear(width, 2 * config.latent)

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens int64 [B, T], T a multiple of the patch; masked bool [B, T], tokens not to be seen.

        Returns mean and log-variance, float [B, P, C].
        """
        x = self.embed(tokens)
        if masked is not None:
            x = torch.where(masked[..., None], self.hidden.to(x.dtype), x)
        x = self.merge(x.unflatten(1, (-1, self.patch)).flatten(2))
        mean, log_variance = self.leave(self.stack(x)).float().chunk(2, -1)
        return mean, log_variance.clamp(-20.0, 10.0)


class Decoder(nn.Module):
    """p(x | z): latents -> logits of each token from the latents up to its own."""

    def __init__(self, config: ColaConfig) -> None:
        super().__init__()
        width = config.vae_width
        self.patch = config.patch
        self.enter = nn.Linear(config.latent, width)
        self.stack = _Stack(config)
        self.split = nn.Linear(width, config.patch * width, bias=False) if config.patch > 1 else nn.Identity()
        self.head = nn.Linear(width, config.vocabulary, bias=False)

    def states(
        self, z: Tensor, start: int = 0, past: list[KeysValues] | None = None, skip: int = 0
    ) -> Tensor:
        """z [B, P, C] -> what the head reads for each token, [B, (P - skip) * K, D]. past: the latents before
        z, `start` of them, one entry a layer. skip: of so many first latents the tokens aren't wanted."""
        x = self.enter(z.to(self.enter.weight.dtype))
        return self.split(self.stack(x, start, past, skip)).unflatten(-1, (self.patch, -1)).flatten(1, 2)

    def forward(self, z: Tensor, start: int = 0, past: list[KeysValues] | None = None) -> Tensor:
        """Logits of each token [B, P * K, V], in nats; arguments as of `states`."""
        return self.head(self.states(z, start, past))

    def memory(self) -> list[KeysValues]:
        """What `states` needs to go on after earlier latents; empty."""
        return [KeysValues() for _ in self.stack.layers]


class ColaVAE(nn.Module):
    """Encoder and decoder. The latents that the prior sees are (z - shift) / scale, about unit variance."""

    shift: Tensor
    scale: Tensor

    def __init__(self, config: ColaConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.register_buffer("shift", torch.zeros(config.latent))
        self.register_buffer("scale", torch.ones(config.latent))

    def initialize(self) -> None:
        """Draw the weights; call it once they are materialized. Every layer starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.06, b=0.06)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, VAELayer):
                nn.init.zeros_(module.out.weight)
                nn.init.zeros_(module.down.weight)
        nn.init.normal_(self.encoder.hidden, std=0.02)
        # Latents of about unit size with little noise: the decoder has something to read from the start.
        nn.init.normal_(self.encoder.leave.weight, std=self.config.vae_width**-0.5)
        with torch.no_grad():
            self.encoder.leave.bias[self.config.latent :] = -4.0
            self.shift.zero_()
            self.scale.fill_(1.0)
