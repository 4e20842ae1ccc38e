"""The DiT prior: cached blocks equal the training pass, and regeneration keeps its promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colazip.errors import UsageError
from colazip.layers import GIST
from colazip.nn.dit import DiT, History
from colazip.prior import regenerate, resample
from colazip.train.recipes import tiny
from tests.tiny_model import passages, tiny_codec


def random_prior() -> DiT:
    torch.manual_seed(0)
    prior = DiT(tiny().model).eval()
    for parameter in prior.parameters():  # gates start at zero, where every architecture looks right
        torch.nn.init.normal_(parameter, std=0.3)
    return prior


def test_cached_blocks_equal_the_whole_sequence() -> None:
    prior = random_prior()
    block, channels = prior.block, prior.channels
    clean, noisy = torch.randn(2, 3 * block - 2, channels), torch.randn(2, 3 * block - 2, channels)
    t = torch.tensor([0.2, 0.5, 0.9]).repeat_interleave(block)[: clean.shape[1]].expand(2, -1)
    with torch.inference_mode():
        everything = torch.ones(2, clean.shape[1], dtype=torch.bool)
        whole = prior(noisy, t, clean, everything, torch.ones(2, dtype=torch.bool))
        past, steps = History(prior.layers), []
        for i, lo in enumerate(range(0, clean.shape[1], block)):
            steps.append(prior.velocity(noisy[:, lo : lo + block], (0.2, 0.5, 0.9)[i], past))
            prior.finish(clean[:, lo : lo + block], past)
    assert torch.allclose(whole, torch.cat(steps, 1), atol=1e-4)


def test_velocity_does_not_see_later_blocks() -> None:
    prior = random_prior()
    block = prior.block
    clean, noisy = torch.randn(1, 2 * block, prior.channels), torch.randn(1, 2 * block, prior.channels)
    t, valid = torch.full((1, 2 * block), 0.5), torch.ones(1, 2 * block, dtype=torch.bool)
    history = torch.ones(1, dtype=torch.bool)
    with torch.inference_mode():
        before = prior(noisy, t, clean, valid, history)
        clean[:, block:] += 1.0
        noisy[:, block:] += 1.0
        after = prior(noisy, t, clean, valid, history)
    assert torch.equal(before[:, :block], after[:, :block])
    assert not torch.allclose(before[:, block:], after[:, block:])


def test_strength_zero_is_the_gist_reading_and_strength_moves_latents() -> None:
    codec = tiny_codec()
    parts = [t.encode() for t in passages()[:2]]
    blocks = codec.encode_blocks([parts], (GIST,))
    assert regenerate(codec, [(blocks[0], 1)], strength=0.0) == codec.read_gist(blocks)[0][1]
    levels = codec.latents(blocks[0])[0][0][0]
    moved = []
    for strength in (0.0, 0.4, 1.0):
        drawn = resample(
            codec.model.prior, levels, strength=strength, steps=4, generator=torch.Generator().manual_seed(0)
        )
        assert drawn.shape == levels.shape and np.abs(drawn).max() <= 4
        moved.append(float(np.abs(drawn - levels).mean()))
    assert moved[0] == 0.0 and moved[1] < moved[2]


def test_same_seed_same_text() -> None:
    codec = tiny_codec()
    (block,) = codec.encode_blocks([[passages()[3].encode()]])
    one, two, other = (regenerate(codec, [(block, 0)], strength=1.0, steps=3, seed=s) for s in (1, 1, 2))
    assert one == two
    assert one != other


def test_plain_parts_come_back_as_they_are() -> None:
    codec = tiny_codec()
    (block,) = codec.encode_blocks([["日本".encode()]])
    assert regenerate(codec, [(block, 0)]) == "日本"


@pytest.mark.parametrize("options", [{"strength": -0.1}, {"strength": 1.5}, {"steps": 0}])
def test_values_out_of_range(options: dict[str, float]) -> None:
    codec = tiny_codec()
    (block,) = codec.encode_blocks([[passages()[0].encode()]])
    with pytest.raises(UsageError):
        regenerate(codec, [(block, 0)], **options)  # type: ignore[arg-type]
