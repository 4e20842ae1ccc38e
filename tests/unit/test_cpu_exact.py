"""Exact layers in compiled loops: the bits of the operations, at every shape and size of number, and nothing
fused in the machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from colazip.nn import agreement, cpu_exact, exact, loading, loops
from colazip.nn.exact import (
    ExactEmbedding,
    ExactLinear,
    ExactReadout,
    exact_kernels,
    exact_mlp,
    quantize_rows,
)
from colazip.nn.layers import ExactBlock
from colazip.nn.loading import operation_by_operation
from tests.tiny_model import passages, tiny_codec, tiny_model

CPU = torch.device("cpu")
loading.expect_work(1 << 20)  # so that they are loaded
SEEDS = st.integers(0, 2**32 - 1)


def numbers(seed: int, *shape: int) -> Tensor:
    """Rows of all sizes; zeros of both signs, and rows of nothing but small ones, among them."""
    random = np.random.default_rng(seed)
    drawn = random.standard_normal(shape) * 10.0 ** random.uniform(-40, 6, (*shape[:-1], 1))
    drawn[random.random(shape) < 0.1] = -0.0
    drawn[random.random(shape[:-1]) < 0.1] = 0.0
    with np.errstate(under="ignore"):
        return torch.from_numpy(drawn.astype(np.float32))


def frozen(layer: ExactLinear | ExactEmbedding | ExactReadout, seed: int) -> None:
    random, shape = np.random.default_rng(seed), tuple(layer.trainable.shape)
    q = torch.from_numpy(random.integers(-127, 128, shape).astype(np.int8))
    layer.freeze(q, numbers(seed + 1, *shape[:-1], 1).abs().clamp(1e-20, 1e2))


def plainly(call):  # type: ignore[no-untyped-def]
    with operation_by_operation(), torch.no_grad():
        return call()


def test_this_machine_has_them() -> None:
    assert exact_kernels(CPU) is cpu_exact
    with operation_by_operation():
        assert exact_kernels(CPU) is None
        with operation_by_operation():
            pass
        assert exact_kernels(CPU) is None and loading.compiled_loops() is None
    assert exact_kernels(CPU) is cpu_exact and loading.compiled_loops() is loops


def test_little_work_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_expected", 0)
    monkeypatch.setattr(loading, "_WORTH_LOADING", 300)
    codec = tiny_codec()
    codec.encode_blocks([[b"a few words"]])
    assert exact_kernels(CPU) is None
    codec.encode_blocks([[text.encode()] for text in passages()[:9]])
    assert exact_kernels(CPU) is cpu_exact


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0, 1, 2, 33]), st.sampled_from([1, 7, 16, 65, 192]), st.booleans())
def test_linear_layers(seed: int, rows: int, width: int, norm: bool) -> None:
    up, down = ExactLinear(width, 50, norm=norm), ExactLinear(50, 3)
    frozen(up, seed)
    frozen(down, seed + 7)
    x = numbers(seed, rows, width)
    with torch.no_grad():
        assert torch.equal(up(x), plainly(lambda: up(x)))
        assert torch.equal(exact_mlp(x, up, down), plainly(lambda: exact_mlp(x, up, down)))
        across = x.expand(2, rows, width).transpose(0, 1)  # not contiguous
        assert torch.equal(up(across), plainly(lambda: up(across)))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0, 1, 20]), st.sampled_from([1, 15, 64, 100, 192]))
def test_look_ups_and_readouts(seed: int, rows: int, width: int) -> None:
    table, readout = ExactEmbedding(9, width), ExactReadout(5, 6, width)
    frozen(table, seed)
    frozen(readout, seed)
    random = np.random.default_rng(seed)
    index = torch.from_numpy(random.integers(0, 9, (rows, 3)))
    group = torch.from_numpy(random.integers(0, 5, rows))
    x = numbers(seed, rows, width)
    with torch.no_grad():
        assert torch.equal(table(index), plainly(lambda: table(index)))
        assert torch.equal(readout(x, group), plainly(lambda: readout(x, group)))


@settings(max_examples=25, deadline=None)
@given(
    SEEDS,
    st.integers(1, 3),
    st.sampled_from([1, 2, 5, 70, 130]),
    st.sampled_from([(1, 64), (3, 20), (2, 48)]),
    st.booleans(),
)
def test_blocks(seed: int, batch: int, length: int, heads: tuple[int, int], causal: bool) -> None:
    count, width = heads
    block = ExactBlock(count * width, count, 80, causal=causal)
    for i, layer in enumerate((block.qkv, block.out, block.up, block.down)):
        frozen(layer, seed + i)
        layer.scale.clamp_(max=0.01)
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.standard_normal((batch, length, count * width)).astype(np.float32))
    there = torch.from_numpy(random.integers(1, length + 1, batch))
    valid = torch.arange(length) < there[:, None]
    with torch.no_grad():
        found = block(x, None, valid)
        assert torch.equal(found, plainly(lambda: block(x, None, valid)))
        if causal:  # and step by step, with lanes that end
            cache = block.cache(batch)
            for at in range(min(length, 12)):
                lanes = max(1, batch - at // 5)
                assert torch.equal(block.step(x[:lanes, at], at, cache), found[:lanes, at])


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([0, 1, 9]), st.sampled_from([1, 2, 64, 128, 130]))
def test_tables(seed: int, rows: int, size: int) -> None:
    logits = torch.from_numpy(
        (np.random.default_rng(seed).standard_normal((rows, size)) * 9).astype(np.float32)
    )
    logits[:, 1::3] = -1e4
    assert torch.equal(exact.cumulative(logits), plainly(lambda: exact.cumulative(logits)))


def test_rows_at_the_edge_of_what_is_rounded() -> None:
    """Halves, which go to the even number, and magnitudes around that below which a row counts as zeros."""
    edges = [[127.0, 0.5, 1.5, -2.5, 126.5], [2.0**-121, 2.0**-122, 0, 0, 0], [2.0**-122, 2.0**-140, 0, 0, 0]]
    x = torch.tensor([*edges, [3e38, -3e38, 1.0, 0.0, -0.0]], dtype=torch.float32)
    q, factor = cpu_exact.quantize(x, norm=False)
    expected, scale = quantize_rows(x)
    assert torch.equal(q.float(), expected) and torch.equal(factor, scale)
    assert q[0].tolist() == [127, 0, 2, -2, 126]


@pytest.mark.parametrize("wins", [True, False])
def test_products_of_either_kind(wins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "int8_kernel_wins", lambda: wins)
    with torch.no_grad():
        assert agreement.agree(cpu_exact, CPU)


def test_the_codec_writes_and_reads_the_same() -> None:
    codec = type(tiny_codec())(tiny_model(), implementation="torch")
    blocks = [[text.encode() for text in passages()[at : at + 12]] for at in range(0, 36, 12)]
    coded = codec.encode_blocks(blocks)
    assert codec.decode_blocks(coded) == blocks
    readings = codec.read_gist(coded)
    with operation_by_operation():
        plain = type(codec)(tiny_model(), implementation="torch")
        assert [block.layers for block in plain.encode_blocks(blocks)] == [block.layers for block in coded]
        assert plain.decode_blocks(coded) == blocks and plain.read_gist(coded) == readings


@pytest.fixture
def anew() -> Iterator[None]:
    """Kernels are tried again, now and afterwards."""
    for kept in (exact._exact_kernels, loading._loops):
        kept.cache_clear()
    yield
    for kept in (exact._exact_kernels, loading._loops):
        kept.cache_clear()


@pytest.mark.parametrize("what", ["differ", "missing"])
def test_without_them_operations_run(
    what: str, anew: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "differ":
        monkeypatch.setattr(agreement, "agree", lambda kernels, device: False)
    else:

        def missing(name: str) -> None:
            raise ModuleNotFoundError(name)

        monkeypatch.setattr(loading.importlib, "import_module", missing)
    assert exact_kernels(CPU) is None and exact_kernels(CPU) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "without fused kernels" in said
    assert ("they differ" if what == "differ" else "ModuleNotFoundError") in said


INSPECT = """
import re, sys, torch
from colazip.nn import agreement, cpu_exact, exact_loops
with torch.no_grad():
    assert agreement.agree(cpu_exact, torch.device("cpu"))
for name, loop in sorted(vars(exact_loops).items()):
    for code in loop.inspect_asm().values() if hasattr(loop, "inspect_asm") else ():
        print(name, *re.findall(r"\\bv?fn?m(?:add|sub)\\w*|\\bfml[as]\\w*|\\bv?rcp\\w*|\\bv?rsqrt\\w*", code))
"""


def test_no_sum_is_fused_with_a_product(tmp_path: Path) -> None:
    """That would round once where the operations round twice. Nor is a division or root approximate."""
    # In a process that has not loaded compiled code: of such, Numba does not show the machine's.
    done = subprocess.run(
        [sys.executable, "-c", INSPECT],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.split() for line in done.stdout.splitlines()]
    assert {"quantize_rows", "weigh", "cumulative", "attend_step"} <= {name for name, *_ in found}
    assert [line for line in found if len(line) > 1] == []
