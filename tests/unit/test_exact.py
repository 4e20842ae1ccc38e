"""Exact layers: integer sums against NumPy's int64, tables that add up, gradients near those of floats."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from colazip.nn import exact
from colazip.nn.exact import (
    ATTENTION_TABLE,
    FREQUENCY_TABLE,
    MAX_K,
    PRECISION,
    ExactEmbedding,
    ExactLinear,
    ExactReadout,
    frequencies,
    integer_matmul,
    integer_softmax,
    quantize_rows,
)

TOTAL = 1 << PRECISION


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frozen(layer: ExactLinear | ExactEmbedding | ExactReadout) -> ExactLinear | ExactEmbedding | ExactReadout:
    """The layer as it ships: freezes it in place."""
    q, scale = quantize_rows(layer.weight.detach())
    layer.freeze(q.to(torch.int8), scale)
    return layer


# integer_matmul


@pytest.mark.parametrize("k", [1, 7, 64, 1039, MAX_K])
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_product_is_that_of_integers(k: int, rows: int) -> None:
    a = torch.randint(-127, 128, (rows, k), dtype=torch.int8, generator=seeded(k))
    b = torch.randint(-127, 128, (19, k), dtype=torch.int8, generator=seeded(k + 1))
    expected = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T
    y = integer_matmul(a, b)
    assert y.dtype == torch.float32
    assert np.array_equal(y.numpy().astype(np.int64), expected)
    # The path of a machine whose int8 product is slow or wrong.
    assert torch.equal(y, a.float() @ b.float().t())


@pytest.mark.parametrize("signs", ["equal", "opposite", "alternating", "late"])
def test_product_at_the_extremes(signs: str) -> None:
    """Sums as large as they get, and sums that cancel to almost nothing only at the end."""
    a = torch.full((40, MAX_K), 127, dtype=torch.int8)
    b = torch.full((24, MAX_K), 127, dtype=torch.int8)
    if signs == "opposite":
        b.neg_()
    elif signs == "alternating":
        b[:, ::2] = -127
    elif signs == "late":
        b[:, MAX_K // 2 :] = -127
        a[:, -1] = 126
    expected = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T
    assert np.abs(expected).max() < 2**24
    assert np.array_equal(integer_matmul(a, b).numpy().astype(np.int64), expected)
    assert np.array_equal((a.float() @ b.float().t()).numpy().astype(np.int64), expected)


def test_longer_sums_are_refused() -> None:
    a = torch.zeros(2, MAX_K + 1, dtype=torch.int8)
    with pytest.raises(ValueError, match="1041"):
        integer_matmul(a, a)
    with pytest.raises(ValueError, match="1041"):
        ExactLinear(MAX_K + 1, 4)
    assert 127 * 127 * MAX_K < 2**24 <= 127 * 127 * (MAX_K + 1)


def test_no_rows_give_no_rows() -> None:
    y = integer_matmul(torch.zeros(0, 8, dtype=torch.int8), torch.zeros(3, 8, dtype=torch.int8))
    assert y.shape == (0, 3)


# quantize_rows


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 9)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_rows_are_within_half_a_step(x: np.ndarray) -> None:
    q, scale = quantize_rows(torch.from_numpy(x))
    assert torch.isfinite(q).all() and torch.isfinite(scale).all()
    assert (q.abs() <= 127).all()
    assert torch.equal(q, q.round())
    assert q.to(torch.int8).float().equal(q)
    error = (q.double() * scale.double() - torch.from_numpy(x).double()).abs()
    # Rows next to zero are read as zeros; elsewhere half a step, and the rounding of the scale.
    allowed = torch.where(q.abs().amax(-1, keepdim=True) > 0, scale.double() * 0.5001, 2.0**-120)
    assert (error <= allowed).all()


def test_a_row_of_zeros() -> None:
    q, scale = quantize_rows(torch.zeros(2, 5))
    assert torch.equal(q, torch.zeros(2, 5))
    assert scale.tolist() == [[1 / np.float32(127.0)]] * 2


@pytest.mark.parametrize("top", [1e-45, 1e-40, 3e-37, 1e-36, 1e-20, 3e38])
def test_rows_at_the_ends_of_the_range(top: float) -> None:
    q, scale = quantize_rows(torch.tensor([[top, -top, 0.0]]))
    assert torch.isfinite(q).all() and torch.isfinite(scale).all()
    assert q.tolist() in ([[127.0, -127.0, 0.0]], [[0.0, 0.0, 0.0]])


def test_the_inverse_rms_is_rounded_as_ieee_says() -> None:
    """Another machine's square root rounds correctly, and so would read other streams."""
    q = torch.randint(-127, 128, (5000, 48), generator=seeded(20)).float()
    squares = (q.numpy().astype(np.int64) ** 2).sum(-1, keepdims=True).astype(np.float32)
    expected = np.float32(1) / np.sqrt(squares / np.float32(48))
    assert np.array_equal(exact.inverse_rms(q).numpy(), expected)


