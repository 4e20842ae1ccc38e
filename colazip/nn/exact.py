"""Layers whose result is the same bit for bit on any device, batch size and thread count.

Every reduction runs over integers: operands sit on an int8 grid and at most MAX_K of them meet in a sum, so
every partial sum is below 2**24 and float32 adds them exactly in any order. What is left is elementwise and
rounded as IEEE 754 says, each operation on its own (no fused multiply-add). Nothing here may be compiled or
fused.

Training runs the same forward pass; gradients go straight through the rounding, in bfloat16.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from colazip.nn.grid import ATTENTION_TABLE, FREQUENCY_TABLE, GRID, MAX_K, PRECISION, TABLE_STEPS
from colazip.nn.loading import is_compared, is_worth_loading, load_kernels

_CACHED = 1 << 18  # float32 numbers that several operations in a row find in the cache of a core
_READOUT_ROWS = 1 << 14  # rows whose products with the matrices of all classes are in memory at once


@lru_cache(maxsize=8)
def tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Attention weights and frequencies: exp2 in steps of 1/32, as integers."""
    with torch.inference_mode(False):  # training may use them later
        return torch.from_numpy(ATTENTION_TABLE).to(device), torch.from_numpy(FREQUENCY_TABLE).to(device)


@lru_cache(maxsize=8)
def int8_kernel_is_right(device: torch.device) -> bool:
    """Whether a device has an int8 matrix product, and it is right on the largest operands, on few rows and
    on more."""
    a = torch.full((64, MAX_K), 127, dtype=torch.int8)
    a[::2] = -127
    a[::5] = -128  # as weights of attention may be
    b = torch.full((64, MAX_K), 127, dtype=torch.int8)
    b[:, ::3] = -127
    expected = (a.long() @ b.t().long()).int()
    try:
        return all(
            torch.equal(torch._int_mm(a[:rows].to(device), b.to(device).t()).cpu(), expected[:rows])
            for rows in (17, len(a))
        )
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


@lru_cache(maxsize=1)
def int8_kernel_wins() -> bool:
    """Whether this CPU's int8 matrix product is right on the largest operands and faster than float32's."""
    if not int8_kernel_is_right(torch.device("cpu")):
        return False
    x = torch.ones(256, 256, dtype=torch.int8)
    y = x.float()

    def best(fn: Any) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            fn()
            times.append(time.perf_counter() - start)
        return min(times)

    return best(lambda: torch._int_mm(x, x.t())) < best(lambda: y @ y.t())


def integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Exact product of int8 matrices [N, K] x [M, K] -> float32 [N, M] of integers. K <= MAX_K."""
    return integer_product(a, b).float()


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """The same but for its type: int32 where the device has a kernel for that, else float32."""
    if a.shape[-1] > MAX_K:
        raise ValueError(f"a sum over {a.shape[-1]} products is not exact in float32: at most {MAX_K}")
    if a.is_cuda:
        # cuBLAS takes more than 16 rows, and rows of whole groups of 16 bytes.
        fits = a.shape[0] > 16 and a.shape[1] % 16 == 0 == b.shape[0] % 16
        fits = fits and int8_kernel_is_right(a.device)
    else:
        fits = fits_int8_kernel(*a.shape)
    return torch._int_mm(a, b.t()) if fits else a.float() @ b.t().float()


def fits_int8_kernel(rows: int, inner: int) -> bool:
    """Whether a CPU multiplies so many rows of `inner` numbers best by its int8 kernel."""
    # With K = 1 torch 2.13's int8 product leaves its result unwritten; compare pytorch/pytorch issue 195066.
    return rows > 0 and inner > 1 and int8_kernel_wins()


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., K] -> (integers in float32 [..., K], scale [..., 1]) with x ~ integers * scale.

    A row of zeros has scale 1/127, and so has one below 2**-121: its inverse scale would not be finite.
    """
    top = x.abs().amax(-1, keepdim=True)
    top = torch.where(top >= 2.0**-121, top, 1.0)
    # Two roundings, 1 / top first: a number divided by a tensor is computed so, and streams depend on it.
    return (x * (top.reciprocal() * GRID)).round_(), _divide(top, GRID)


def _divide(x: Tensor, by: float) -> Tensor:
    """x / by, rounded once on every device: on a GPU, dividing by a number multiplies by its reciprocal."""
    return x / _constant(by, x.dtype, x.device)


@lru_cache(maxsize=256)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((), value, dtype=dtype, device=device)


