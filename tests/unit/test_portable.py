"""The networks in NumPy say what those in torch say, bit for bit, and need no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from colazip.codec import Codec
from colazip.config import ModelConfig
from colazip.errors import ModelError, UsageError
from colazip.nn import portable
from colazip.nn.compiled import CompiledNetworks, loop_product
from colazip.nn.dit import DiT
from colazip.nn.exact import cumulative, frequencies, quantize_rows
from colazip.nn.grid import MAX_K
from colazip.nn.quick import int8_product
from colazip.nn.shapes import coding_shapes
from colazip.nn.steps import TorchNetworks
from colazip.nn.vae import TextVAE
from colazip.pretrained import Model, from_networks, load, save_pretrained
from colazip.tokenizer import Tokenizer
from colazip.vectors import SearchRows
from tests.tiny_model import passages, tiny_codec, tiny_folder


@pytest.fixture(scope="module")
def model(tiny_vae: TextVAE, tiny_config: ModelConfig, tiny_tokenizer: Tokenizer) -> Model:
    return from_networks(
        tiny_config, tiny_tokenizer, tiny_vae, random_rows(tiny_config), DiT.for_text(tiny_config)
    )


def random_rows(config: ModelConfig) -> SearchRows:
    rng, width = np.random.default_rng(3), config.vector
    rows = rng.standard_normal((config.vocabulary + config.word_rows, width)).astype(np.float32)
    books = {m: rng.standard_normal((m, 256, width // m)).astype(np.float32) for m in config.codes}
    return SearchRows(rows, books)


def test_shapes_are_those_of_the_networks(model: Model) -> None:
    shipped = {n: (v.shape, v.dtype.name) for n, v in model.tensors.items() if not n.startswith("prior.")}
    assert coding_shapes(model.config) == shipped


@pytest.mark.parametrize("lengths", [[9, 7, 7, 4, 1], [11]])
@pytest.mark.parametrize("detail", [0, 1, 2])
def test_every_table_is_the_same(model: Model, detail: int, lengths: list[int]) -> None:
    """Step by step through all, on lanes of different lengths, with known text instead of decoded."""
    config, rng = model.config, np.random.default_rng(4)
    patch = config.patch
    counts = np.array(lengths, np.int64)
    lanes, patches = len(counts), 3
    real = np.arange(patches * patch)[None] < counts[:, None]
    tokens = rng.integers(0, config.vocabulary, real.shape)
    gist = model.cells.named(tokens, detail) * real
    history = rng.integers(0, config.vocabulary, (lanes, 3))
    guess = model.cells.named(rng.integers(0, config.vocabulary, lanes), detail)
    kind = np.array([3, 0, 12, 1, 0])[:lanes]
    classes = rng.integers(0, config.classes, lanes)
    classes[:2] = model.tensors["vae.readout.class_of"][guess[:2]]
    said: list[list[np.ndarray]] = []
    with torch.inference_mode():
        compiled = CompiledNetworks(config, model.tensors)
        for net in (TorchNetworks(model.vae), model.portable, model.quick, compiled):
            tables: list[np.ndarray] = []
            net.start(lanes, detail)
            for i in range(patches):
                n = int((counts > i * patch).sum())
                net.context(i, gist[:n, max(0, i - 1) * patch :][:, :patch])
                for k in range(patch):
                    order = np.flatnonzero(counts > i * patch + k)[::-1].copy()
                    if len(order):
                        tables.append(net.class_table(k, order, history[order], guess[order], kind[order]))
                        tables.append(net.slot_table(classes[order]))
            where = net.is_open(gist, detail) & real
            tables += [where, net.is_open(tokens, detail), net.has_slots(np.arange(config.classes), detail)]
            for at in (where, real, where & False):
                tables.append(net.rare_table(gist, counts, at, detail))
                tables.append(net.rare_best(gist, counts, at, detail))
            slots = np.arange(lanes)
            tables += [net.tokens(classes, slots), net.rarer(guess, slots)]
            said.append(tables)
    assert len({len(tables) for tables in said}) == 1 and len(said[0]) > 20
    for torch_table, *others in zip(*said, strict=True):
        assert all(torch_table.shape == other.shape for other in others)
        assert all(np.array_equal(torch_table, other) for other in others)
    assert said[0][-11].any()  # some tokens are open


@pytest.mark.parametrize("detail", [0, 1, 2])
def test_the_same_names(model: Model, detail: int) -> None:
    """What stands for a token, and which are open, by torch and by NumPy."""
    tokens = torch.arange(model.config.vocabulary)
    readout, names = model.vae.readout, model.cells
    named, is_open = readout.named(tokens, detail).numpy(), readout.is_open(tokens, detail).numpy()
    assert np.array_equal(names.named(tokens.numpy(), detail), named)
    assert np.array_equal(names.is_open(tokens.numpy(), detail), is_open)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.sampled_from([1e-40, 1e-6, 1.0, 1e6, 1e30]))
def test_rounding_and_frequencies_are_the_same(seed: int, width: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((5, width)) * scale).astype(np.float32)
    x[0] = 0.0
    for ours, theirs in zip(portable.quantize_rows(x), quantize_rows(torch.from_numpy(x)), strict=True):
        assert np.array_equal(ours, theirs.numpy())
    # One row goes another way, on scalars.
    rows, scales = portable.quantize_rows(x)
    for i in range(5):
        row, scale_of_one = portable.quantize_rows(x[i : i + 1])
        assert np.array_equal(row, rows[i : i + 1]) and scale_of_one == scales[i, 0]
        assert portable._inverse_rms(row) == portable._inverse_rms(rows)[i, 0]
    logits = (rng.standard_normal((5, width)) * 8).astype(np.float32)
    mine = portable.cumulative(logits)
    assert np.array_equal(mine, cumulative(torch.from_numpy(logits)).numpy())
    assert np.array_equal(np.diff(mine), frequencies(torch.from_numpy(logits)).numpy())


@pytest.mark.parametrize("detail", [0, 1, 2])
def test_both_decode_an_archive_s_blocks(detail: int) -> None:
    parts = [[t.encode() for t in passages()[:6]], [b"", b"\x00\xff" * 40, passages()[7].encode()]]
    blocks = Codec(tiny_codec().model, detail=detail).encode_blocks(parts)
    one, other = (Codec(tiny_codec().model, implementation=name) for name in ("numpy", "torch"))
    assert one.decode_blocks(blocks) == other.decode_blocks(blocks) == parts
    assert one.read_gist(blocks) == other.read_gist(blocks)


@pytest.mark.parametrize("width", [2, 64, MAX_K])
def test_int8_products_are_exact(width: int) -> None:
    rng = np.random.default_rng(width)
    weight = rng.integers(-127, 128, (48, width)).astype(np.int8)
    weight[0] = 127
    q = rng.integers(-127, 128, (3, width)).astype(np.float32)
    q[0] = -127
    wanted = q.astype(np.int64) @ weight.T.astype(np.int64)
    for rows in (q, q[:1]):
        for product in (portable.float_product(weight), int8_product(weight), loop_product(weight)):
            assert np.array_equal(product(rows), wanted[: len(rows)])
            assert product(rows).dtype == np.float32


def test_numpy_has_no_device() -> None:
    with pytest.raises(UsageError, match="CPU"):
        Codec(tiny_codec().model, device="cuda", implementation="numpy")


def test_reading_loads_no_torch(tmp_path: Path) -> None:
    (blob,) = tiny_codec().encode([passages()[0]])
    (tmp_path / "blob").write_bytes(blob)
    script = (
        "import sys; from pathlib import Path; from colazip.codec import Codec\n"
        f"codec = Codec.from_pretrained({str(tiny_folder())!r})\n"
        f"blob = Path({str(tmp_path / 'blob')!r}).read_bytes()\n"
        "text = codec.decode([blob])[0]; codec.read([blob]); codec.vectors([text])\n"
        "assert not {'torch', 'numba'} & set(sys.modules), 'loaded'\n"
        "sys.stdout.buffer.write(text)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == passages()[0].encode()


@pytest.mark.parametrize(
    "change", ["missing", "shape", "type", "stranger", "infinite", "classes", "limit", "no limit"]
)
def test_tensors_that_do_not_fit_are_refused(model: Model, tmp_path: Path, change: str) -> None:
    tensors = dict(model.tensors)
    if change == "missing":
        del tensors["vae.coder.trust.q"]
    elif change == "shape":
        tensors["vae.coder.trust.q"] = tensors["vae.coder.trust.q"][:, :-1].copy()
    elif change == "type":
        tensors["vae.coder.trust.q"] = tensors["vae.coder.trust.q"].astype(np.float32)
    elif change == "stranger":
        tensors["vae.coder.more.q"] = tensors["vae.coder.trust.q"]
    elif change == "infinite":
        tensors["vae.coder.trust.scale"] = np.full_like(tensors["vae.coder.trust.scale"], np.inf)
    elif change == "limit":
        tensors["vae.readout.limits"] = np.full_like(tensors["vae.readout.limits"], model.config.slots + 1)
    elif change == "no limit":
        tensors["vae.readout.limits"] = np.full_like(tensors["vae.readout.limits"], -1)
    else:
        tensors["vae.readout.class_of"] = np.full_like(tensors["vae.readout.class_of"], 1 << 20)
    from safetensors.numpy import save_file

    from colazip.pretrained import model_id

    save_pretrained(
        tmp_path,
        config=model.config,
        tokenizer=model.tokenizer,
        vae=model.vae,
        search=random_rows(model.config),
        prior=model.prior,
        card="",
        figures={},
    )
    identity = model_id(model.config, model.tokenizer, tensors)
    save_file(tensors, tmp_path / "weights.safetensors", metadata={"id": identity})
    with pytest.raises(ModelError, match=r"weights\.safetensors"):
        load(tmp_path)


def test_products_on_one_thread() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    assert before
    with portable.one_thread():
        assert set(threads()) == {1}
    assert threads() == before