# ExactLinear, ExactEmbedding, ExactReadout


@pytest.mark.parametrize("norm", [False, True])
def test_frozen_layer_is_the_same_bit_for_bit(norm: bool) -> None:
    layer = ExactLinear(96, 40, norm=norm)
    x = torch.randn(3, 7, 96, generator=seeded(1)) * 5
    x[0, 0] = 0
    trained = layer(x)
    assert trained.requires_grad
    shipped = frozen(layer)(x)
    assert torch.equal(trained, shipped)
    assert torch.isfinite(shipped).all()


def test_frozen_embedding_is_the_same_bit_for_bit() -> None:
    table = ExactEmbedding(50, 16)
    index = torch.randint(0, 50, (4, 9), generator=seeded(2))
    trained = table(index)
    assert torch.equal(trained, frozen(table)(index))
    assert trained.shape == (4, 9, 16)


def test_frozen_readout_is_the_same_bit_for_bit() -> None:
    layer = ExactReadout(5, 8, 24)
    x = torch.randn(60, 24, generator=seeded(3))
    group = torch.randint(0, 4, (60,), generator=seeded(4))  # class 4 has no rows
    trained = layer(x, group)
    shipped = frozen(layer)(x, group)
    assert torch.equal(trained, shipped)
    # Row by row, and in another order: which rows come together changes nothing.
    assert torch.equal(torch.cat([layer(x[i : i + 1], group[i : i + 1]) for i in range(60)]), shipped)
    order = torch.randperm(60, generator=seeded(5))
    assert torch.equal(layer(x[order], group[order]), shipped[order])


