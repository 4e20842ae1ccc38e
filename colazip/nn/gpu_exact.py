"""Exact layers on a GPU in few kernels: the bits of `nn/exact.py` and `nn/layers.py`, which explain them.

There each step between two products is an operation of its own that reads and writes everything; here a row
is rounded, scaled or looked up at once. Every division and root is correctly rounded, and no multiplication
may be fused with the addition after it (`_EXACTLY`), so that nothing is rounded otherwise. `nn/agreement.py`
compares the bits before a device is trusted with it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from colazip.nn.exact import Mix, integer_product, tables
from colazip.nn.grid import GRID, PRECISION, TABLE_STEPS, VALUE_STEPS
from colazip.nn.pointer import Aim, Known, leveled, share_slots

_TILE = 4096  # elements that a program has at once
_EXACTLY = {"enable_fp_fusion": False}
_SMALLEST = 2.0**-121  # as in `quantize_rows`
_QUERIES, _KEYS = 64, 64  # of a tile of attention


@triton.jit
def rounded(x):  # type: ignore[no-untyped-def]
    # 1.5 * 2**23: adding it and taking it away rounds to the nearest integer, half to even.
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _on_grid(value, SMALLEST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Integers of the rows of a tile, and the largest of each row."""
    top = tl.max(tl.abs(value), 1)
    top = tl.where(top >= SMALLEST, top, 1.0)
    by = tl.math.div_rn(tl.full(top.shape, 1.0, tl.float32), top) * 127.0
    return rounded(value * by[:, None]), top


@triton.jit
def _quantize_kernel(  # type: ignore[no-untyped-def]
    x, q, factor, rows, K: tl.constexpr, NORM: tl.constexpr, SMALLEST: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, C)
    at = row[:, None] * K + column[None, :]
    inside = (row < rows)[:, None] & (column < K)[None, :]
    whole, top = _on_grid(tl.load(x + at, mask=inside, other=0.0), SMALLEST)
    tl.store(q + at, whole.to(tl.int8), mask=inside)
    if NORM:
        squares = tl.maximum(tl.sum(whole * whole, 1), 1.0)
        root = tl.math.sqrt_rn(tl.math.div_rn(squares, tl.full(squares.shape, K, tl.float32)))
        by = tl.math.div_rn(tl.full(root.shape, 1.0, tl.float32), root)
    else:
        by = tl.math.div_rn(top, tl.full(top.shape, 127.0, tl.float32))
    tl.store(factor + row, by, mask=row < rows)


