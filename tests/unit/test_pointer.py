"""What tokens point at: the same in one pass, step by step, in every implementation, and worth its bits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from colazip.codec import Codec
from colazip.config import ModelConfig
from colazip.layers import GIST
from colazip.nn import cpu_exact, loading
from colazip.nn.exact import Mix, frequencies, inverse_rms, quantize_rows
from colazip.nn.grid import GRID, POINTER_KEYS, POINTER_RMS, PRECISION, SHARES
from colazip.nn.loading import operation_by_operation
from colazip.nn.pointer import Aim, Known, Pointer, TokenCache, WholeLanes, level_rows, plain_point
from colazip.nn.portable import level_rows as portable_level_rows
from colazip.nn.shapes import coding_shapes
from colazip.nn.vae import TextVAE
from tests.pointing_model import pointing_model
from tests.tiny_model import passages, tiny_codec

CLASSES, SLOTS = 16, 32


def states_of(config: ModelConfig, lanes: int, length: int) -> Tensor:
    """Token states [lanes, length, L], some of which recur."""
    generator = torch.Generator().manual_seed(3)
    some = torch.randn(9, config.local_width, generator=generator)
    which = torch.randint(0, 9, (lanes, length), generator=generator)
    return some[which] + 0.1 * torch.randn(lanes, length, config.local_width, generator=generator)


def labels_of(lanes: int, length: int) -> tuple[Tensor, Tensor]:
    """Classes and slots."""
    generator = torch.Generator().manual_seed(4)
    classes, slots = (torch.randint(0, n, (lanes, length), generator=generator) for n in (CLASSES, SLOTS))
    return classes, slots


def pointer_of(vae: TextVAE) -> Pointer:
    assert vae.coder.pointer is not None
    return vae.coder.pointer


@pytest.mark.parametrize("plain", [True, False])
def test_step_by_step_as_in_one_pass(tiny_vae: TextVAE, tiny_config: ModelConfig, plain: bool) -> None:
    """Lanes of several lengths in runs that cut them, and the same lanes side by side."""
    pointer, counts = pointer_of(tiny_vae), torch.tensor([50, 33, 33, 7])
    states, (classes, slots) = states_of(tiny_config, 4, 50), labels_of(4, 50)
    there = torch.arange(50) < counts[:, None]
    flat, flat_classes = states[there], classes[there]
    logits = torch.randn(len(flat), CLASSES, generator=torch.Generator().manual_seed(5)) * 3
    tables: dict[tuple[int, int], tuple[Tensor, Mix, Mix]] = {}

    def passes() -> None:
        whole = WholeLanes(pointer, counts, 50, flat_classes, slots[there])
        rows = there.nonzero()
        for lo in range(0, len(flat), 41):
            part = slice(lo, lo + 41)
            aim = whole.aim(flat[part], CLASSES)
            freq = frequencies(logits[part], aim.of_class())
            cdf = torch.nn.functional.pad(freq.cumsum(-1, dtype=torch.int32), (1, 0))
            slot = aim.given_class(cdf, flat_classes[part], whole.known, SLOTS)
            for i, (lane, at) in enumerate(rows[part].tolist()):
                tables[lane, at] = (
                    cdf[i],
                    aim.of_class().rows(torch.tensor([i])),
                    slot.rows(torch.tensor([i])),
                )
        cache = TokenCache(pointer, 4)
        for at in range(50):
            lanes = torch.arange(int((counts > at).sum())).flip(0)
            if at:
                cache.tell(at - 1, lanes, classes[lanes, at - 1], slots[lanes, at - 1])
            aim = cache.step(states[lanes, at], at, lanes, CLASSES)
            cdf = torch.stack([tables[int(lane), at][0] for lane in lanes])
            slot = aim.given_class(cdf, classes[lanes, at], cache.known, SLOTS)
            for i, lane in enumerate(lanes.tolist()):
                _, by_class, by_slot = tables[lane, at]
                for mine, theirs in ((aim.of_class(), by_class), (slot, by_slot)):
                    own = mine.rows(torch.tensor([i]))
                    assert torch.equal(own.own, theirs.own) and torch.equal(own.pointed, theirs.pointed)

    if plain:
        with operation_by_operation():
            passes()
    else:
        passes()
    assert any((by_class.pointed > by_class.own).any() for _, by_class, _ in tables.values())


def test_shares_of_training_are_those_of_the_tables(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    pointer, length = pointer_of(tiny_vae), 60
    states, (classes, slots) = states_of(tiny_config, 1, length), labels_of(1, length)
    tokens = classes * SLOTS + slots
    rounded = pointer.shares(states, classes, tokens, fast=False)
    for close, shares in ((1e-6, rounded), (0.03, pointer.shares(states, classes, tokens, fast=True))):
        whole = WholeLanes(pointer, torch.tensor([length]), length, classes[0], slots[0])
        aim = whole.aim(states[0], CLASSES)
        total = (aim.own + aim.by_class.sum(-1)).double()
        pointed = aim.by_class.gather(1, classes[0][:, None])[:, 0]
        assert torch.allclose((aim.own / total).float(), shares.own, atol=close)
        assert torch.allclose((pointed / total).float(), shares.same_class, atol=close)
        assert (shares.same_token <= shares.same_class + close).all()
    assert (rounded.own < 0.9).any() and (rounded.same_token > 0).any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 128), st.booleans())
def test_mixtures_are_distributions(seed: int, size: int, heavy: bool) -> None:
    """Frequencies are at least 1, add up, and are the shares asked for, at the largest weights too."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy((random.standard_normal((6, size)) * 6).astype(np.float32))
    own = random.integers(1, 256, 6)
    pointed = random.integers(0, 2000, (6, size)) * (random.random((6, size)) < 0.2)
    if heavy:  # what a slot's mixture can be at most
        pointed[:, 0], own = (SHARES - 1) * 255 * (POINTER_KEYS - 1), np.full(6, 255 * (POINTER_KEYS - 1))
        pointed[:, 1:] = 0
    mix = Mix(torch.from_numpy(own.astype(np.int32)), torch.from_numpy(pointed.astype(np.int32)))
    found = frequencies(logits, mix).numpy()
    assert (found >= 1).all() and (found.sum(1) == 1 << PRECISION).all()
    plain = frequencies(logits).numpy() / (1 << PRECISION)
    total = own + pointed.sum(1)
    wanted = (plain * own[:, None] + pointed) / total[:, None]
    assert np.abs(found / (1 << PRECISION) - wanted).max() < 3 * size / (1 << PRECISION)
    assert np.array_equal(np.diff(cpu_exact.cumulative(logits, mix).numpy()), found)