def inverse_rms(q: Tensor) -> Tensor:
    """1 / rms of integer rows [N, K] -> [N, 1]; the sum of squares is an exact integer."""
    squares = (q * q).sum(-1, keepdim=True).clamp_min(1.0)
    # In float64, then rounded: torch's float32 square root goes through Intel's MKL and is off by one unit in
    # the last place for one value in six; float64 has digits enough that its own such error can't show.
    return torch.sqrt(_divide(squares, q.shape[-1]).double()).float().reciprocal()


def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels may run on a device: a GPU, or any with its interpreter."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def exact_kernels(device: torch.device) -> Any:
    """The module of kernels that exact layers use on a device without gradients; None without, or while a CPU
    has too little work for them."""
    wanted = not is_compared() if has_triton(device) else is_worth_loading()
    return _exact_kernels(device) if wanted else None


@lru_cache(maxsize=8)
def _exact_kernels(device: torch.device) -> Any:
    from colazip.nn.agreement import agree

    name = "colazip.nn.gpu_exact" if has_triton(device) else "colazip.nn.cpu_exact"
    with torch.inference_mode(False), torch.no_grad():
        return load_kernels(
            name, lambda kernels: agree(kernels, device), "exact layers without fused kernels"
        )


@lru_cache(maxsize=8)
def training_kernels(device: torch.device) -> Any:
    """The module of fused kernels that training uses on a device; None where there are none or they don't
    run."""
    if not has_triton(device):
        return None

    def works(kernels: Any) -> bool:
        kernels.quantize(torch.zeros(1, 16, device=device))
        return True

    return load_kernels("colazip.nn.fused", works, "training without fused kernels")


def _fast(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)