@pytest.mark.parametrize("rows", [1, 63, 64, 700])
def test_readout_in_runs_is_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does in place of the loop over classes, done here."""
    torch.manual_seed(rows)
    layer, group = ExactReadout(5, 7, 24), torch.randint(0, 5, (rows,)) * 3 % 5
    found = []
    for in_runs in (False, True):
        monkeypatch.setattr(exact, "_in_runs", lambda _, runs=in_runs: runs)
        x = torch.randn(rows, 24, generator=seeded(1), requires_grad=True)
        layer.zero_grad()
        y = layer(x, group)
        y.square().sum().backward()
        found.append((y.detach(), x.grad, layer.trainable.grad))
    (y, gx, gw), (y_runs, gx_runs, gw_runs) = found
    assert torch.equal(y, y_runs)
    torch.testing.assert_close(gx_runs, gx)
    torch.testing.assert_close(gw_runs, gw)


def test_no_rows_through_the_layers() -> None:
    assert ExactLinear(6, 4, norm=True)(torch.zeros(0, 6)).shape == (0, 4)
    assert ExactReadout(3, 8, 6)(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)).shape == (0, 8)


@pytest.mark.parametrize("norm", [False, True])
def test_layer_is_near_the_float_layer(norm: bool) -> None:
    layer = ExactLinear(128, 64, norm=norm)
    x = torch.randn(50, 128, generator=seeded(6)) * 3
    assert relative(layer(x), _float_linear(x, layer.weight, norm)) < 0.02


def relative(value: Tensor, reference: Tensor) -> float:
    return float(((value - reference).norm() / reference.norm()).detach())


def _float_linear(x: Tensor, weight: Tensor, norm: bool) -> Tensor:
    if norm:
        x = x / x.square().mean(-1, keepdim=True).sqrt()
    return x @ weight.t()


@pytest.mark.parametrize("norm", [False, True])
def test_gradients_are_near_those_of_the_float_layer(norm: bool) -> None:
    layer = ExactLinear(128, 64, norm=norm)
    x = (torch.randn(2, 25, 128, generator=seeded(7)) * 3).requires_grad_()
    g = torch.randn(2, 25, 64, generator=seeded(8))
    layer(x).backward(g)
    weight = layer.weight.detach().clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    _float_linear(y, weight, norm).backward(g)
    for mine, reference in ((x.grad, y.grad), (layer.weight.grad, weight.grad)):
        assert mine is not None and reference is not None
        assert torch.isfinite(mine).all()
        assert relative(mine, reference) < 0.03
    if norm:  # a normalised layer doesn't care for the length of x
        assert float((x.grad * x.detach()).sum(-1).abs().max()) < 0.03 * float(g.norm())


def test_gradients_of_the_readout_are_near_those_of_floats() -> None:
    layer = ExactReadout(4, 8, 32)
    x = torch.randn(40, 32, generator=seeded(9)).requires_grad_()
    group = torch.randint(0, 3, (40,), generator=seeded(10))
    g = torch.randn(40, 8, generator=seeded(11))
    layer(x, group).backward(g)
    weight = layer.weight.detach().clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    normed = y / y.square().mean(-1, keepdim=True).sqrt()
    torch.einsum("nk,nsk->ns", normed, weight[group]).backward(g)
    assert x.grad is not None and layer.weight.grad is not None
    assert relative(x.grad, y.grad) < 0.03  # type: ignore[arg-type]
    assert relative(layer.weight.grad, weight.grad) < 0.03  # type: ignore[arg-type]
    assert not layer.weight.grad[3].any()


def test_gradient_of_a_row_of_zeros_is_finite() -> None:
    layer = ExactLinear(8, 4, norm=True)
    x = torch.zeros(2, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert layer.weight.grad is not None and torch.isfinite(layer.weight.grad).all()


def test_gradient_of_the_embedding_goes_straight_through() -> None:
    table = ExactEmbedding(6, 4)
    g = torch.randn(3, 4, generator=seeded(12))
    table(torch.tensor([1, 4, 1])).backward(g)
    expected = torch.zeros(6, 4)
    expected[1], expected[4] = g[0] + g[2], g[1]
    assert torch.allclose(table.weight.grad, expected)


# integer_softmax and frequencies


def test_tables_are_rounded_powers() -> None:
    for table, top, floor in ((ATTENTION_TABLE, 255, 0), (FREQUENCY_TABLE, TOTAL, 1)):
        true = top * 2.0 ** (-np.arange(len(table)) / 32)
        assert np.abs(table - np.maximum(true, floor)).max() <= 0.5 + 1e-6
        assert table[0] == top and table[-1] == max(floor, round(true[-1]))
    assert ATTENTION_TABLE[-1] == 0  # so that a key that is masked out has no weight


def test_softmax_weights_are_integers_near_the_true_ones() -> None:
    scores = torch.randn(5, 6, 40, generator=seeded(13)) * 3
    weights, total = integer_softmax(scores)
    assert torch.equal(weights, weights.round())
    assert weights.min() >= 0 and weights.amax(-1).eq(255).all()
    assert torch.equal(total[..., 0].long(), weights.long().sum(-1))
    true = torch.softmax(scores * np.log(2), -1)
    assert (weights / total - true).abs().max() < 0.01


def test_softmax_masks_and_extremes() -> None:
    scores = torch.tensor([[0.0, -torch.inf, -1.0], [-1e30, -1e30, -torch.inf], [3e38, -3e38, 0.0]])
    weights, total = integer_softmax(scores)
    assert weights.tolist() == [[255, 0, round(255 / 2)], [255, 255, 0], [255, 0, 0]]
    assert total[:, 0].tolist() == [383, 510, 255]


def test_softmax_needs_only_the_keys_that_are_there() -> None:
    scores = torch.randn(4, 9, generator=seeded(14))
    padded = torch.cat([scores, torch.full((4, 30), -torch.inf)], -1)
    weights, total = integer_softmax(scores)
    weights_padded, total_padded = integer_softmax(padded)
    assert torch.equal(weights_padded[:, :9], weights) and torch.equal(total_padded, total)


def plain_frequencies(logits: list[float]) -> list[int]:
    """A table by its description, in fractions: floor of the share of 2**20 - A, one more, the rest to 0.

    A share that is a whole number may come out one lower in float64, so both are given back.
    """
    top = max(np.float32(v) for v in logits)
    with np.errstate(over="ignore"):
        steps = [float(np.rint((top - np.float32(v)) * np.float32(32))) for v in logits]
    weights = [int(FREQUENCY_TABLE[int(min(s, len(FREQUENCY_TABLE) - 1))]) for s in steps]
    shares = [Fraction(w * (TOTAL - len(logits)), sum(weights)) for w in weights]
    return [int(share) + 1 if share.denominator > 1 else -int(share) - 1 for share in shares]


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.lists(finite, min_size=1, max_size=12),
        st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=130),
        st.tuples(finite, st.integers(1, 512)).map(lambda pair: [pair[0]] * pair[1]),
        st.tuples(finite, st.sampled_from([3, 64, 128, 512])).map(lambda p: [p[0]] + [p[0] - 100] * p[1]),
    )
)
def test_frequencies_add_up(logits: list[float]) -> None:
    freq = frequencies(torch.tensor([logits, logits[::-1]], dtype=torch.float32))
    assert freq.dtype == torch.int32
    assert freq.long().sum(-1).tolist() == [TOTAL, TOTAL]
    assert freq.min() >= 1
    for share, found in zip(plain_frequencies(logits)[1:], freq[0, 1:].tolist(), strict=True):
        assert found == share or (share < 0 and found in (-share, -share - 1))


def test_frequencies_do_not_depend_on_the_batch() -> None:
    logits = torch.randn(200, 64, generator=seeded(15)) * 6
    together = frequencies(logits)
    assert torch.equal(torch.cat([frequencies(logits[i : i + 1]) for i in range(200)]), together)


def test_frequencies_cost_little_over_the_true_probabilities() -> None:
    logits = torch.randn(500, 128, generator=seeded(16)) * 4
    true = torch.log_softmax(logits.double() * np.log(2), -1)
    coded = torch.log2(frequencies(logits).double() / TOTAL)
    excess = (true.exp() * (true / np.log(2) - coded)).sum(-1)  # bits a symbol
    assert excess.min() >= -1e-9
    assert excess.mean() < 5e-4
    assert excess.max() < 5e-3


def test_a_certain_symbol_costs_next_to_nothing() -> None:
    logits = torch.full((1, 128), -60.0)
    logits[0, 5] = 60.0
    assert frequencies(logits)[0, 5] >= TOTAL - 2 * 128


def test_products_with_all_classes_and_the_own_one_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU computes: the logits of `ExactReadout` bit by bit."""
    monkeypatch.setattr(exact, "_READOUT_ROWS", 16)
    readout = ExactReadout(6, 16, 32)
    frozen(readout)
    x = torch.randn(50, 32, generator=seeded(3))
    group = torch.randint(0, 6, (50,), generator=seeded(4))
    q, _ = quantize_rows(x)
    factor = exact.inverse_rms(q)
    picked = exact._picked_product(q.to(torch.int8), readout.q, readout.scale, factor, group)
    assert torch.equal(picked, readout(x, group))
    none = exact._picked_product(q[:0].to(torch.int8), readout.q, readout.scale, factor[:0], group[:0])
    assert none.shape == (0, 16)