def test_nothing_to_point_at_changes_nothing(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    cache = TokenCache(pointer_of(tiny_vae), 2)
    aim = cache.step(states_of(tiny_config, 2, 1)[:, 0], 0, torch.arange(2), CLASSES)
    logits = torch.randn(2, CLASSES)
    freq = frequencies(logits, aim.of_class())
    assert torch.equal(freq, frequencies(logits))
    cdf = torch.nn.functional.pad(freq.cumsum(-1, dtype=torch.int32), (1, 0))
    slot = aim.given_class(cdf, torch.tensor([1, 2]), cache.known, SLOTS)
    assert slot.own.tolist() == [1, 1] and not slot.pointed.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 64]), st.sampled_from([1e-30, 1e-3, 1.0, 1e20]))
def test_level_rows(seed: int, width: int, scale: float) -> None:
    x = (np.random.default_rng(seed).standard_normal((7, width)) * scale).astype(np.float32)
    x[0] = 0.0
    found = level_rows(torch.from_numpy(x)).numpy()
    assert np.array_equal(found, portable_level_rows(x))
    assert np.array_equal(found, np.rint(found)) and np.abs(found).max() <= GRID
    if width == 64:
        rms = np.sqrt((found[1:] ** 2).mean(1))
        assert np.abs(rms / POINTER_RMS - 1).max() < 0.15
    q, _ = quantize_rows(torch.from_numpy(x))
    assert inverse_rms(q).shape == (7, 1)


