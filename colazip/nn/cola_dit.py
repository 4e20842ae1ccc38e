"""The latent prior of arXiv 2605.06548: a block-causal diffusion transformer, trained by flow matching.

The block is that of nn/dit.py (AdaLN-zero, rotary positions, normalised queries and keys, clean and noisy
copy side by side under one mask as in arXiv 2503.09573), but every layer owns its modulation, as published:
24 layers of width 2,048 make 1.83 B parameters, of which the modulation is a third. It is computed once a
block of latents, which share their time, and so costs little. Time runs from 0 (noise) to 1 (data).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from colazip.nn.cola import ColaConfig, KeysValues, Layer, rotate, rotation

_TIME_FEATURES = 256


class PriorLayer(Layer):
    """x [B, N, D] -> [B, N, D]."""

    def __init__(self, config: ColaConfig) -> None:
        super().__init__()
        width, hidden = config.prior_width, config.prior_expand * config.prior_width
        self.heads, self.block = config.prior_heads, config.block
        self.modulate = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def run(
        self,
        x: Tensor,
        time: Tensor,
        turn: Tensor,
        mask: Tensor | None,
        past: KeysValues | None = None,
        keep: bool = False,
    ) -> Tensor:
        """time: as `_each_position` takes it, of width D."""
        batch, length, width = x.shape
        modulation = _each_position(self.modulate(time), length, self.block)  # [B or 1, N or 1, 6 D]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, -1)
        h = functional.layer_norm(x, (width,)) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (rotate(functional.normalize(part, dim=-1), turn) for part in (q, k))
        if past is not None:
            k, v = past.joined(k, v, keep=keep)
        # Of the published norms of queries and keys only the direction is kept (arXiv 2010.04245).
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=math.sqrt(q.shape[-1]))
        x = x + gate1 * self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        h = functional.layer_norm(x, (width,)) * (1 + scale2) + shift2
        return x + gate2 * self.down(functional.gelu(self.up(h), approximate="tanh"))

    def remember(self, x: Tensor, time: Tensor, turn: Tensor, past: KeysValues) -> None:
        """Append the keys and values of x, of one time [B or 1, 1, D]: all that the last layer is asked for
        of finished blocks."""
        batch, length, width = x.shape
        shift, scale = self.modulate(time).chunk(6, -1)[:2]
        h = functional.layer_norm(x, (width,)) * (1 + scale) + shift
        keys_values = functional.linear(h, self.qkv.weight[width:])
        k, v = keys_values.view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        past.joined(rotate(functional.normalize(k, dim=-1), turn), v, keep=True)


class ColaDiT(nn.Module):
    """Velocity of noisy latents given the finished blocks before them."""

    def __init__(self, config: ColaConfig) -> None:
        super().__init__()
        width = config.prior_width
        self.block = config.block
        self.head_width = width // config.prior_heads
        self.enter = nn.Linear(config.latent, width)
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(PriorLayer(config) for _ in range(config.prior_layers))
        self.last_modulate = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, config.latent)

    def initialize(self) -> None:
        """Draw the weights; call it once they are materialized. AdaLN-zero: the velocity starts at 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.06, b=0.06)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in self.layers:
            nn.init.zeros_(layer.modulate.weight)  # type: ignore[union-attr, arg-type]
        for module in (self.last_modulate, self.leave):
            nn.init.zeros_(module.weight)

    def embed_time(self, t: Tensor) -> Tensor:
        """t [...] in 0..1 -> [..., D]."""
        half = _TIME_FEATURES // 2
        rate = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000.0) / half))
        angle = t[..., None].float() * 1000.0 * rate
        features = torch.cat([angle.cos(), angle.sin()], -1).to(self.enter.weight.dtype)
        return functional.silu(self.time(features))

    def forward(self, noisy: Tensor, t: Tensor, clean: Tensor, valid: Tensor, history: Tensor) -> Tensor:
        """Training pass over whole sequences.

        noisy, clean [B, P, C]; t [B, blocks]; valid bool [B, P]; history bool [B], False hides the finished
        blocks (for classifier-free guidance, arXiv 2207.12598). Returns velocities [B, P, C].
        """
        length = noisy.shape[1]
        x = self.enter(torch.cat([clean, noisy], 1).to(self.enter.weight.dtype))
        time = self.embed_time(torch.cat([torch.ones_like(t[:, :1]), t], 1))
        turn = rotation(torch.arange(length, device=x.device), self.head_width, 10_000.0).repeat(2, 1, 1)
        mask = training_mask(valid, history, self.block)
        for layer in self.layers:
            x = layer(x, time, turn, mask)
        return self._leave(x, time)[:, -length:]

    def _leave(self, x: Tensor, time: Tensor) -> Tensor:
        modulation = _each_position(self.last_modulate(time), x.shape[1], self.block)
        shift, scale = modulation.chunk(2, -1)
        return self.leave(functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift).float()

    def memory(self) -> list[KeysValues]:
        """Keys and values of no finished blocks yet."""
        return [KeysValues() for _ in self.layers]

    def velocity(self, x: Tensor, t: float, start: int, past: list[KeysValues]) -> Tensor:
        """Velocity of one noisy block [B, n, C] at time t, at position `start`, after the blocks in
        `past`."""
        x, time, turn = self._enter(x, t, start)
        for layer, memory in zip(self.layers, past, strict=True):
            x = layer(x, time, turn, None, memory)
        return self._leave(x, time)

    def finish(self, x: Tensor, start: int, past: list[KeysValues]) -> None:
        """Append finished blocks [B, n, C] to `past`, which holds whole ones."""
        x, time, turn = self._enter(x, 1.0, start)
        of = torch.arange(start, start + x.shape[1], device=x.device) // self.block
        before = torch.arange(start + x.shape[1], device=x.device) // self.block
        mask = None if x.shape[1] <= self.block else of[:, None] >= before[None]
        for layer, memory in zip(self.layers[:-1], past, strict=False):
            x = layer(x, time, turn, mask, memory, True)
        self.layers[-1].remember(x, time, turn, past[-1])  # type: ignore[union-attr, operator]

    def _enter(self, x: Tensor, t: float, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """What layers take: states, the time, which all share, and the turns of the positions."""
        time = self.embed_time(torch.full((1, 1), t, device=x.device))
        at = torch.arange(start, start + x.shape[1], device=x.device)
        turn = rotation(at, self.head_width, 10_000.0)
        return self.enter(x.to(self.enter.weight.dtype)), time, turn


def _each_position(rows: Tensor, length: int, block: int) -> Tensor:
    """Rows of the distinct times -> rows of `length` positions: of one time [B, 1, W] as they are; of time 1
    and of each noisy block [B, 1 + blocks, W] those of the clean copy and the noisy one, [B, length, W].

    The gradient is a sum over each block, which an index would add up one by one.
    """
    if rows.shape[1] == 1:
        return rows
    half = length // 2
    noisy = rows[:, 1:, None].expand(-1, -1, block, -1).flatten(1, 2)[:, :half]
    return torch.cat([rows[:, :1].expand(-1, half, -1), noisy], 1)


def training_mask(valid: Tensor, history: Tensor, block: int) -> Tensor:
    """Who sees whom among [clean copy, noisy copy]: bool [B, 1, 2 P queries, 2 P keys].

    A clean latent sees its own and earlier blocks of the clean copy, a noisy one its own block of the noisy
    copy and earlier blocks of the clean copy. valid bool [B, P]: real latents. Each sees itself, so that no
    row is empty.
    """
    length = valid.shape[1]
    of = torch.arange(length, device=valid.device) // block
    same, before = of[:, None] == of[None], of[:, None] > of[None]
    past = before[None] & history[:, None, None]
    own = same[None].expand_as(past)
    mask = torch.cat([torch.cat([past | own, torch.zeros_like(own)], 2), torch.cat([past, own], 2)], 1)
    itself = torch.eye(2 * length, dtype=torch.bool, device=valid.device)
    return (mask & valid.repeat(1, 2)[:, None, :] | itself)[:, None]
