"""The networks in NumPy say what those in torch say, bit for bit, and need no torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from colazip.nn.search_head import SearchHead
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.codec import Codec
from colazip.config import ModelConfig
from colazip.errors import ModelError, UsageError
from colazip.lanes import lay_out
from colazip.nn import grid, portable
from colazip.nn.dit import DiT
from colazip.nn.exact import frequencies, quantize_rows
from colazip.nn.shapes import coding_shapes
from colazip.nn.steps import TorchNetworks, table
from colazip.nn.vae import TextVAE, cell_index
from colazip.pretrained import Model, from_networks, load, save_pretrained
from colazip.tokenizer import Tokenizer
from colazip.vectors import unit
from tests.random_weights import randomize
from tests.tiny_model import passages, tiny_codec, tiny_folder


@pytest.fixture(scope="module", params=[0, 64], ids=["tokens", "tokens and words"])
def model(
    request: pytest.FixtureRequest, tiny_vae: TextVAE, tiny_config: ModelConfig, tiny_tokenizer: Tokenizer
) -> Model:
    config = dataclasses.replace(tiny_config, word_rows=request.param)
    search = SearchHead(config)
    randomize(search, seed=3)
    return from_networks(tiny_config, tiny_tokenizer, tiny_vae, search, DiT.for_text(tiny_config))


def test_shapes_are_those_of_the_networks(model: Model) -> None:
    shipped = {n: (v.shape, v.dtype.name) for n, v in model.tensors.items() if not n.startswith("prior.")}
    assert coding_shapes(model.config) == shipped


def test_every_table_is_the_same(model: Model) -> None:
    """Step by step through both, on lanes of different lengths, with known text instead of decoded."""
    config, rng = model.config, np.random.default_rng(4)
    patch, channels = config.patch, config.channels
    counts = np.array([9, 7, 7, 4, 1], np.int64)
    lanes, patches = len(counts), 3
    coarse = rng.integers(-1, 2, (lanes, patches, patch * channels)).astype(np.float32)
    levels = rng.integers(-4, 5, (lanes, patches, patch * channels)).astype(np.float32)
    tokens = rng.integers(0, config.vocabulary, (lanes, patches * patch))
    history = rng.integers(0, config.vocabulary, (lanes, 3))
    guess, kind = rng.integers(0, config.vocabulary, lanes), np.array([0, 3, 12, 1, 0])
    classes = rng.integers(0, config.classes, lanes)
    said: list[list[np.ndarray]] = []
    with torch.inference_mode():
        for net in (TorchNetworks(model.vae), model.portable):
            tables: list[np.ndarray] = []
            net.start_coarse(lanes)
            for i in range(patches):
                n = int((counts > i * patch).sum())
                net.coarse_context(i, coarse[:n, max(0, i - 1)])
                for k in range(patch):
                    m = int((counts > i * patch + k).sum())
                    if m:
                        tables.append(net.coarse_table(k, coarse[:m, i, : k * channels]))
            tables.append(net.fine_table(coarse, counts))
            features = net.features(levels, counts)
            tables.append(np.asarray(features[0, :2]))
            tables.append(np.asarray(net.read(features[0])))
            net.start_exact(lanes)
            for i in range(patches):
                n = int((counts > i * patch).sum())
                net.exact_context(i, features[:n, i], tokens[:n, max(0, i - 1) * patch :][:, :patch])
                for k in range(patch):
                    order = np.flatnonzero(counts > i * patch + k)[::-1].copy()
                    if len(order):
                        tables.append(net.class_table(k, order, history[order], guess[order], kind[order]))
                        tables.append(net.slot_table(classes[order]))
            tables.append(net.tokens(classes, guess % config.slots))
            said.append(tables)
    assert len(said[0]) == len(said[1]) > 20
    for torch_table, numpy_table in zip(*said, strict=True):
        assert torch_table.shape == numpy_table.shape
        assert np.array_equal(torch_table, numpy_table)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.sampled_from([1e-40, 1e-6, 1.0, 1e6, 1e30]))
def test_rounding_and_frequencies_are_the_same(seed: int, width: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((5, width)) * scale).astype(np.float32)
    x[0] = 0.0
    for ours, theirs in zip(portable.quantize_rows(x), quantize_rows(torch.from_numpy(x)), strict=True):
        assert np.array_equal(ours, theirs.numpy())
    logits = (rng.standard_normal((5, width)) * 8).astype(np.float32)
    mine = portable.cumulative(logits)
    assert np.array_equal(mine, table(torch.from_numpy(logits)))
    assert np.array_equal(np.diff(mine), frequencies(torch.from_numpy(logits)).numpy())


@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_cells_are_the_same(channels: int, seed: int) -> None:
    plane = np.random.default_rng(seed).integers(-1, 2, (2, 4 * channels)).astype(np.float32)
    index = grid.cell_index(plane, channels)
    assert np.array_equal(index, cell_index(torch.from_numpy(plane), channels).numpy())
    assert np.array_equal(grid.cell_plane(index, channels).reshape(plane.shape), plane)


def test_vectors_are_the_same(model: Model) -> None:
    tokens = model.tokenizer.encode([p.encode() for p in [*passages()[:3], "a", "bc"]])
    segment, patch = model.config.segment * model.config.patch, model.config.patch
    cut = [t[:segment] for t in tokens]
    lanes = lay_out([[len(t)] for t in cut], segment, patch)
    texts = [cut[b] for b in lanes.block]
    rows = np.zeros((len(lanes), int(lanes.count.max())), np.int64)
    for i, t in enumerate(texts):
        rows[i, : len(t)] = t
    codec = Codec(model)
    summands = [patches.astype(np.float64) for patches in codec._encoder.pool(lanes, rows)]
    for mine, theirs in zip(texts, [patches.sum(0) for patches in summands], strict=True):
        assert np.array_equal(model.vectors.sums(mine), theirs)
    assert not model.vectors.silent


def test_silent_states_change_nothing(model: Model) -> None:
    """A head whose states are zero gives the sums of its rows, through either implementation."""
    zero = {**model.tensors, "search.states.q": np.zeros_like(model.tensors["search.states.q"])}
    quiet = Model(model.id, model.config, model.tokenizer, zero)
    assert quiet.vectors.silent and quiet.search.silent
    texts = passages()[:3]
    found = Codec(quiet).vectors(texts)
    tokens = quiet.tokenizer.encode([t.encode() for t in texts])
    assert "vae" not in quiet.__dict__
    segment = quiet.config.segment * quiet.config.patch
    for tokens_of_one, vector in zip(tokens, found, strict=True):
        cut = range(0, len(tokens_of_one), segment)
        total = sum(quiet.rows.sums(tokens_of_one[lo : lo + segment]) for lo in cut)
        assert np.array_equal(unit(np.asarray(total)[None])[0], vector)


def test_both_decode_an_archive_s_blocks() -> None:
    parts = [[t.encode() for t in passages()[:6]], [b"", b"\x00\xff" * 40, passages()[7].encode()]]
    blocks = tiny_codec().encode_blocks(parts)
    one, other = (Codec(tiny_codec().model, implementation=name) for name in ("numpy", "torch"))
    assert one.decode_blocks(blocks) == other.decode_blocks(blocks) == parts
    assert one.read_gist(blocks) == other.read_gist(blocks)


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
        "assert 'torch' not in sys.modules, 'torch was loaded'\n"
        "sys.stdout.buffer.write(text)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == passages()[0].encode()


@pytest.mark.parametrize("change", ["missing", "shape", "type", "stranger", "infinite", "classes"])
def test_tensors_that_do_not_fit_are_refused(model: Model, tmp_path: Path, change: str) -> None:
    tensors = dict(model.tensors)
    if change == "missing":
        del tensors["vae.exact.trust.q"]
    elif change == "shape":
        tensors["vae.exact.trust.q"] = tensors["vae.exact.trust.q"][:, :-1].copy()
    elif change == "type":
        tensors["vae.exact.trust.q"] = tensors["vae.exact.trust.q"].astype(np.float32)
    elif change == "stranger":
        tensors["vae.exact.more.q"] = tensors["vae.exact.trust.q"]
    elif change == "infinite":
        tensors["vae.exact.trust.scale"] = np.full_like(tensors["vae.exact.trust.scale"], np.inf)
    else:
        tensors["vae.readout.class_of"] = np.full_like(tensors["vae.readout.class_of"], 1 << 20)
    from safetensors.numpy import save_file

    from colazip.pretrained import model_id

    networks = (model.vae, model.search, model.prior)
    save_pretrained(
        tmp_path,
        config=model.config,
        tokenizer=model.tokenizer,
        vae=networks[0],
        search=networks[1],
        prior=networks[2],
        card="",
        figures={},
    )
    identity = model_id(model.config, model.tokenizer, tensors)
    save_file(tensors, tmp_path / "weights.safetensors", metadata={"id": identity})
    with pytest.raises(ModelError, match=r"weights\.safetensors"):
        load(tmp_path)