@triton.jit
def _scale_kernel(  # type: ignore[no-untyped-def]
    product, factor, scale, y, rows, M: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    at = row[:, None] * M + column[None, :]
    inside = (row < rows)[:, None] & (column < M)[None, :]
    value = tl.load(product + at, mask=inside, other=0).to(tl.float32)
    f = tl.load(factor + row, mask=row < rows, other=0.0)
    s = tl.load(scale + column, mask=column < M, other=0.0)
    tl.store(y + at, (value * f[:, None]) * s[None, :], mask=inside)


@triton.jit
def _activate_kernel(  # type: ignore[no-untyped-def]
    product, factor, scale, q, scale_q, rows, M: tl.constexpr, SMALLEST: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, C)
    at = row[:, None] * M + column[None, :]
    inside = (row < rows)[:, None] & (column < M)[None, :]
    value = tl.load(product + at, mask=inside, other=0).to(tl.float32)
    f = tl.load(factor + row, mask=row < rows, other=0.0)
    s = tl.load(scale + column, mask=column < M, other=0.0)
    positive = tl.maximum((value * f[:, None]) * s[None, :], 0.0)
    whole, top = _on_grid(positive * positive, SMALLEST)
    tl.store(q + at, whole.to(tl.int8), mask=inside)
    tl.store(scale_q + row, tl.math.div_rn(top, tl.full(top.shape, 127.0, tl.float32)), mask=row < rows)


@triton.jit
def _pick_kernel(  # type: ignore[no-untyped-def]
    q, weights, factor, scale, group, y, S: tl.constexpr, K: tl.constexpr, SCALED: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    own = tl.load(group + row).to(tl.int64)
    slot, column = tl.arange(0, R), tl.arange(0, C)
    inside = (slot < S)[:, None] & (column < K)[None, :]
    x = tl.load(q + row * K + column, mask=column < K, other=0).to(tl.int32)
    at = weights + own * (S * K) + slot[:, None] * K + column[None, :]
    w = tl.load(at, mask=inside, other=0).to(tl.int32)
    value = tl.sum(w * x[None, :], 1).to(tl.float32) * tl.load(factor + row)
    if SCALED:
        value = value * tl.load(scale + own * S + slot, mask=slot < S, other=0.0)
    tl.store(y + row * S + slot, value, mask=slot < S)


@triton.jit
def _project_kernel(  # type: ignore[no-untyped-def]
    x, y, rows, positions, plane, H: tl.constexpr, W: tl.constexpr, SMALLEST: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    # A row is one of [B, P, 3, H]; it goes to [3, B, H, P].
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, C)
    inside = (row < rows)[:, None] & (column < W)[None, :]
    head, part = row % H, (row // H) % 3
    position = (row // (3 * H)) % positions
    own = (row // (3 * H * positions) * H + head) * positions + position
    value = tl.load(x + row[:, None] * W + column[None, :], mask=inside, other=0.0)
    whole, _ = _on_grid(value, SMALLEST)
    kept = rounded(tl.minimum(tl.maximum(value * 32.0, -127.0), 127.0))
    whole = tl.where((part == 2)[:, None], kept, whole)
    tl.store(y + (part * plane + own * W)[:, None] + column[None, :], whole.to(tl.int8), mask=inside)


@triton.jit
def _scores(  # type: ignore[no-untyped-def]
    x, k, valid, lo, end, length, query, column, by, slope, W: tl.constexpr, CAUSAL: tl.constexpr,
    VALID: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The keys from `lo` on, which of them each query sees, and the scores of queries x."""
    key = lo + tl.arange(0, N)
    there = (key < end)[None, :] & (query < length)[:, None]
    if CAUSAL:
        there = there & (key[None, :] <= query[:, None])
    if VALID:
        there = there & (tl.load(valid + key, mask=key < length, other=0) != 0)[None, :]
    held = (key < end)[None, :] & (column < W)[:, None]
    keys = tl.load(k + key[None, :] * W + column[:, None], mask=held, other=0)
    far = tl.abs(query[:, None] - key[None, :]).to(tl.float32) * 32.0
    return key, there, tl.dot(x, keys.to(tl.float16)) * by - slope * far


@triton.jit
def _attend_kernel(  # type: ignore[no-untyped-def]
    q, k, v, valid, factor, slopes, table, y, length, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr,
    CAUSAL: tl.constexpr, VALID: tl.constexpr, Q: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    head, row = pair % H, pair // H
    first = tl.program_id(1) * Q
    query, column = first + tl.arange(0, Q), tl.arange(0, C)
    here = pair * length * W
    asked, wide = query < length, column < W
    at = here + query[:, None] * W + column[None, :]
    x = tl.load(q + at, mask=asked[:, None] & wide[None, :], other=0).to(tl.float16)
    by, slope = tl.load(factor + head), tl.load(slopes + head)
    end = length
    if CAUSAL:
        end = tl.minimum(length, first + Q)
    top = tl.full([Q], -float("inf"), tl.float32)
    for lo in range(0, end, N):
        key, there, scores = _scores(
            x, k + here, valid + row * length, lo, end, length, query, column, by, slope, W, CAUSAL, VALID, N
        )
        top = tl.maximum(top, tl.max(tl.where(there, scores, -float("inf")), 1))
    total = tl.zeros([Q], tl.float32)
    mixed = tl.zeros([Q, C], tl.float32)
    for lo in range(0, end, N):
        key, there, scores = _scores(
            x, k + here, valid + row * length, lo, end, length, query, column, by, slope, W, CAUSAL, VALID, N
        )
        gap = tl.where(there, tl.minimum(top[:, None] - scores, LAST * 1.0), LAST * 1.0)
        weights = tl.load(table + rounded(gap).to(tl.int32))
        weights = tl.where(there, weights, 0.0)
        total += tl.sum(weights, 1)
        held = (key < end)[:, None] & wide[None, :]
        values = tl.load(v + here + key[:, None] * W + column[None, :], mask=held, other=0)
        mixed += tl.dot(weights.to(tl.float16), values.to(tl.float16))
    total = tl.where(total > 0.0, total, 1.0) * 32.0
    result = tl.math.div_rn(mixed, tl.broadcast_to(total[:, None], [Q, C]))
    out = ((row * length + query) * H + head) * W
    tl.store(y + out[:, None] + column[None, :], result, mask=asked[:, None] & wide[None, :])


@triton.jit
def _step_scores(  # type: ignore[no-untyped-def]
    x, k, lo, here, positions, column, by, slope, W: tl.constexpr, N: tl.constexpr
):
    """Which keys from `lo` on are there, where they lie, and the score of query x with each."""
    key = lo + tl.arange(0, N)
    there = key < positions
    at = here + key[:, None] * W + column[None, :]
    keys = tl.load(k + at, mask=there[:, None] & (column < W)[None, :], other=0).to(tl.int32)
    far = (positions - 1 - key).to(tl.float32) * 32.0
    return there, at, tl.sum(keys * x[None, :], 1).to(tl.float32) * by - slope * far


@triton.jit
def _step_kernel(  # type: ignore[no-untyped-def]
    q, k, v, factor, slopes, table, y, positions, room, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr,
    N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    head = pair % H
    column = tl.arange(0, C)
    wide = column < W
    x = tl.load(q + pair * W + column, mask=wide, other=0).to(tl.int32)
    by, slope = tl.load(factor + head), tl.load(slopes + head)
    here = pair * room * W
    top = tl.full([1], -float("inf"), tl.float32)
    for lo in range(0, positions, N):
        there, at, scores = _step_scores(x, k, lo, here, positions, column, by, slope, W, N)
        top = tl.maximum(top, tl.max(tl.where(there, scores, -float("inf")), 0))
    total = tl.zeros([1], tl.float32)
    mixed = tl.zeros([C], tl.float32)
    for lo in range(0, positions, N):
        there, at, scores = _step_scores(x, k, lo, here, positions, column, by, slope, W, N)
        gap = tl.minimum(top - scores, LAST * 1.0)
        weights = tl.where(there, tl.load(table + rounded(tl.where(there, gap, 0.0)).to(tl.int32)), 0.0)
        total += tl.sum(weights, 0)
        values = tl.load(v + at, mask=there[:, None] & wide[None, :], other=0)
        mixed += tl.sum(weights[:, None] * values.to(tl.float32), 0)
    result = tl.math.div_rn(mixed, tl.broadcast_to(total * 32.0, [C]))
    tl.store(y + pair * W + column, result, mask=wide)


@triton.jit
def _table_kernel(  # type: ignore[no-untyped-def]
    logits, table, cdf, own, pointed, rows, A: tl.constexpr, LAST: tl.constexpr, BITS: tl.constexpr,
    MIX: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, C)
    inside = (row < rows)[:, None] & (column < A)[None, :]
    value = tl.load(logits + row[:, None] * A + column[None, :], mask=inside, other=-float("inf"))
    top = tl.max(value, 1)
    top = tl.where(row < rows, top, 0.0)
    step = tl.minimum((top[:, None] - tl.where(inside, value, 0.0)) * 32.0, LAST * 1.0)
    weight = tl.load(table + rounded(step).to(tl.int32), mask=inside, other=0.0).to(tl.float64)
    whole = tl.sum(weight, 1)
    if MIX:
        said = tl.load(own + row, mask=row < rows, other=1).to(tl.float64)
        more = tl.load(pointed + row[:, None] * A + column[None, :], mask=inside, other=0).to(tl.float64)
        weight = weight * said[:, None] + more * whole[:, None]
        whole = tl.sum(weight, 1)
    whole = tl.where(row < rows, whole, 1.0)
    share = (1.0 / whole) * ((1 << BITS) - A)
    frequency = tl.where(inside, tl.floor(weight * share[:, None]).to(tl.int32) + 1, 0)
    spare = (1 << BITS) - tl.sum(frequency, 1)
    frequency += tl.where((column == 0)[None, :], spare[:, None], 0)
    at = row[:, None] * (A + 1) + column[None, :]
    tl.store(cdf + at + 1, tl.cumsum(frequency, 1), mask=inside)
    tl.store(cdf + row * (A + 1), tl.zeros([R], tl.int32), mask=row < rows)


@triton.jit
def _key_scores(x, keys, labels, lo, start, length, column, by, W: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which keys from `start` on are there, their classes, and the score of query x with each."""
    key = start + tl.arange(0, N)
    there = key < length
    at = (lo + key)[:, None] * W + column[None, :]
    found = tl.load(keys + at, mask=there[:, None] & (column < W)[None, :], other=0).to(tl.int32)
    label = tl.load(labels + lo + key, mask=there, other=0)
    return key, there, label, tl.sum(found * x[None, :], 1).to(tl.float32) * by


@triton.jit
def _point_kernel(  # type: ignore[no-untyped-def]
    q, reserve, factor, keys, labels, first, count, table, own, by_class, weights, most, A: tl.constexpr,
    W: tl.constexpr, LAST: tl.constexpr, N: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column, classes = tl.arange(0, C), tl.arange(0, P)
    x = tl.load(q + row * W + column, mask=column < W, other=0).to(tl.int32)
    by, mine = tl.load(factor), tl.load(reserve + row)
    lo, length = tl.load(first + row), tl.load(count + row).to(tl.int32)
    top = tl.zeros([1], tl.float32) + mine
    for start in range(0, length, N):
        key, there, label, scores = _key_scores(x, keys, labels, lo, start, length, column, by, W, N)
        top = tl.maximum(top, tl.max(tl.where(there, scores, -float("inf")), 0))
    tally = tl.zeros([P], tl.int32)
    for start in range(0, length, N):
        key, there, label, scores = _key_scores(x, keys, labels, lo, start, length, column, by, W, N)
        gap = tl.minimum(top - scores, LAST * 1.0)
        weight = tl.load(table + rounded(tl.where(there, gap, 0.0)).to(tl.int32)).to(tl.int32)
        weight = tl.where(there, weight, 0)
        tl.store(weights + row * most + key, weight.to(tl.uint8), mask=there)
        tally += tl.sum(tl.where(label[:, None] == classes[None, :], weight[:, None], 0), 0)
    tl.store(by_class + row * A + classes, tally, mask=classes < A)
    gap = tl.minimum(top - mine, LAST * 1.0)
    said = tl.load(table + rounded(gap).to(tl.int32)).to(tl.int32)
    tl.store(own + row + tl.zeros([1], tl.int32), tl.maximum(said, 1))


@triton.jit
def _slots_kernel(  # type: ignore[no-untyped-def]
    weights, labels, slot_of, first, count, chosen, by_slot, most, A: tl.constexpr, N: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, P)
    lo, length, own = tl.load(first + row), tl.load(count + row).to(tl.int32), tl.load(chosen + row)
    tally = tl.zeros([P], tl.int32)
    for start in range(0, length, N):
        key = start + tl.arange(0, N)
        there = key < length
        label = tl.load(labels + lo + key, mask=there, other=-1)
        slot = tl.load(slot_of + lo + key, mask=there, other=0)
        weight = tl.load(weights + row * most + key, mask=there, other=0).to(tl.int32)
        weight = tl.where(label == own, weight, 0)
        tally += tl.sum(tl.where(slot[:, None] == slots[None, :], weight[:, None], 0), 0)
    tl.store(by_slot + row * A + slots, tally, mask=slots < A)


@lru_cache(maxsize=256)
def _columns(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


@lru_cache(maxsize=256)
def whole_rows(width: int) -> tuple[int, int]:
    """Rows and columns of a tile that has whole rows."""
    return max(1, _TILE // _columns(width)), _columns(width)


def quantize(x: Tensor, *, norm: bool) -> tuple[Tensor, Tensor]:
    """float32 [N, K] -> integers int8 [N, K], and 1 / rms of the integers or what they stand for, [N, 1]."""
    x = x.contiguous()
    q, factor = torch.empty_like(x, dtype=torch.int8), x.new_empty(len(x), 1)
    each, columns = whole_rows(x.shape[1])
    grid = (triton.cdiv(len(x), each),)
    if len(x):
        _quantize_kernel[grid](x, q, factor, *x.shape, norm, _SMALLEST, each, columns, **_EXACTLY)
    return q, factor


def tiles(rows: int, width: int) -> tuple[tuple[int, int], int, int]:
    """Grid, rows and columns of tiles."""
    columns = min(256, _columns(width))
    each = _TILE // columns
    return (triton.cdiv(rows, each), triton.cdiv(width, columns)), each, columns


def scaled(product: Tensor, factor: Tensor, scale: Tensor) -> Tensor:
    """int32 [N, M] times a factor a row and a scale a column: float32 [N, M]."""
    y = torch.empty_like(product, dtype=torch.float32)
    grid, each, columns = tiles(*product.shape)
    if len(product):
        _scale_kernel[grid](product, factor, scale, y, *product.shape, each, columns, **_EXACTLY)
    return y


def look_up(q: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    """`ExactEmbedding` with int8 rows [N, D] and a scale a row: int64 [...] -> float32 [..., D]."""
    return q[index].float() * scale[index]


def linear(x: Tensor, q: Tensor, scale: Tensor, *, norm: bool) -> Tensor:
    """`ExactLinear` with int8 weights [M, K] and a scale a row: float32 [N, K] -> [N, M]."""
    rounded, factor = quantize(x, norm=norm)
    return scaled(integer_product(rounded, q), factor, scale)


def mlp(x: Tensor, up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor], *, norm: bool) -> Tensor:
    """`exact_mlp` with int8 weights and scales: float32 [N, K] -> [N, M]."""
    rounded, factor = quantize(x, norm=norm)
    product = integer_product(rounded, up[0])
    inner = torch.empty_like(product, dtype=torch.int8)
    scale = x.new_empty(len(x), 1)
    each, columns = whole_rows(product.shape[1])
    if len(x):
        grid = (triton.cdiv(len(x), each),)
        _activate_kernel[grid](
            product, factor, up[1], inner, scale, *product.shape, _SMALLEST, each, columns, **_EXACTLY
        )
    return scaled(integer_product(inner, down[0]), scale, down[1])


def pick(q: Tensor, weights: Tensor, factor: Tensor, group: Tensor, scale: Tensor | None = None) -> Tensor:
    """Row i of int8 [N, K] by the matrix of its group, int8 [G, M, K], times its factor [N, 1] and those of
    the outputs [G, M, 1]: float32 [N, M]."""
    _, slots, width = weights.shape
    y = torch.empty(len(q), slots, dtype=torch.float32, device=q.device)
    if len(q):
        _pick_kernel[(len(q),)](
            q.contiguous(),
            weights,
            factor.contiguous(),
            factor if scale is None else scale,
            group,
            y,
            slots,
            width,
            scale is not None,
            _columns(slots),
            _columns(width),
            **_EXACTLY,
        )
    return y


def project(x: Tensor, q: Tensor, scale: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [B, P, K] by the matrix of a block, int8 [3 * H * W, K], after normalizing -> queries, keys,
    values as integers, int8 [B, H, P, W] each."""
    x = linear(x.reshape(-1, x.shape[-1]), q, scale, norm=True).view(*x.shape[:-1], len(q))
    batch, positions, width = x.shape[0], x.shape[1], x.shape[2] // (3 * heads)
    y = torch.empty(3, batch, heads, positions, width, dtype=torch.int8, device=x.device)
    rows, (each, columns) = batch * positions * 3 * heads, whole_rows(width)
    if rows:
        grid = (triton.cdiv(rows, each),)
        _project_kernel[grid](
            x, y, rows, positions, y[0].numel(), heads, width, _SMALLEST, each, columns, **_EXACTLY
        )
    return y[0], y[1], y[2]


def attend(
    q: Tensor, k: Tensor, v: Tensor, factor: Tensor, slopes: Tensor, valid: Tensor | None, *, causal: bool
) -> Tensor:
    """Attention over integers int8 [B, H, P, W]: float32 [B, P, H * W]. factor, slopes: float32 [H], of
    products and of distances, for scores in steps of the table; valid: bool [B, P]."""
    batch, heads, length, width = q.shape
    y = torch.empty(batch, length, heads * width, dtype=torch.float32, device=q.device)
    if y.numel():
        table = tables(q.device)[0]
        seen = y if valid is None else valid.contiguous()
        _attend_kernel[(batch * heads, triton.cdiv(length, _QUERIES))](
            q, k, v, seen, factor, slopes, table, y, length, heads, width, len(table) - 1, causal,
            valid is not None, _QUERIES, _KEYS, _columns(width), num_stages=1, **_EXACTLY,
        )  # fmt: skip
    return y


def attend_step(
    q: Tensor, keys: Tensor, values: Tensor, positions: int, factor: Tensor, slopes: Tensor
) -> Tensor:
    """One query, int8 [n, H, W], of the latest position, over the first `positions` of int8 [n, H, room, W]:
    float32 [n, H * W]."""
    lanes, heads, width = q.shape
    y = torch.empty(lanes, heads * width, dtype=torch.float32, device=q.device)
    if lanes:
        table = tables(q.device)[0]
        _step_kernel[(lanes * heads,)](
            q.contiguous(), keys, values, factor, slopes, table, y, positions, keys.shape[2], heads, width,
            len(table) - 1, 32, _columns(width), **_EXACTLY,
        )  # fmt: skip
    return y


def cumulative(logits: Tensor, mix: Mix | None = None) -> Tensor:
    """Cumulative integer frequencies of logits [N, A]: int32 [N, A + 1]."""
    rows, size = logits.shape
    cdf = torch.empty(rows, size + 1, dtype=torch.int32, device=logits.device)
    each, columns = max(1, 1024 // _columns(size)), _columns(size)
    if rows:
        table = tables(logits.device)[1]
        grid = (triton.cdiv(rows, each),)
        own, pointed = (cdf, cdf) if mix is None else (mix.own.contiguous(), mix.pointed.contiguous())
        _table_kernel[grid](
            logits.contiguous(), table, cdf, own, pointed, rows, size, len(table) - 1, PRECISION,
            mix is not None, each, columns, **_EXACTLY,
        )  # fmt: skip
    return cdf


def point(
    query: Tensor, reserve: Tensor, factor: Tensor, known: Known, at: Tensor, most: int, classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `pointer.point`."""
    rows, width = query.shape
    own = torch.empty(rows, dtype=torch.int32, device=query.device)
    by_class = torch.empty(rows, classes, dtype=torch.int32, device=query.device)
    weights = torch.zeros(rows, most, dtype=torch.uint8, device=query.device)
    if rows:
        table = tables(query.device)[0]
        _point_kernel[(rows,)](
            query.contiguous(), reserve.contiguous(), factor, known.keys, known.classes, *at.contiguous(),
            table, own, by_class, weights, most, classes, width, len(table) - 1, 32, _columns(width),
            _columns(classes), **_EXACTLY,
        )  # fmt: skip
    return own, by_class, weights


def level(x: Tensor, width: int) -> Tensor:
    """`pointer.level_rows` of two rows side by side: float32 [N, 2 * W] -> int8 [N, 2, W]."""
    q, factor = quantize(x.reshape(-1, width), norm=True)
    return leveled(q.float(), factor).to(torch.int8).view(len(x), 2, width)


def mix_slots(aim: Aim, known: Known, cdf: Tensor, classes: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """As `pointer.plain_mix_slots`."""
    by_slot = torch.empty(len(classes), slots, dtype=torch.int32, device=classes.device)
    if len(classes):
        first, count = aim.at.contiguous()
        _slots_kernel[(len(classes),)](
            aim.weights, known.classes, known.slots, first, count, classes.contiguous(), by_slot,
            aim.weights.shape[1], slots, 32, _columns(slots), **_EXACTLY,
        )  # fmt: skip
    return share_slots(aim, cdf, classes, by_slot)


assert GRID == 127.0 and VALUE_STEPS == 32.0 and TABLE_STEPS == 32  # which the kernels have as numbers
