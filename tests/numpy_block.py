"""One block of the exact networks a second time: NumPy, sums of int64, everything else in float32."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

F = np.float32
Array = np.ndarray
Root = Callable[[Array], Array]


def quantize_rows(x: Array) -> tuple[Array, Array]:
    """[N, K] -> int64 [N, K], float32 scale [N, 1]."""
    top = np.abs(x).max(-1, keepdims=True)
    top = np.where(top >= F(2.0**-121), top, F(1))
    return np.rint(x * (F(1) / top * F(127))).astype(np.int64), top / F(127)


def linear(x: Array, weight: Array, *, norm: bool = False, root: Root = np.sqrt) -> Array:
    """[N, K] -> [N, M]."""
    q, scale = quantize_rows(x)
    qw, scale_w = quantize_rows(weight)
    if norm:
        squares = np.maximum((q * q).sum(-1, keepdims=True), 1).astype(F)
        scale = F(1) / root(squares / F(q.shape[-1]))
    return (q @ qw.T).astype(F) * scale * scale_w.T


def attention_table() -> list[int]:
    """round(255 * 2**(-i / 32)), i < 320, by comparing 32nd powers of integers: no root is ever taken."""
    table = []
    for i in range(320):
        # The largest n with n - 1/2 <= 255 * 2**(-i / 32), that is (2n - 1)**32 * 2**i <= 510**32.
        n = 255
        while n > 0 and Fraction(2 * n - 1) ** 32 * 2**i > 510**32:
            n -= 1
        table.append(n)
    return table


TABLE = np.array(attention_table())


def attend(q: Array, k: Array, v: Array, temperature: F, slope: F, *, causal: bool) -> Array:
    """One head of one text: float32 [P, W] each -> [P, W]. Every query looks only at the keys it may see."""
    length = len(q)
    qi, _ = quantize_rows(q)
    ki, _ = quantize_rows(k)
    vi = np.rint(np.clip(v * F(32), F(-127), F(127))).astype(np.int64)
    out = np.empty_like(v)
    for p in range(length):
        keys = np.arange(p + 1 if causal else length)
        product = (ki[keys] @ qi[p]).astype(F)
        scores = product * (temperature * F(1e-4)) - slope * np.abs(keys - p).astype(F)
        steps = np.rint((scores.max() - scores) * F(32))
        weights = TABLE[np.minimum(steps, 319).astype(np.int64)]
        out[p] = (weights @ vi[keys]).astype(F) / (F(weights.sum()) * F(32))
    return out


def block(x: Array, weights: dict[str, Array], heads: int, *, causal: bool, root: Root = np.sqrt) -> Array:
    """One text, float32 [P, D] -> [P, D]. weights: the block's state_dict as arrays; root: square roots."""
    each = x.shape[1] // heads
    q, k, v = np.split(linear(x, weights["qkv.weight"], norm=True, root=root), 3, axis=1)
    slopes = [F(2.0 ** -(1 + round(7 * h / max(1, heads - 1)))) for h in range(heads - 1)] + [F(0)]
    mixed = np.concatenate(
        [
            attend(
                q[:, h * each : (h + 1) * each],
                k[:, h * each : (h + 1) * each],
                v[:, h * each : (h + 1) * each],
                weights["temperature"][h],
                slopes[h],
                causal=causal,
            )
            for h in range(heads)
        ],
        axis=1,
    )
    x = x + linear(mixed, weights["out.weight"])
    up = np.maximum(linear(x, weights["up.weight"], norm=True, root=root), F(0))
    return x + linear(up * up, weights["down.weight"])
