"""Exact layers in training on a GPU: rows are rounded, scaled and activated in one kernel each, where
`nn/exact.py` takes a dozen operations that each read and write everything.

Forward passes give the same integers, but for numbers that a fused multiply-add rounds the other way;
gradients are those of `nn/exact.py`. Training only: nothing here codes text.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from colazip.nn.exact import integer_product
from colazip.nn.gpu_exact import rounded, scaled, tiles, whole_rows
from colazip.nn.grid import GRID, VALUE_STEPS


@triton.jit
def _quantize_kernel(  # type: ignore[no-untyped-def]
    x, q, scale, factor, rows, K: tl.constexpr, NORM: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, C)
    at = row[:, None] * K + column[None, :]
    inside = (row < rows)[:, None] & (column < K)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0)
    top = tl.max(tl.abs(value), 1)
    top = tl.where(top >= 3.8e-37, top, 1.0)
    whole = rounded(value * (127.0 / top)[:, None])
    tl.store(q + at, whole.to(tl.int8), mask=inside)
    tl.store(scale + row, top / 127.0, mask=row < rows)
    if NORM:
        squares = tl.maximum(tl.sum(whole * whole, 1), 1.0)
        tl.store(factor + row, 1.0 / tl.sqrt(squares / K), mask=row < rows)


@triton.jit
def _activate_kernel(  # type: ignore[no-untyped-def]
    product, factor, scale, kept, q, scale_q, rows, M: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, C)
    at = row[:, None] * M + column[None, :]
    inside = (row < rows)[:, None] & (column < M)[None, :]
    value = tl.load(product + at, mask=inside, other=0).to(tl.float32)
    f = tl.load(factor + row, mask=row < rows, other=0.0)
    s = tl.load(scale + column, mask=column < M, other=0.0)
    positive = tl.maximum(value * f[:, None] * s[None, :], 0.0)
    tl.store(kept + at, positive.to(tl.bfloat16), mask=inside)
    square = positive * positive
    top = tl.max(square, 1)
    top = tl.where(top >= 3.8e-37, top, 1.0)
    whole = rounded(square * (127.0 / top)[:, None])
    tl.store(q + at, whole.to(tl.int8), mask=inside)
    tl.store(scale_q + row, top / 127.0, mask=row < rows)


@triton.jit
def _spread_kernel(  # type: ignore[no-untyped-def]
    g, kept, factor, scale, by_row, by_column, rows, M: tl.constexpr, ACTIVE: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    at = row[:, None] * M + column[None, :]
    inside = (row < rows)[:, None] & (column < M)[None, :]
    value = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    if ACTIVE:
        value = value * (2.0 * tl.load(kept + at, mask=inside, other=0.0).to(tl.float32))
    f = tl.load(factor + row, mask=row < rows, other=0.0)
    s = tl.load(scale + column, mask=column < M, other=0.0)
    tl.store(by_row + at, (value * f[:, None]).to(tl.bfloat16), mask=inside)
    tl.store(by_column + at, (value * s[None, :]).to(tl.bfloat16), mask=inside)


@triton.jit
def _finish_kernel(  # type: ignore[no-untyped-def]
    g, q, factor, scale, y, rows, K: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, C)
    at = row[:, None] * K + column[None, :]
    inside = (row < rows)[:, None] & (column < K)[None, :]
    value = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    whole = tl.load(q + at, mask=inside, other=0).to(tl.float32)
    f = tl.load(factor + row, mask=row < rows, other=0.0)
    s = tl.load(scale + row, mask=row < rows, other=1.0)
    along = tl.sum(value * whole, 1) * (f * f / K)
    tl.store(y + at, (value - whole * along[:, None]) * (f / s)[:, None], mask=inside)


@triton.jit
def _project_kernel(  # type: ignore[no-untyped-def]
    x, q, k, v, scale, rows, positions, H: tl.constexpr, W: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    # A row is one of [B, P, 3, H]; it goes to q, k or v, [B, H, P].
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, C)
    inside = (row < rows)[:, None] & (column < W)[None, :]
    head, part = row % H, (row // H) % 3
    position = (row // (3 * H)) % positions
    own = (row // (3 * H * positions) * H + head) * positions + position
    at = own[:, None] * W + column[None, :]
    value = tl.load(x + row[:, None] * W + column[None, :], mask=inside, other=0.0)
    top = tl.max(tl.abs(value), 1)
    top = tl.where(top >= 3.8e-37, top, 1.0)
    inverse = tl.where(part == 2, 32.0, 127.0 / top)
    whole = tl.minimum(tl.maximum(value * inverse[:, None], -127.0), 127.0)
    whole = rounded(whole).to(tl.bfloat16)
    tl.store(q + at, whole, mask=inside & (part == 0)[:, None])
    tl.store(k + at, whole, mask=inside & (part == 1)[:, None])
    tl.store(v + at, whole, mask=inside & (part == 2)[:, None])
    tl.store(scale + row, inverse, mask=row < rows)


@triton.jit
def _unproject_kernel(  # type: ignore[no-untyped-def]
    gq, gk, gv, v, scale, gx, rows, positions, H: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, C)
    inside = (row < rows)[:, None] & (column < W)[None, :]
    head, part = row % H, (row // H) % 3
    position = (row // (3 * H)) % positions
    own = (row // (3 * H * positions) * H + head) * positions + position
    at = own[:, None] * W + column[None, :]
    q = tl.load(gq + at, mask=inside & (part == 0)[:, None], other=0.0).to(tl.float32)
    k = tl.load(gk + at, mask=inside & (part == 1)[:, None], other=0.0).to(tl.float32)
    is_value = inside & (part == 2)[:, None]
    changed = tl.load(gv + at, mask=is_value, other=0.0).to(tl.float32)
    whole = tl.load(v + at, mask=is_value, other=0.0).to(tl.float32)
    changed = tl.where(tl.abs(whole) < 127.0, changed, 0.0)  # no gradient where values are clipped
    inverse = tl.load(scale + row, mask=row < rows, other=0.0)
    value = (q + k + changed) * inverse[:, None]
    tl.store(gx + row[:, None] * W + column[None, :], value, mask=inside)


def quantize(x: Tensor, *, norm: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [N, K] -> integers int8 [N, K], scales [N, 1], and 1 / rms of the integers, or the scales once
    more, [N, 1]."""
    x = x.contiguous()
    rows, width = x.shape
    q = torch.empty_like(x, dtype=torch.int8)
    scale = x.new_empty(rows, 1)
    factor = x.new_empty(rows, 1) if norm else scale
    each, columns = whole_rows(width)
    _quantize_kernel[(triton.cdiv(rows, each),)](x, q, scale, factor, rows, width, norm, each, columns)
    return q, scale, factor


