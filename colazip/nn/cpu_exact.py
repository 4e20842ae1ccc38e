"""Exact layers of torch on a CPU, by the loops of `nn/exact_loops.py`; int8 products stay those of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from colazip.nn import exact_loops as loops
from colazip.nn.exact import Mix, fits_int8_kernel, integer_product, runs_of_rows
from colazip.nn.grid import ATTENTION_TABLE, FREQUENCY_TABLE

if TYPE_CHECKING:
    from colazip.nn.pointer import Aim, Known

_WEIGHTS = ATTENTION_TABLE.astype(np.int32)


def quantize(x: Tensor, *, norm: bool) -> tuple[Tensor, Tensor]:
    """float32 [N, K] -> integers int8 [N, K], and 1 / rms of the integers or what they stand for, [N, 1]."""
    q, factor = torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x), 1)
    loops.quantize_rows(x.contiguous().numpy(), q.numpy(), factor.numpy()[:, 0], norm)
    return q, factor


def look_up(q: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    """`ExactEmbedding` with int8 rows [N, D] and a scale a row: int64 [...] -> float32 [..., D]."""
    y = torch.empty(index.numel(), q.shape[1])
    loops.look_up(q.numpy(), scale.numpy()[:, 0], index.reshape(-1).numpy(), y.numpy())
    return y.view(*index.shape, q.shape[1])


def linear(x: Tensor, q: Tensor, scale: Tensor, *, norm: bool) -> Tensor:
    """`ExactLinear` with int8 weights [M, K] and a scale a row: float32 [N, K] -> [N, M]."""
    y = torch.empty(len(x), len(q))
    for lo, hi in runs_of_rows(len(x), max(q.shape), x.device):
        rounded, factor = quantize(x[lo:hi], norm=norm)
        loops.scale_rows(_product(rounded, q), factor.numpy()[:, 0], scale.numpy()[:, 0], y[lo:hi].numpy())
    return y


def mlp(x: Tensor, up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor], *, norm: bool) -> Tensor:
    """`exact_mlp` with int8 weights and scales: float32 [N, K] -> [N, M]."""
    y = torch.empty(len(x), len(down[0]))
    for lo, hi in runs_of_rows(len(x), len(up[0]), x.device):
        rounded, factor = quantize(x[lo:hi], norm=norm)
        inner, scale = torch.empty(hi - lo, len(up[0]), dtype=torch.int8), torch.empty(hi - lo).numpy()
        product = _product(rounded, up[0])
        loops.activate(product, factor.numpy()[:, 0], up[1].numpy()[:, 0], inner.numpy(), scale)
        loops.scale_rows(_product(inner, down[0]), scale, down[1].numpy()[:, 0], y[lo:hi].numpy())
    return y


def _product(a: Tensor, b: Tensor) -> np.ndarray:
    """Exact product of int8 matrices [N, K] x [M, K] -> [N, M], int32 or float32."""
    product: np.ndarray = integer_product(a, b).numpy()
    return product


def pick(q: Tensor, weights: Tensor, factor: Tensor, group: Tensor, scale: Tensor | None = None) -> Tensor:
    """Row i of int8 [N, K] by the matrix of its group, int8 [G, M, K], times its factor [N, 1] and those of
    the outputs [G, M, 1]: float32 [N, M]."""
    y = torch.empty(len(q), weights.shape[1])
    scales = np.empty((0, 0), np.float32) if scale is None else scale.numpy()[..., 0]
    loops.pick_rows(
        q.contiguous().numpy(),
        weights.numpy(),
        factor.contiguous().numpy()[:, 0],
        group.contiguous().numpy(),
        scales,
        scale is not None,
        y.numpy(),
    )
    return y


def project(x: Tensor, q: Tensor, scale: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [B, P, K] by the matrix of a block, int8 [3 * H * W, K], after normalizing -> queries, keys,
    values as integers, int8 [B, H, P, W] each."""
    batch, positions, inputs = x.shape
    rows = x.reshape(-1, inputs)
    parts = torch.empty(3, batch, heads, positions, len(q) // (3 * heads), dtype=torch.int8)
    for lo, hi in runs_of_rows(len(rows), len(q), x.device):
        rounded, factor = quantize(rows[lo:hi], norm=True)
        loops.project(_product(rounded, q), factor.numpy()[:, 0], scale.numpy()[:, 0], lo, *parts.numpy())
    return parts[0], parts[1], parts[2]


def attend(
    q: Tensor, k: Tensor, v: Tensor, factor: Tensor, slopes: Tensor, valid: Tensor | None, *, causal: bool
) -> Tensor:
    """Attention over integers int8 [B, H, P, W]: float32 [B, P, H * W]. factor, slopes: float32 [H], of
    products and of distances, for scores in steps of the table; valid: bool [B, P]."""
    batch, heads, length, width = q.shape
    y = np.empty((batch, length, heads * width), np.float32)
    by, slope, table = factor.detach().numpy(), slopes.numpy(), _WEIGHTS
    seen = np.ones((batch, length), bool) if valid is None else valid.numpy()
    fits = fits_int8_kernel(length, width) and fits_int8_kernel(length, length)
    kind, multiply = (torch.int32, torch._int_mm) if fits else (torch.float32, _multiply_floats)
    products, mixed = torch.empty(length, length, dtype=kind), torch.empty(length, width, dtype=kind)
    weights, total = torch.empty(length, length, dtype=torch.int8), np.empty(length, np.int32)
    meant, shares, held, values = products.numpy(), mixed.numpy(), weights.numpy(), v.numpy()
    queries, said = q.flatten(0, 1).unbind(), v.flatten(0, 1).unbind()
    for i, keys in enumerate(k.flatten(0, 1).transpose(1, 2).unbind()):
        b, h = divmod(i, heads)
        multiply(queries[i], keys, out=products)
        loops.weigh(meant, by[h], slope[h], seen[b], causal, table, held, total)
        multiply(weights, said[i], out=mixed)
        loops.share(shares, values[b, h], total, y[b], h * width)
    return torch.from_numpy(y)


def _multiply_floats(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """Product of int8 matrices in float32, where that is faster."""
    return torch.mm(a.float(), b.float(), out=out)


def attend_step(
    q: Tensor, keys: Tensor, values: Tensor, positions: int, factor: Tensor, slopes: Tensor
) -> Tensor:
    """One query, int8 [n, H, W], of the latest position, over the first `positions` of int8 [n or more,
    H, room, W]: float32 [n, H * W]."""
    lanes, heads, width = q.shape
    y = torch.empty(lanes, heads * width)
    loops.attend_step(
        q.contiguous().numpy(),
        keys.numpy(),
        values.numpy(),
        positions,
        factor.detach().numpy(),
        slopes.numpy(),
        ATTENTION_TABLE,
        y.numpy(),
    )
    return y


def cumulative(logits: Tensor, mix: Mix | None = None) -> Tensor:
    """Cumulative integer frequencies of logits [N, A]: int32 [N, A + 1]."""
    cdf = torch.empty(len(logits), logits.shape[1] + 1, dtype=torch.int32)
    given = logits.contiguous().numpy(), FREQUENCY_TABLE
    if mix is None:
        loops.cumulative(*given, cdf.numpy())
    else:
        own, pointed = mix.own.contiguous().numpy(), mix.pointed.contiguous().numpy()
        loops.cumulative_mix(*given, own, pointed, cdf.numpy())
    return cdf


def point(
    query: Tensor, reserve: Tensor, factor: Tensor, known: Known, at: Tensor, most: int, classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `pointer.point`."""
    own = torch.empty(len(query), dtype=torch.int32)
    by_class = torch.empty(len(query), classes, dtype=torch.int32)
    weights = torch.empty(len(query), most, dtype=torch.uint8)
    given = query.contiguous().numpy(), reserve.contiguous().numpy(), factor.detach().numpy()[0]
    keys = known.keys.numpy(), known.classes.numpy(), *at.numpy(), _WEIGHTS
    loops.point(*given, *keys, own.numpy(), by_class.numpy(), weights.numpy())
    return own, by_class, weights


def level(x: Tensor, width: int) -> Tensor:
    """`pointer.level_rows` of two rows side by side: float32 [N, 2 * W] -> int8 [N, 2, W]."""
    q = torch.empty(len(x), 2, width, dtype=torch.int8)
    loops.level_rows(x.numpy(), width, q.numpy())
    return q


def mix_slots(aim: Aim, known: Known, cdf: Tensor, classes: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """As `pointer.plain_mix_slots`."""
    mixed = torch.empty(len(classes), dtype=torch.int32)
    pointed = torch.empty(len(classes), slots, dtype=torch.int32)
    given = aim.own.numpy(), aim.by_class.numpy(), aim.weights.numpy(), *aim.at.numpy()
    came = known.classes.numpy(), known.slots.numpy(), cdf.numpy(), classes.contiguous().numpy()
    loops.mix_slots(*given, *came, mixed.numpy(), pointed.numpy())
    return mixed, pointed
