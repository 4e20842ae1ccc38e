"""Whether compiled kernels give the bits of the operations in `nn/exact.py` and `nn/layers.py` that they
stand for. A device is asked before it is trusted with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from colazip.nn.exact import (
    ExactEmbedding,
    ExactLinear,
    Mix,
    frequencies,
    integer_product,
    quantize_rows,
    softmax_of_steps,
)
from colazip.nn.grid import GRID, TABLE_STEPS, VALUE_STEPS
from colazip.nn.pointer import Aim, Known, level_rows, plain_mix_slots, plain_point


def agree(kernels: Any, device: torch.device) -> bool:
    """Whether kernels, the module, give the bits of the operations on a device, for numbers of all sizes.
    Without gradients."""
    random = np.random.default_rng(0)

    def numbers(*shape: int, spread: float = 3.0) -> Tensor:
        drawn = random.standard_normal(shape) * 10.0 ** random.uniform(-spread, spread, (*shape[:-1], 1))
        return torch.from_numpy(drawn.astype(np.float32)).to(device)

    def integers(*shape: int) -> Tensor:
        return torch.from_numpy(random.integers(-127, 128, shape).astype(np.int8)).to(device)

    with torch.random.fork_rng(devices=[]):  # layers are made at random first: nobody else's numbers change
        return (
            _same_layers(kernels, numbers, integers)
            and all(_same_heads(kernels, numbers, integers, width) for width in (64, 48, 20))
            and _same_tables(kernels, numbers)
            and all(_same_pointing(kernels, numbers, integers, width) for width in (64, 16))
        )


def _same_layers(kernels: Any, numbers: Any, integers: Any) -> bool:
    x = numbers(300, 192)
    device = x.device
    x[5] = 0.0
    x[6] *= 1e-37
    found = []
    for norm in (False, True):
        layer, up, down = (
            ExactLinear(192, 80, norm=norm),
            ExactLinear(192, 320, norm=norm),
            ExactLinear(320, 96),
        )
        for own in (layer, up, down):
            own.freeze(integers(*own.trainable.shape), numbers(len(own.trainable), 1).abs())
            own.to(device)
        found += [
            torch.equal(kernels.linear(x, layer.q, layer.scale, norm=norm), layer.plain(x)),
            torch.equal(
                kernels.mlp(x, (up.q, up.scale), (down.q, down.scale), norm=norm),
                down.plain(up.plain(x).relu().square()),
            ),
        ]
    rows, index = ExactEmbedding(40, 24), torch.arange(90, device=device).view(3, 30) % 40
    rows.freeze(integers(40, 24), numbers(40, 1).abs())
    found.append(torch.equal(kernels.look_up(rows.q, rows.scale, index), rows.plain(index)))
    weights, scale = integers(6, 64, 192), numbers(6, 64, 1).abs()
    group = torch.arange(len(x), device=device) % 6
    q, factor = kernels.quantize(x, norm=True)
    every = integer_product(q, weights.flatten(0, 1)).float().view(-1, 6, 64)
    picked = every.gather(1, group[:, None, None].expand(-1, 1, 64))[:, 0]
    mine = kernels.pick(q, weights, factor, group, scale)
    return all(found) and torch.equal(mine, picked * factor * scale[group, :, 0])


def _same_heads(kernels: Any, numbers: Any, integers: Any, width: int) -> bool:
    batch, heads, length = 3, 4, 150
    given = numbers(batch, length, 32, spread=0.5)
    device = given.device
    matrix = ExactLinear(32, 3 * heads * width, norm=True)
    matrix.freeze(integers(3 * heads * width, 32), numbers(3 * heads * width, 1, spread=0.5).abs() * 0.01)
    parts = matrix.plain(given).view(batch, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    q, k = quantize_rows(parts[0])[0], quantize_rows(parts[1])[0]
    v = torch.round((parts[2] * VALUE_STEPS).clamp(-GRID, GRID))
    mine = kernels.project(given, matrix.q, matrix.scale, heads)
    same = all(torch.equal(a.float(), b) for a, b in zip(mine, (q, k, v), strict=True))
    keys, values = (part.to(torch.int8) for part in mine[1:])
    factor = numbers(heads, spread=0.1).abs() * (1e-3 * TABLE_STEPS)
    slopes = torch.tensor([0.5, 0.125, 0.0078125, 0.0], device=device)
    at = torch.arange(length, device=device)
    far = slopes[:, None, None] * ((at[:, None] - at[None]).abs().float() * float(TABLE_STEPS))
    valid = at[None] < torch.tensor([150, 70, 1], device=device)[:, None]
    for causal in (True, False):
        scores = (q @ k.transpose(-1, -2)) * factor[:, None, None] - far
        hidden = at[None] > at[:, None] if causal else ~valid[:, None, None, :]
        weights, total = softmax_of_steps(scores.masked_fill(hidden, -torch.inf))
        theirs = ((weights @ v) / (total * VALUE_STEPS)).transpose(1, 2).flatten(2)
        found = kernels.attend(*mine, factor, slopes, None if causal else valid, causal=causal)
        same = same and torch.equal(found, theirs)
        if causal:
            for last in (0, 40, length - 1):
                step = kernels.attend_step(mine[0][:, :, last], keys, values, last + 1, factor, slopes)
                same = same and torch.equal(step, theirs[:, last])
    return same


def _same_tables(kernels: Any, numbers: Any) -> bool:
    same = True
    for size in (2, 64, 128):
        logits = numbers(100, size, spread=1.0)
        logits[0] = 0.0
        logits[1, 1:] = -1e4
        ends = frequencies(logits).cumsum(-1, dtype=torch.int32)
        cdf = kernels.cumulative(logits)
        same = same and torch.equal(cdf[:, 1:], ends) and not cdf[:, 0].any()
    return same


def _same_pointing(kernels: Any, numbers: Any, integers: Any, width: int) -> bool:
    """Of three lanes that are known as a whole, and of the last tokens of lanes that advance together."""
    classes, slots, length = 12, 10, 90
    keys = (integers(3 * length, width) // 3).contiguous()  # about as large as they are
    device = keys.device
    each = torch.arange(3 * length, device=device)
    labels, slot_of = ((each * by % count).to(torch.int32) for by, count in ((7, classes), (11, slots)))
    known, found = Known(keys, labels, slot_of), []
    factor = numbers(1, spread=0.1).abs() * (1e-3 * TABLE_STEPS)
    first = each // length * length
    for at in (
        torch.stack([first, each - first]),
        torch.stack([each[:3] * length, torch.tensor([89, 40, 0], device=device)]),
    ):
        query = keys[at.sum(0).clamp_max(3 * length - 1)].flip(0)
        reserve = numbers(len(query), 1, spread=0.1)[:, 0].abs() * 300.0
        given = query, reserve, factor, known, at, length, classes
        mine: tuple[Tensor, Tensor, Tensor] = kernels.point(*given)
        theirs = plain_point(*given)
        logits = numbers(len(query), classes, spread=1.0)
        cdf = kernels.cumulative(logits, Mix(*mine[:2]))
        found += [torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)]
        found.append(
            torch.equal(cdf[:, 1:], frequencies(logits, Mix(*theirs[:2])).cumsum(-1, dtype=torch.int32))
        )
        own = (each[: len(query)] * 5) % classes
        mixed = kernels.mix_slots(Aim(*mine, at), known, cdf, own, slots)
        plain = plain_mix_slots(Aim(*theirs, at), known, cdf, own, slots)
        found += [torch.equal(a, b) for a, b in zip(mixed, plain, strict=True)]
        logits = numbers(len(query), slots, spread=1.0)
        cdf = kernels.cumulative(logits, Mix(*mixed))
        found.append(torch.equal(cdf[:, 1:], frequencies(logits, Mix(*plain)).cumsum(-1, dtype=torch.int32)))
    rows = numbers(50, 2 * width)
    rows[3] = 0.0
    leveled = level_rows(rows.view(-1, width)).to(torch.int8)
    found.append(torch.equal(kernels.level(rows, width), leveled.view(50, 2, width)))
    return all(found) and bool((mine[1] > 0).any())
