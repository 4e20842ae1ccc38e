"""The transformer block of every coding network: exact arithmetic, parallel over positions or one step at a
time."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from colazip.nn.exact import (
    ExactLinear,
    exact_kernels,
    exact_mlp,
    integer_softmax,
    quantize_rows,
    runs_of_rows,
    softmax_of_steps,
    training_kernels,
)
from colazip.nn.grid import ATTENTION_KEYS, TABLE_STEPS, VALUE_STEPS, alibi_slopes
from colazip.nn.shapes import hidden_width

TEMPERATURE_UNIT = 1e-4  # scores are sums of products of integers up to 127
_QUERIES = 64  # that meet their keys at once on a CPU
_LN2 = math.log(2.0)


class StepCache:
    """Keys and values of one block for lanes that advance together, int8 [lanes, heads, positions, width].

    Lanes are sorted longest first, so that those still active are a prefix. Storage grows as positions are
    reached and forgets lanes that have ended: short lanes never pay for the longest.
    """

    def __init__(self, lanes: int, heads: int, width: int, device: torch.device) -> None:
        self.key = torch.zeros(lanes, heads, 8, width, dtype=torch.int8, device=device)
        self.value = torch.zeros_like(self.key)

    def put(self, position: int, key: Tensor, value: Tensor) -> None:
        """Store one position of the first n lanes, integers [n, heads, width]."""
        n = len(key)
        if position >= self.key.shape[2]:
            self.key, self.value = (
                torch.cat([old[:n], torch.zeros_like(old[:n])], 2) for old in (self.key, self.value)
            )
        self.key[:n, :, position] = key.to(torch.int8)
        self.value[:n, :, position] = value.to(torch.int8)

    def get(self, n: int, positions: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first n lanes up to a position, float32 [n, heads, positions, width]."""
        return self.key[:n, :, :positions].float(), self.value[:n, :, :positions].float()


