"""The prior: a block-causal diffusion transformer over latents, trained by flow matching.

After "Continuous Latent Diffusion Language Model" (arXiv 2605.06548); blocks and their training mask as in
block diffusion (arXiv 2503.09573), time conditioning by AdaLN-zero (arXiv 2212.09748), shared over layers as
in PixArt (arXiv 2310.00426). Time runs from 0 (noise) to 1 (data): x_t = (1 - t) * noise + t * data, velocity
= data - noise (arXiv 2210.02747). Nothing here decides a bit of what is stored, so ordinary float arithmetic
will do. The network knows nothing of text.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from colazip.config import ModelConfig, StackConfig

_TIME_FEATURES = 64
_KNOTS = 9


class History:
    """Keys and values of finished blocks, a list entry a layer: [B, H, positions, W]."""

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.length = 0


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.offset = nn.Parameter(torch.zeros(6 * width))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rotation: Tensor,
        mask: Tensor | None,
        past: History | None,
        layer: int,
        keep: bool,
    ) -> Tensor:
        """x [B, N, D], modulation [B, N, 6 D], rotation [N, W / 2, 2] -> [B, N, D]."""
        batch, length, width = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.offset).chunk(6, -1)
        h = functional.layer_norm(x, (width,)) * (1 + scale1) + shift1
        qkv = self.qkv(h).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q, k = (
            _rotate(functional.normalize(q, dim=-1), rotation),
            _rotate(functional.normalize(k, dim=-1), rotation),
        )
        if past is not None:
            old_k, old_v = past.keys[layer], past.values[layer]
            k, v = (
                (k, v)
                if old_k is None or old_v is None
                else (torch.cat([old_k, k], 2), torch.cat([old_v, v], 2))
            )
            if keep:
                past.keys[layer], past.values[layer] = k, v
        # Normalised queries and keys (arXiv 2010.04245) with the temperature that keeps attention sharp
        # enough.
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=math.sqrt(q.shape[-1]))
        x = x + gate1 * self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        h = functional.layer_norm(x, (width,)) * (1 + scale2) + shift2
        return x + gate2 * self.down(functional.gelu(self.up(h)))

    def start_open(self) -> None:
        """Begin as the identity by weights of zero, the gates open: learns faster than by closed gates."""
        width = self.out.out_features
        with torch.no_grad():
            self.out.weight.zero_()
            self.down.weight.zero_()
            self.offset.view(6, width)[[2, 5]] = 1.0


class DiTStack(nn.Module):
    """What diffusion transformers share: blocks of attention, conditioning on time, positions, the mask."""

    deviation: Tensor  # of each channel over the training data: the network sees unit variance

    def __init__(self, stack: StackConfig, block: int, time_width: int) -> None:
        super().__init__()
        width, self.block, self.layers = stack.width, block, stack.layers
        self.head_width = width // stack.heads
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, time_width), nn.SiLU())
        self.modulate = nn.Linear(time_width, 6 * width)
        self.blocks = nn.ModuleList(_Block(width, stack.heads) for _ in range(stack.layers))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def modulation(self, t: Tensor) -> Tensor:
        """t [...] in 0..1 -> [..., 6 D]."""
        rate = torch.exp(
            torch.arange(_TIME_FEATURES // 2, device=t.device) * (-math.log(10000.0) / (_TIME_FEATURES // 2))
        )
        angle = t[..., None] * 1000.0 * rate
        modulation: Tensor = self.modulate(self.time(torch.cat([angle.cos(), angle.sin()], -1)))
        return modulation

    def rotation(self, start: int, length: int, device: torch.device) -> Tensor:
        half = self.head_width // 2
        rate = 10000.0 ** (-torch.arange(half, device=device) / half)
        angle = torch.arange(start, start + length, device=device)[:, None] * rate
        return torch.stack([angle.cos(), angle.sin()], -1)

    def training_mask(self, valid: Tensor, history: Tensor) -> Tensor:
        """Which of the clean and the noisy vectors see which: bool [B, 2 P queries, 2 P keys].

        valid bool [B, P]; history bool [B], False hides the finished blocks.
        """
        length = valid.shape[1]
        block = torch.arange(length, device=valid.device) // self.block
        same, before = block[:, None] == block[None], block[:, None] > block[None]
        past = (before[None] & history[:, None, None]).expand(len(valid), -1, -1)
        own = same[None].expand(len(valid), -1, -1)
        mask = torch.cat([torch.cat([past | own, torch.zeros_like(own)], 2), torch.cat([past, own], 2)], 1)
        mask = mask & valid.repeat(1, 2)[:, None, :]
        return mask | torch.eye(2 * length, dtype=torch.bool, device=valid.device)

    def run(self, x: Tensor, t: float, past: History, valid: Tensor | None, *, keep: bool) -> Tensor:
        """One block [B, n, D] at time t through the stack, after the finished blocks in `past`, which it is
        to join or not."""
        modulation = self.modulation(torch.full(x.shape[:2], t, device=x.device))
        rotation = self.rotation(past.length, x.shape[1], x.device)
        mask = None
        if valid is not None:
            mask = functional.pad(valid, (past.length, 0), value=True)[:, None, None]
        for i, layer in enumerate(self.blocks):
            x = layer(x, modulation, rotation, mask, past, i, keep)
        return x


class DiT(DiTStack):
    """Velocity of noisy vectors given the finished blocks before them, and what is known of the vectors.

    channels: of a vector; block: vectors of a block. Nothing in here knows what the vectors stand for.
    """

    knots: Tensor
    whole = False  # hears what is known within the block and before it

    def __init__(self, channels: int, stack: StackConfig, block: int) -> None:
        super().__init__(stack, block, stack.width)
        width, self.channels = stack.width, channels
        self.enter = nn.Linear(channels, width)
        # What a sum of the values can't say: hinges, as any function of one value is linear in them (a text's
        # latents are places of tokens, and neighbours need not be alike), and what is known of the values.
        self.register_buffer("knots", torch.linspace(-2.0, 2.0, _KNOTS), persistent=False)
        self.bend = nn.Sequential(
            nn.Linear((_KNOTS + 2) * channels, width), nn.GELU(), nn.Linear(width, width)
        )
        self.leave = nn.Linear(width, channels)
        for layer in (self.bend[2], self.leave):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.register_buffer("deviation", torch.ones(channels))

    @classmethod
    def for_text(cls, config: ModelConfig) -> DiT:
        """The prior over the latents of a Text VAE: a vector is a patch, K * C values."""
        return cls(config.patch * config.channels, config.prior, config.prior_block)

    def completed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """`state` of a model of an earlier release, with what it lacks as it stands here: without effect."""
        return {k: v for k, v in self.state_dict().items() if k.startswith("bend.")} | state

    def _enter(self, x: Tensor, known: Tensor | None) -> Tensor:
        """Vectors [B, N, C] and what is known of them [B, N, 2 C] (None: nothing) -> [B, N, D]."""
        if known is None:
            known = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
        hinges = torch.relu(x[..., None] - self.knots).flatten(-2)
        y: Tensor = self.enter(x) + self.bend(torch.cat([hinges, known], -1))
        return y

    def forward(
        self,
        noisy: Tensor,
        t: Tensor,
        clean: Tensor,
        valid: Tensor,
        history: Tensor,
        known: Tensor | None = None,
    ) -> Tensor:
        """Training pass over whole sequences at once.

        noisy, clean [B, P, C] in units of the deviation; t [B, P], one value a block; valid bool [B, P];
        history bool [B], False hides the finished blocks (for classifier-free guidance); known [B, P, 2 C] of
        `knowledge`, None for nothing. Returns velocities [B, P, C].
        """
        length = noisy.shape[1]
        x = torch.cat([self._enter(clean, None), self._enter(noisy, known)], 1)
        modulation = self.modulation(torch.cat([torch.ones_like(t), t], 1))
        rotation = self.rotation(0, length, x.device).repeat(2, 1, 1)
        mask = self.training_mask(valid, history)
        for i, layer in enumerate(self.blocks):
            x = layer(x, modulation, rotation, mask[:, None], None, i, False)
        return self.leave(functional.layer_norm(x[:, length:], x.shape[-1:]))

    def velocity(
        self, x: Tensor, t: float, past: History, known: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Velocity of one noisy block [B, n, C] at time t after the finished blocks in `past`.

        known [B, n, 2 C] of `knowledge`; valid bool [B, n], None if all of the block is there.
        """
        x = self.run(self._enter(x, known), t, past, valid, keep=False)
        return self.leave(functional.layer_norm(x, (self.enter.out_features,)))

    def finish(self, x: Tensor, past: History, valid: Tensor | None = None) -> None:
        """Append a finished block [B, n, C] to `past`. Where some of it is not valid, the sequence ends."""
        self.run(self._enter(x, None), 1.0, past, valid, keep=True)
        past.length += x.shape[1]


def knowledge(centre: Tensor, reach: Tensor) -> Tensor:
    """What is known of values, as the network sees it: each lies within `reach` of `centre`.

    Both [..., C] in units of the deviation, reach 0 where a value is known and inf where nothing is.
    Returns [..., 2 C]: how sure (1 to 0), and the centre times that.
    """
    sure = 1.0 / (1.0 + reach)
    return torch.cat([sure, torch.where(sure > 0, centre, 0.0) * sure], -1)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864): x [B, H, N, W], rotation [N, W / 2, 2]."""
    a, b = x.chunk(2, -1)
    cos, sin = rotation[..., 0], rotation[..., 1]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