def _spread(g: Tensor, factor: Tensor, scale: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gradient [N, M] times the factors of rows, and times the scales of columns, both bfloat16; through the
    activation first where `kept` is what it kept."""
    g = g.contiguous()
    by_row = torch.empty_like(g, dtype=torch.bfloat16)
    by_column = torch.empty_like(by_row)
    grid, each, columns = tiles(*g.shape)
    active = kept is not None
    _spread_kernel[grid](
        g, kept if active else g, factor, scale, by_row, by_column, *g.shape, active, each, columns
    )
    return by_row, by_column


def _finish(g: Tensor, q: Tensor, factor: Tensor, scale: Tensor) -> Tensor:
    """Through x / rms(x): drop the part along the row, then scale."""
    y = torch.empty_like(g, dtype=torch.float32)
    each, columns = whole_rows(g.shape[1])
    _finish_kernel[(triton.cdiv(len(g), each),)](g, q, factor, scale, y, *g.shape, each, columns)
    return y


def _gradients(q: Tensor, by_row: Tensor, by_column: Tensor, qw: Tensor) -> tuple[Tensor, Tensor]:
    """Of the rows and of the weight, before and behind rounding."""
    return by_column @ qw.bfloat16(), (by_row.t() @ q.bfloat16()).float()


class FusedLinear(torch.autograd.Function):
    """As `nn.exact`'s. x: float32 [N, K]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, norm: bool) -> Tensor:
        q, scale, factor = quantize(x, norm=norm)
        qw, scale_w, _ = quantize(weight)
        ctx.save_for_backward(q, scale, factor, qw, scale_w)
        ctx.norm = norm
        return scaled(integer_product(q, qw), factor, scale_w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        q, scale, factor, qw, scale_w = ctx.saved_tensors
        by_row, by_column = _spread(grads[0], factor, scale_w)
        gx, gw = _gradients(q, by_row, by_column, qw)
        return (_finish(gx, q, factor, scale) if ctx.norm else gx.float()), gw, None


class FusedMLP(torch.autograd.Function):
    """down(relu(up(x / rms(x))) ** 2). x: float32 [N, K]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        q, scale, factor = quantize(x, norm=True)
        qu, scale_u, _ = quantize(up)
        qd, scale_d, _ = quantize(down)
        product = integer_product(q, qu)
        kept = torch.empty_like(product, dtype=torch.bfloat16)
        inner = torch.empty_like(product, dtype=torch.int8)
        scale_i = x.new_empty(len(x), 1)
        each, columns = whole_rows(product.shape[1])
        _activate_kernel[(triton.cdiv(len(x), each),)](
            product, factor, scale_u, kept, inner, scale_i, *product.shape, each, columns
        )
        ctx.save_for_backward(q, scale, factor, qu, scale_u, kept, inner, scale_i, qd, scale_d)
        return scaled(integer_product(inner, qd), scale_i, scale_d)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, scale, factor, qu, scale_u, kept, inner, scale_i, qd, scale_d = ctx.saved_tensors
        by_row, by_column = _spread(grads[0], scale_i, scale_d)
        gi, gd = _gradients(inner, by_row, by_column, qd)
        by_row, by_column = _spread(gi, factor, scale_u, kept)
        gx, gu = _gradients(q, by_row, by_column, qu)
        return _finish(gx, q, factor, scale), gu, gd


class FusedProjection(torch.autograd.Function):
    """What a block's matrix gives, float32 [B, P, 3 * H * W] -> queries, keys, values as integers, bfloat16
    [B, H, P, W] each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        batch, positions, width = x.shape[0], x.shape[1], x.shape[2] // (3 * heads)
        q, k, v = (
            torch.empty(batch, heads, positions, width, dtype=torch.bfloat16, device=x.device)
            for _ in range(3)
        )
        rows = batch * positions * 3 * heads
        scale = x.new_empty(rows)
        each, columns = whole_rows(width)
        _project_kernel[(triton.cdiv(rows, each),)](
            x, q, k, v, scale, rows, positions, heads, width, each, columns
        )
        ctx.save_for_backward(v, scale)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        v, scale = ctx.saved_tensors
        batch, heads, positions, width = v.shape
        gq, gk, gv = (g.contiguous() for g in grads)
        gx = scale.new_empty(batch, positions, 3 * heads * width)
        each, columns = whole_rows(width)
        _unproject_kernel[(triton.cdiv(len(scale), each),)](
            gq, gk, gv, v, scale, gx, len(scale), positions, heads, width, each, columns
        )
        return gx, None


class FusedRounding(torch.autograd.Function):
    """Rows on the grid, gradients straight through. x: float32 [N, K]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        q, scale, _ = quantize(x)
        return q * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


assert GRID == 127.0 and VALUE_STEPS == 32.0  # which the kernels have as numbers