class ExactBlock(nn.Module):
    """Pre-norm attention and squared-ReLU MLP. x: [B, P, D] -> [B, P, D]."""

    slopes: Tensor

    def __init__(self, width: int, heads: int, hidden: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = ExactLinear(width, 3 * width, norm=True)
        self.out = ExactLinear(width, width, zero=True)
        self.up = ExactLinear(width, hidden, norm=True)
        self.down = ExactLinear(hidden, width, zero=True)
        self.temperature = nn.Parameter(torch.full((heads,), 0.75))
        self.register_buffer("slopes", torch.from_numpy(alibi_slopes(heads)), persistent=False)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, P, D] -> queries, keys, values as integers [B, H, P, W], in float32, or in bfloat16 where a GPU
        trains."""
        batch, length, width = x.shape
        if self.qkv.weight is not None and (kernels := training_kernels(x.device)) is not None:
            q, k, v = kernels.FusedProjection.apply(self.qkv(x), self.heads)
            return q, k, v
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        return _round_rows(q), _round_rows(k), _round_values(v)

    def _factor(self) -> Tensor:
        """What products of queries and keys are multiplied by for scores in steps of the table of weights:
        [H]."""
        return self.temperature * TEMPERATURE_UNIT * float(TABLE_STEPS)

    def _in_steps(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """That, [H, 1, 1], and what is taken off then, [H, Q, K]."""
        factor = self._factor()[:, None, None]
        return factor, self.slopes[:, None, None] * (distance * float(TABLE_STEPS))

    def _scores(self, q: Tensor, k: Tensor, distance: Tensor) -> Tensor:
        """log2 attention scores [B, H, Q, K] of integer queries and keys; distance [Q, K] in positions."""
        # As in `_attend`.
        scaled = (q @ k.transpose(-1, -2)) * (self.temperature * TEMPERATURE_UNIT)[:, None, None]
        return scaled - self.slopes[:, None, None] * distance

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, distance: Tensor, valid: Tensor | None) -> Tensor:
        """Exact attention over integers [B, H, P, W] without gradients: [B, P, H * W].

        A few queries of a few lanes at a time, so that their scores stay in the cache; a causal block leaves
        out keys that come later.
        """
        batch, heads, length, width = q.shape
        mixed = q.new_empty(batch, length, heads, width)
        factor, penalty = self._in_steps(distance)
        queries = _QUERIES if q.device.type == "cpu" else length
        for lo in range(0, length, queries):
            hi = min(length, lo + queries)
            keys = hi if self.causal else length
            far = penalty[:, lo:hi, :keys].contiguous()
            later = torch.ones(hi - lo, hi - lo, dtype=torch.bool, device=q.device).triu_(1)
            for at, end in runs_of_rows(batch, heads * (hi - lo) * keys, q.device):
                # Each operation rounds on its own; the product of integers is exact.
                scores = q[at:end, :, lo:hi] @ k[at:end, :, :keys].transpose(-1, -2)
                scores.mul_(factor).sub_(far)
                if self.causal:
                    scores[..., lo:].masked_fill_(later, -torch.inf)
                elif valid is not None:
                    scores.masked_fill_(~valid[at:end, None, None, :], -torch.inf)
                weights, total = softmax_of_steps(scores)
                out = mixed[at:end, lo:hi].transpose(1, 2)
                torch.div(weights @ v[at:end, :, :keys], total.mul_(VALUE_STEPS), out=out)
        return mixed.flatten(2)

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        if self.out.weight is not None:
            x = x + self.out(mixed)
            return x + exact_mlp(x, self.up, self.down)
        x = self.out(mixed).add_(x)
        return exact_mlp(x, self.up, self.down).add_(x)

    def forward(self, x: Tensor, bias: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """bias: training only, from `training_bias`. valid: bool [B, P], keys that exist (causal blocks need
        none)."""
        if x.shape[1] > ATTENTION_KEYS:
            raise ValueError(f"{x.shape[1]} positions: at most {ATTENTION_KEYS} give exact attention")
        if self.qkv.weight is None and (kernels := exact_kernels(x.device)) is not None:
            own = kernels.project(x, self.qkv.q, self.qkv.scale, self.heads)
            seen = None if self.causal else valid
            mixed = kernels.attend(*own, self._factor(), self.slopes, seen, causal=self.causal)
            return self._finish(x, mixed)
        q, k, v = self._project(x)
        if bias is not None:
            # Float attention over the same integers: close to the exact path and several times faster.
            scaled = q * (self.temperature * (TEMPERATURE_UNIT * _LN2))[:, None, None]
            half = torch.bfloat16
            mixed = nn.functional.scaled_dot_product_attention(
                scaled.to(half), k.to(half), v.to(half), attn_mask=bias, scale=1.0
            ).float() * (1.0 / VALUE_STEPS)
        else:
            q, k, v = q.float(), k.float(), v.float()
            at = torch.arange(x.shape[1], device=x.device)
            distance = (at[:, None] - at[None, :]).abs().float()
            if not (torch.is_grad_enabled() and (q.requires_grad or self.temperature.requires_grad)):
                return self._finish(x, self._attend(q, k, v, distance, valid))
            scores = self._scores(q, k, distance)
            if self.causal:
                scores = scores.masked_fill(at[None, :] > at[:, None], -torch.inf)
            elif valid is not None:
                scores = scores.masked_fill(~valid[:, None, None, :], -torch.inf)
            mixed = _mix(scores, v)
            mixed = straight_through(torch.softmax(scores * _LN2, -1) @ v / VALUE_STEPS, mixed)
        return self._finish(x, mixed.transpose(1, 2).reshape(x.shape))

    def cache(self, lanes: int) -> StepCache:
        width = (self.qkv.q if self.qkv.weight is None else self.qkv.weight).shape[1]
        return StepCache(lanes, self.heads, width // self.heads, self.slopes.device)

    def step(self, x: Tensor, position: int, cache: StepCache) -> Tensor:
        """One position of the first n lanes: x [n, D] -> [n, D], equal to `forward` at that position."""
        if self.qkv.weight is None and (kernels := exact_kernels(x.device)) is not None:
            own = kernels.project(x[:, None], self.qkv.q, self.qkv.scale, self.heads)
            q, k, v = (part[:, :, 0] for part in own)
            cache.put(position, k, v)
            mixed = kernels.attend_step(q, cache.key, cache.value, position + 1, self._factor(), self.slopes)
            return self._finish(x, mixed)
        q, k, v = self._project(x[:, None])
        cache.put(position, k[:, :, 0], v[:, :, 0])
        distance = torch.arange(position, -1, -1, device=x.device).float()[None]
        factor, far = self._in_steps(distance)
        keys, values = cache.get(len(x), position + 1)
        weights, total = softmax_of_steps((q @ keys.transpose(-1, -2)).mul_(factor).sub_(far))
        mixed = (weights @ values).div_(total.mul_(VALUE_STEPS))
        return self._finish(x, mixed.view(x.shape))

    def training_bias(self, length: int, valid: Tensor) -> Tensor:
        """Additive attention mask in nats, bfloat16 [1 or B, H, P, P], for `forward` while training."""
        at = torch.arange(length, device=valid.device)
        distance = (at[:, None] - at[None, :]).abs().float()
        bias = -self.slopes[:, None, None] * distance * _LN2
        if self.causal:
            bias = bias.masked_fill(at[None, :] > at[:, None], -torch.inf)[None]
        else:
            bias = bias[None].masked_fill(~valid[:, None, None, :], -torch.inf)
        return bias.to(torch.bfloat16)


def _mix(scores: Tensor, v: Tensor) -> Tensor:
    weights, total = integer_softmax(scores)
    return (weights @ v) / (total * VALUE_STEPS)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, rounded: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return rounded

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return grads[0], None


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` in the forward pass, the gradient of `value` in the backward pass."""
    return _StraightThrough.apply(value, rounded)


def _round_rows(x: Tensor) -> Tensor:
    with torch.no_grad():
        q, scale = quantize_rows(x)
    return straight_through(x / scale, q) if x.requires_grad else q


def _round_values(v: Tensor) -> Tensor:
    scaled = (v * VALUE_STEPS).clamp(-127.0, 127.0)
    return straight_through(scaled, torch.round(scaled)) if v.requires_grad else torch.round(scaled)


class ExactStack(nn.Module):
    """Blocks of one width. x: [B, P, D] -> [B, P, D]."""

    def __init__(self, width: int, layers: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        hidden = hidden_width(width)
        self.blocks = nn.ModuleList(ExactBlock(width, heads, hidden, causal=causal) for _ in range(layers))

    def _each(self) -> list[ExactBlock]:
        return cast("list[ExactBlock]", list(self.blocks))

    def forward(self, x: Tensor, valid: Tensor, *, fast: bool = False) -> Tensor:
        """valid: bool [B, P]. fast: float attention, for training only."""
        bias = self._each()[0].training_bias(x.shape[1], valid) if fast else None
        for block in self._each():
            x = block(x, bias, valid)
        return x

    def caches(self, lanes: int) -> list[StepCache]:
        return [block.cache(lanes) for block in self._each()]

    def step(self, x: Tensor, position: int, caches: list[StepCache]) -> Tensor:
        for block, cache in zip(self._each(), caches, strict=True):
            x = block.step(x, position, cache)
        return x