class _Linear(torch.autograd.Function):
    """Forward: exact. Backward: straight through the rounding, scales held constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, norm: bool) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        q, scale = quantize_rows(rows)
        qw, scale_w = quantize_rows(weight)
        factor = inverse_rms(q) if norm else scale
        q8, qw8 = q.to(torch.int8), qw.to(torch.int8)
        y = integer_matmul(q8, qw8) * factor * scale_w.t()
        ctx.save_for_backward(q, scale, factor, qw, scale_w)
        ctx.norm = norm
        ctx.shape = x.shape
        return y.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        q, scale, factor, qw, scale_w = ctx.saved_tensors
        g = grads[0].reshape(-1, grads[0].shape[-1])
        gw = (_fast(g * factor).t() @ _fast(q)).float()  # the integers themselves are exact in bfloat16
        gx = (_fast(g * scale_w.t()) @ _fast(qw)).float()
        if ctx.norm:  # through x / rms(x): drop the part along the row, then scale
            along = (gx * q).sum(-1, keepdim=True) * (factor * factor / q.shape[-1])
            gx = torch.addcmul(gx, q, along, value=-1.0) * (factor / scale)
        return gx.reshape(ctx.shape), gw, None


class Quantized(nn.Module):
    """A module with one weight: float while training, quantized in every forward pass; int8 once shipped."""

    weight: nn.Parameter | None
    q: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("q", None, persistent=False)
        self.register_buffer("scale", None, persistent=False)

    @property
    def trainable(self) -> nn.Parameter:
        """The float weight. Raises ValueError once frozen."""
        if self.weight is None:
            raise ValueError("the weight is frozen: there is nothing to train")
        return self.weight

    def freeze(self, q: Tensor, scale: Tensor) -> None:
        """Replace the float weight [..., K] by int8 [..., K] and a float32 scale a row [..., 1]."""
        self.weight = None
        self.q, self.scale = q, scale


class ExactLinear(Quantized):
    """y = W x, or W (x / rms(x)) with norm=True. x: [..., K] -> [..., M]; no bias."""

    def __init__(self, inputs: int, outputs: int, *, norm: bool = False, zero: bool = False) -> None:
        if inputs > MAX_K:
            raise ValueError(f"{inputs} inputs: at most {MAX_K} give exact sums")
        super().__init__(torch.randn(outputs, inputs) * (0.0 if zero else inputs**-0.5))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            if (kernels := training_kernels(x.device)) is not None:
                y = kernels.FusedLinear.apply(x.reshape(-1, x.shape[-1]), self.weight, self.norm)
                return y.view(*x.shape[:-1], len(self.weight))
            return _Linear.apply(x, self.weight, self.norm)
        if (exact := exact_kernels(x.device)) is not None:
            y = exact.linear(x.reshape(-1, x.shape[-1]), self.q, self.scale, norm=self.norm)
            return y.view(*x.shape[:-1], len(self.q))
        return self.plain(x)

    def plain(self, x: Tensor) -> Tensor:
        """`forward` with int8 weights, operation by operation."""
        rows = x.reshape(-1, x.shape[-1])
        y = rows.new_empty(len(rows), len(self.q))
        for lo, hi in runs_of_rows(len(rows), max(self.q.shape), x.device):
            q, scale = quantize_rows(rows[lo:hi])
            factor = inverse_rms(q) if self.norm else scale
            product = integer_matmul(q.to(torch.int8), self.q).mul_(factor)
            torch.mul(product, self.scale.t(), out=y[lo:hi])
        return y.view(*x.shape[:-1], len(self.q))


def runs_of_rows(rows: int, width: int, device: torch.device) -> list[tuple[int, int]]:
    """Rows that go together through several operations: what lies between these stays in a core's cache."""
    return in_runs(rows, max(1, _CACHED // width), device)


def in_runs(rows: int, most: int, device: torch.device) -> list[tuple[int, int]]:
    """Runs of at most so many rows on a CPU, all rows elsewhere."""
    step = most if device.type == "cpu" else max(1, rows)
    return [(lo, min(rows, lo + step)) for lo in range(0, rows, step)]


def exact_mlp(x: Tensor, up: ExactLinear, down: ExactLinear) -> Tensor:
    """down(relu(up(x)) ** 2): [..., K] -> [..., M]."""
    rows = x.reshape(-1, x.shape[-1])
    if up.weight is not None:
        kernels = training_kernels(x.device)
        if kernels is None:
            return down(torch.relu(up(x)).square())
        y = kernels.FusedMLP.apply(rows, up.weight, down.trainable)
    elif (exact := exact_kernels(x.device)) is not None:
        y = exact.mlp(rows, (up.q, up.scale), (down.q, down.scale), norm=up.norm)
    else:
        y = rows.new_empty(len(rows), len(down.q))
        for lo, hi in runs_of_rows(len(rows), len(up.q), x.device):
            y[lo:hi] = down(up(rows[lo:hi]).relu_().square_())
    return y.view(*x.shape[:-1], y.shape[-1])


class _RoundRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        q, scale = quantize_rows(x)
        return q * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class ExactEmbedding(Quantized):
    """Rows of a table that ships as int8 with a scale a row. Index [...] -> [..., D]."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(torch.randn(rows, width) * 0.5)

    def forward(self, index: Tensor) -> Tensor:
        if self.weight is not None:
            if (kernels := training_kernels(index.device)) is not None:  # few rows beside the indices
                return torch.nn.functional.embedding(index, kernels.FusedRounding.apply(self.weight))
            return _RoundRows.apply(torch.nn.functional.embedding(index, self.weight))
        if (exact := exact_kernels(index.device)) is not None:
            y: Tensor = exact.look_up(self.q, self.scale, index)
            return y
        return self.plain(index)

    def plain(self, index: Tensor) -> Tensor:
        """`forward` with int8 weights, operation by operation."""
        return self.q[index].float() * self.scale[index]


class _GroupedReadout(torch.autograd.Function):
    """Logits of the slots of one class a row: rows sorted by class, then one small product a class, or, on a
    GPU, where each of these would wait for the one before, all of them in one batched product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, group: Tensor) -> Tensor:
        q, scale = quantize_rows(x)
        qw, scale_w = quantize_rows(weight)
        factor = inverse_rms(q)
        q8, qw8 = q.to(torch.int8), qw.to(torch.int8)
        ctx.save_for_backward(q8, scale, factor, qw8, scale_w, group)
        return _grouped_product(q8, qw8, scale_w, factor, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        q8, scale, factor, qw8, scale_w, group = ctx.saved_tensors
        g, h, weight = grads[0], q8.float() * factor, qw8.float() * scale_w
        if _in_runs(g):
            place = _Runs(group, len(weight))
            g_runs, h_runs = place.spread(g), place.spread(h)
            gh = place.gather(g_runs @ weight[place.group])
            gw = torch.zeros_like(weight).index_add_(0, place.group, g_runs.transpose(1, 2) @ h_runs)
        else:
            order, bounds = _sort_by_group(group, len(weight))
            g, rows = g[order], h[order]
            gw, gh_sorted = torch.zeros_like(weight), torch.empty_like(h)
            for c, (lo, hi) in enumerate(bounds):
                if hi > lo:
                    gw[c] = g[lo:hi].t() @ rows[lo:hi]
                    gh_sorted[lo:hi] = g[lo:hi] @ weight[c]
            gh = torch.empty_like(h)
            gh[order] = gh_sorted
        return (gh - h * (gh * h).mean(-1, keepdim=True)) * (factor / scale), gw, None


def _sort_by_group(group: Tensor, groups: int) -> tuple[Tensor, list[tuple[int, int]]]:
    order = torch.argsort(group, stable=True)
    ends = torch.bincount(group, minlength=groups).cumsum(0).tolist()
    return order, list(zip([0, *ends[:-1]], ends, strict=True))


def _in_runs(rows: Tensor) -> bool:
    """Whether one batched product beats a loop over groups."""
    return rows.is_cuda


class _Runs:
    """Rows of groups laid out in runs of one group each, padded to `SIZE` rows; nothing waits for the device.

    group: int64 [runs], that of each run.
    """

    SIZE = 64

    def __init__(self, group: Tensor, groups: int) -> None:
        count = torch.zeros(groups, dtype=torch.int64, device=group.device)
        count.index_add_(0, group, torch.ones_like(group))
        ends = (-(-count // self.SIZE)).cumsum(0)  # of the runs of each group
        self._runs = len(group) // self.SIZE + groups  # as many as there can be
        every = torch.arange(self._runs, device=group.device)
        self.group = torch.searchsorted(ends, every, right=True).clamp_max(groups - 1)
        order = torch.argsort(group, stable=True)
        first = torch.cat([ends.new_zeros(1), ends[:-1]]) * self.SIZE - (count.cumsum(0) - count)
        self._row = torch.empty_like(group)
        self._row[order] = torch.arange(len(group), device=group.device) + first[group[order]]

    def spread(self, rows: Tensor) -> Tensor:
        """[N, K] -> [runs, SIZE, K]."""
        spread = rows.new_zeros(self._runs * self.SIZE, rows.shape[1])
        spread[self._row] = rows
        return spread.view(self._runs, self.SIZE, -1)

    def gather(self, runs: Tensor) -> Tensor:
        """[runs, SIZE, K] -> [N, K]."""
        return runs.flatten(0, 1)[self._row]


def _grouped_product(q8: Tensor, qw8: Tensor, scale_w: Tensor, factor: Tensor, group: Tensor) -> Tensor:
    """Row i of int8 [N, K] by the matrix of its group, int8 [G, M, K], times its factor and those of the
    outputs: float32 [N, M]."""
    if _in_runs(q8):
        place = _Runs(group, len(qw8))
        product = place.spread(q8.float()) @ qw8.float()[place.group].transpose(1, 2)
        return place.gather(product) * factor * scale_w[..., 0][group]
    order, bounds = _sort_by_group(group, len(qw8))
    rows = q8[order]
    y = torch.empty(len(order), qw8.shape[1])
    for c, (lo, hi) in enumerate(bounds):
        if hi > lo:
            y[lo:hi] = integer_matmul(rows[lo:hi], qw8[c]) * factor[order[lo:hi]] * scale_w[c].t()
    result = torch.empty_like(y)
    result[order] = y
    return result


def grouped_product(q8: Tensor, groups8: Tensor, factor: Tensor, group: Tensor) -> Tensor:
    """Row i of int8 [N, K] by the matrix of its group, int8 [G, M, K], times its factor: float32 [N, M]."""
    if (exact := exact_kernels(q8.device)) is not None:
        y: Tensor = exact.pick(q8, groups8, factor, group)
        return y
    ones = _constant(1.0, torch.float32, q8.device).expand(*groups8.shape[:2], 1)
    if q8.is_cuda:
        return _picked_product(q8, groups8, ones, factor, group)
    return _grouped_product(q8, groups8, ones, factor, group)


def _picked_product(q8: Tensor, qw8: Tensor, scale_w: Tensor, factor: Tensor, group: Tensor) -> Tensor:
    """The same as `_grouped_product` where starting an operation costs more than multiplying: rows meet the
    matrices of all classes, and the product with their own is picked."""
    classes, slots, _ = qw8.shape
    picked = []
    for lo in range(0, max(1, len(q8)), _READOUT_ROWS):
        rows, own = q8[lo : lo + _READOUT_ROWS], group[lo : lo + _READOUT_ROWS]
        every = integer_matmul(rows, qw8.flatten(0, 1)).view(-1, classes, slots)
        picked.append(every.gather(1, own[:, None, None].expand(-1, 1, slots))[:, 0])
    return torch.cat(picked) * factor * scale_w[group, :, 0]


class ExactReadout(Quantized):
    """Per-class output matrices: x [N, K] (normalised inside), class [N] -> logits [N, slots]."""

    def __init__(self, classes: int, slots: int, inputs: int) -> None:
        super().__init__(torch.randn(classes, slots, inputs) * inputs**-0.5)

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        if self.weight is not None:
            return _GroupedReadout.apply(x, self.weight, group)
        if (exact := exact_kernels(x.device)) is not None:
            q8, factor = exact.quantize(x, norm=True)
            y: Tensor = exact.pick(q8, self.q, factor, group, self.scale)
            return y
        q, _ = quantize_rows(x)
        q8, factor = q.to(torch.int8), inverse_rms(q)
        if x.is_cuda:
            return _picked_product(q8, self.q, self.scale, factor, group)
        return _grouped_product(q8, self.q, self.scale, factor, group)


def integer_softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Weights 2**score over the last axis as integers: (weights [..., N] in 0..255, their sum [..., 1]).

    scores: log2 units; -inf is a key that is not there. Source of the integer softmax: I-BERT (arXiv
    2101.01321), with a table in place of the polynomial.
    """
    return _weights((scores.amax(-1, keepdim=True) - scores) * float(TABLE_STEPS))


def softmax_of_steps(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The same of scores in 1 / TABLE_STEPS log2 units, a power of two, so that nothing is rounded otherwise;
    without gradients. The scores are used up."""
    return _weights(torch.sub(scores.amax(-1, keepdim=True), scores, out=scores))


def _weights(gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Of steps below the top. Without gradients the gaps are used up."""
    step = gaps.round_().clamp_max_(len(ATTENTION_TABLE) - 1.0).to(torch.int32)
    weights = tables(gaps.device)[0].index_select(0, step.flatten()).view(gaps.shape)
    return weights, weights.sum(-1, keepdim=True)


class Mix(NamedTuple):
    """What a distribution is mixed with. own: int32 [N], weight of what the logits say, at least 1; pointed:
    int32 [N, A], weights of what else is said. Those of a row add up to 2**26 at most."""

    own: Tensor
    pointed: Tensor

    def rows(self, which: Tensor) -> Mix:
        """Of some rows, bool [N] or int64 [n]."""
        return Mix(self.own[which], self.pointed[which])


def frequencies(logits: Tensor, mix: Mix | None = None) -> Tensor:
    """Integer frequencies, int32 [N, A], each at least 1, each row adding up to 2**PRECISION.

    logits: float32 [N, A] in log2 units.
    """
    count = logits.shape[-1]
    top = logits.amax(-1, keepdim=True)
    step = torch.round((top - logits) * float(TABLE_STEPS)).clamp_max(len(FREQUENCY_TABLE) - 1.0)
    weights = tables(logits.device)[1][step.to(torch.int32)]
    # A sum of at most 2**20 * 512 is exact in float64 in any order, and floor keeps the total below
    # 2**PRECISION. With a mixture sums stay below 2**20 * 128 * 2**26 = 2**53.
    weights64 = weights.double()
    whole = weights64.sum(-1, keepdim=True)
    if mix is not None:
        weights64 = weights64 * mix.own[:, None] + mix.pointed * whole
        whole = weights64.sum(-1, keepdim=True)
    share = whole.reciprocal() * float(2**PRECISION - count)
    freq = torch.floor(weights64 * share).to(torch.int32) + 1
    freq[:, 0] += 2**PRECISION - freq.sum(-1, dtype=torch.int32)
    return freq


def cumulative(logits: Tensor, mix: Mix | None = None) -> Tensor:
    """Cumulative frequencies of logits [N, A]: int32 [N, A + 1], each row from 0 to 2**PRECISION."""
    if (kernels := exact_kernels(logits.device)) is not None:
        fused: Tensor = kernels.cumulative(logits, mix)
        return fused
    freq = frequencies(logits, mix)
    cdf = torch.zeros(len(freq), freq.shape[1] + 1, dtype=torch.int32, device=freq.device)
    torch.cumsum(freq, -1, dtype=torch.int32, out=cdf[:, 1:])
    return cdf
