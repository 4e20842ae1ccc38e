"""Exact stacks: the same bits in parallel and step by step, in any batch, with any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from colazip.nn.grid import ATTENTION_KEYS, ATTENTION_TABLE
from colazip.nn.layers import ExactBlock, ExactStack, StepCache, alibi_slopes, straight_through
from tests import numpy_block
from tests.random_weights import randomize

WIDTH, HEADS = 48, 3


def stack(*, causal: bool, seed: int = 1, layers: int = 3) -> ExactStack:
    made = ExactStack(WIDTH, layers, HEADS, causal=causal)
    randomize(made, seed)
    return made.eval().requires_grad_(False)


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


def everything(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def differs(a: Tensor, b: Tensor) -> bool:
    """Whether the values differ by more than rounding, so that a test has not compared constants."""
    return float((a - b).abs().max()) > 1e-3


# A second implementation


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_block_is_what_numpy_computes(causal: bool, seed: int) -> None:
    block = ExactBlock(WIDTH, HEADS, 2 * WIDTH, causal=causal)
    randomize(block, seed)
    x = inputs(2, 40, seed=seed) * 10.0 ** (seed - 2)
    x[0, 3] = 0
    with torch.no_grad():
        y = block(x).numpy()
    weights = {name: value.numpy() for name, value in block.state_dict().items()}
    # Square roots as IEEE 754 rounds them, or as torch's float32 kernel of this machine does: see
    # test_the_inverse_rms_is_rounded_as_ieee_says.
    same = [
        all(
            np.array_equal(numpy_block.block(x[i].numpy(), weights, HEADS, causal=causal, root=root), y[i])
            for i in range(2)
        )
        for root in (np.sqrt, lambda a: torch.sqrt(torch.from_numpy(a)).numpy())
    ]
    assert any(same)
    assert differs(torch.from_numpy(y), x)


def test_the_attention_table_is_what_integers_say() -> None:
    assert ATTENTION_TABLE.tolist() == numpy_block.attention_table()


# Parallel and step by step


def test_steps_equal_the_parallel_pass() -> None:
    net, x = stack(causal=True), inputs(4, 37)
    expected = net(x, everything(x))
    caches = net.caches(4)
    steps = [net.step(x[:, i], i, caches) for i in range(37)]
    assert torch.equal(torch.stack(steps, 1), expected)
    assert differs(expected, x)


def test_lanes_of_falling_length_step_together() -> None:
    net, x = stack(causal=True), inputs(5, 40)
    lengths = [40, 33, 9, 8, 1]
    caches = net.caches(5)
    for i in range(40):
        n = sum(length > i for length in lengths)
        y = net.step(x[:n, i], i, caches)
        for lane in range(n):
            if lengths[lane] == i + 1:
                alone = x[lane : lane + 1, : i + 1]
                assert torch.equal(net(alone, everything(alone))[0, i], y[lane])


def test_a_cache_keeps_what_was_put() -> None:
    cache = StepCache(3, 2, 4, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    keys = torch.randint(-127, 128, (3, 2, 30, 4), generator=generator).float()
    values = torch.randint(-127, 128, (3, 2, 30, 4), generator=generator).float()
    for i in range(30):
        n = 3 if i < 12 else 2  # a lane ends
        cache.put(i, keys[:n, :, i], values[:n, :, i])
        got = cache.get(n, i + 1)
        assert torch.equal(got[0], keys[:n, :, : i + 1]) and torch.equal(got[1], values[:n, :, : i + 1])


def test_a_causal_stack_does_not_see_the_future() -> None:
    net, x = stack(causal=True), inputs(1, 20)
    y = x.clone()
    y[:, 12:] = inputs(1, 8, seed=9) * 50
    before, after = net(x, everything(x)), net(y, everything(y))
    assert torch.equal(before[:, :12], after[:, :12])
    assert differs(before[:, 12:], after[:, 12:])


def test_the_other_stack_does() -> None:
    net, x = stack(causal=False), inputs(1, 20)
    y = x.clone()
    y[:, 19] = 3
    assert differs(net(x, everything(x))[:, 0], net(y, everything(y))[:, 0])


# Batch, padding, threads


@pytest.mark.parametrize("causal", [False, True])
def test_a_batch_equals_one_by_one(causal: bool) -> None:
    net, x = stack(causal=causal), inputs(16, 21)
    alone = torch.cat([net(row[None], everything(row[None])) for row in x])
    assert torch.equal(net(x, everything(x)), alone)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("noise", [0.0, 1e6])
def test_padding_changes_nothing(causal: bool, noise: float) -> None:
    net = stack(causal=causal)
    lengths = [30, 17, 1]
    x = inputs(3, 30)
    valid = torch.arange(30)[None] < torch.tensor(lengths)[:, None]
    x = torch.where(valid[..., None], x, noise * inputs(3, 30, seed=5))
    y = net(x, valid)
    for row, length in enumerate(lengths):
        alone = x[row : row + 1, :length]
        assert torch.equal(net(alone, everything(alone))[0], y[row, :length])


@pytest.mark.parametrize("causal", [False, True])
def test_threads_change_nothing(causal: bool) -> None:
    net, x = stack(causal=causal), inputs(8, 64)
    with threads(1):
        one = net(x, everything(x))
    with threads(2):
        two = net(x, everything(x))
    with threads(3):
        three = net(x, everything(x))
    assert torch.equal(one, two) and torch.equal(one, three)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_matmul_precision_changes_nothing(precision: str) -> None:
    """Operands have 8 bits, so even bfloat16 products are exact; the program around us may want them."""
    net, x = stack(causal=False), inputs(2, 30)
    expected = net(x, everything(x))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert torch.equal(net(x, everything(x)), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_strides_change_nothing() -> None:
    net = stack(causal=True)
    x = inputs(1, 12)
    turned = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert turned.stride() != x.stride()
    assert torch.equal(net(turned, everything(x)), net(x, everything(x)))
    caches, others = net.caches(1), net.caches(1)
    for i in range(12):
        assert torch.equal(net.step(turned[:, i], i, caches), net.step(x[:, i], i, others))


def test_frozen_equals_unfrozen() -> None:
    net, x = stack(causal=True), inputs(2, 15)
    expected = net(x, everything(x))
    for block in net.blocks:
        for layer in (block.qkv, block.out, block.up, block.down):
            q, scale = numpy_block.quantize_rows(layer.weight.numpy())
            layer.freeze(torch.from_numpy(q).to(torch.int8), torch.from_numpy(scale))
    assert torch.equal(net(x, everything(x)), expected)
    caches = net.caches(2)
    assert torch.equal(torch.stack([net.step(x[:, i], i, caches) for i in range(15)], 1), expected)


def test_one_position_too_many_is_refused() -> None:
    net = stack(causal=True, layers=1)
    x = inputs(1, ATTENTION_KEYS)
    assert net(x, everything(x)).shape == x.shape
    x = inputs(1, ATTENTION_KEYS + 1)
    with pytest.raises(ValueError, match="513 positions"):
        net(x, everything(x))


# Training


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_change_no_bit_of_the_forward_pass(causal: bool) -> None:
    net, x = stack(causal=causal), inputs(2, 18)
    expected = net(x, everything(x))
    net.requires_grad_(True)
    y = net(x.requires_grad_(), everything(x))
    assert torch.equal(y, expected)
    y.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("causal", [False, True])
def test_fast_attention_is_close(causal: bool) -> None:
    net = stack(causal=causal, layers=1)
    x, valid = inputs(3, 25), torch.arange(25)[None] < torch.tensor([25, 11, 1])[:, None]
    exact, fast = net(x, valid)[valid], net(x, valid, fast=True)[valid]
    assert float((exact - fast).norm() / exact.norm()) < 0.05


def test_straight_through() -> None:
    value = torch.tensor([0.2, 1.7], requires_grad=True)
    y = straight_through(value, value.detach().round())
    assert y.tolist() == [0.0, 2.0]
    (y * torch.tensor([3.0, 5.0])).sum().backward()
    assert value.grad is not None and value.grad.tolist() == [3.0, 5.0]


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8])
def test_slopes_are_powers_of_two_and_one_head_has_none(heads: int) -> None:
    slopes = alibi_slopes(heads).tolist()
    assert len(slopes) == heads and slopes[-1] == 0.0
    assert slopes[:-1] == sorted(slopes[:-1], reverse=True)
    assert all(np.log2(s) == round(np.log2(s)) for s in slopes[:-1])