def test_rows_of_one_lane_and_of_many_weigh_the_same() -> None:
    """The plain way, which takes a lane's rows together where it can."""
    random = np.random.default_rng(1)
    keys = torch.from_numpy(random.integers(-40, 41, (60, 16)).astype(np.int8))
    labels = torch.from_numpy(random.integers(0, CLASSES, 60).astype(np.int32))
    at = torch.stack([torch.full((30,), 20), torch.arange(30)])
    query, reserve, factor = keys[20:50], torch.full((30,), 200.0), torch.tensor([0.01])
    known = Known(keys, labels, labels)
    together = plain_point(query, reserve, factor, known, at, 29, CLASSES)
    for i in range(30):
        row = slice(i, i + 1)
        alone = plain_point(query[row], reserve[row], factor, known, at[:, row], 29, CLASSES)
        assert all(torch.equal(a, b[row]) for a, b in zip(alone, together, strict=True))
    assert together[1].any()


def test_a_pointing_model_reads_what_it_wrote() -> None:
    """By torch, by NumPy and by compiled loops; lanes of several segments and bytes that are no text too."""
    model = pointing_model()
    parts = [[t.encode() for t in passages()[:6]], [b"", b"\x00\xff" * 40, " ".join(passages()[:9]).encode()]]
    codec = Codec(model, implementation="torch")
    blocks = codec.encode_blocks(parts)
    with operation_by_operation():
        plainly = codec.encode_blocks(parts)
        assert Codec(model, implementation="torch").decode_blocks(blocks) == parts
    assert [b.layers for b in blocks] == [b.layers for b in plainly]
    one, other = (Codec(model, implementation=name) for name in ("numpy", "torch"))
    assert one.decode_blocks(blocks) == other.decode_blocks(blocks) == parts
    assert one.read_gist(blocks) == other.read_gist(blocks)
    others = tiny_codec().encode_blocks(parts)
    for block, other in zip(blocks, others, strict=True):  # what is pointed at counts
        assert block.layers[GIST] != other.layers[GIST] and len(block.layers[GIST]) > 500


@pytest.mark.parametrize("change", [{"segment": 257}, {"classes": 256, "slots": 16}])
def test_what_can_not_be_exact_is_refused(tiny_config: ModelConfig, change: dict[str, int]) -> None:
    coding_shapes(tiny_config)
    with pytest.raises(ValueError, match="pointed at"):
        coding_shapes(dataclasses.replace(tiny_config, **change))


def test_what_was_joined_moves_with_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may code on a CPU first and on a GPU then."""
    pointer = Pointer(32, 16)
    for layer in (pointer.both, pointer.sentinel):
        q, scale = quantize_rows(layer.trainable.detach())
        layer.freeze(q.to(torch.int8), scale)
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(6))
    monkeypatch.setattr(loading, "_expected", 1 << 20)  # worth loading kernels
    with torch.no_grad():
        found = pointer.read(states)
        with operation_by_operation():
            plainly = pointer.read(states)
    assert all(torch.equal(a, b) for a, b in zip(found, plainly, strict=True))
    assert pointer.joined is not None and "joined" not in pointer.state_dict()
    assert pointer.to("meta").joined.device == pointer.joined_scale.device == torch.device("meta")


def test_an_aim_without_keys() -> None:
    nothing = torch.zeros(0, dtype=torch.int32)
    aim = Aim(
        torch.tensor([255], dtype=torch.int32),
        torch.zeros(1, CLASSES, dtype=torch.int32),
        torch.zeros(1, 0, dtype=torch.uint8),
        torch.zeros(2, 1, dtype=torch.int64),
    )
    cdf = torch.arange(CLASSES + 1, dtype=torch.int32)[None] * ((1 << PRECISION) // CLASSES)
    mix = aim.given_class(cdf, torch.tensor([3]), Known(nothing, nothing, nothing), SLOTS)
    assert mix.own.item() == 1 and not mix.pointed.any()
