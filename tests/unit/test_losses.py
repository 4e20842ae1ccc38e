"""What training minimises: true code lengths, whatever the batch looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from colazip.config import ModelConfig
from colazip.entropy import cost_bits
from colazip.nn.exact import frequencies
from colazip.nn.vae import LEVEL, TextVAE, token_history
from colazip.train.losses import Terms, Weights, compute, latent_bits, token_bits

PLAIN = Weights(gist=0.5, rate=0.25, exact_into_latents=True)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """tokens [3, 20], counts [3]: a full row, a last patch that is not full, a single token."""
    counts = torch.tensor([20, 9, 1])
    tokens = torch.randint(1, config.vocabulary, (3, 20), generator=seeded(1))
    return tokens.masked_fill(torch.arange(20)[None] >= counts[:, None], 0), counts


# Latents


def test_the_levels_of_a_channel_share_one_unit_of_probability() -> None:
    levels = torch.arange(-LEVEL, LEVEL + 1.0)[:, None]  # [9, 1]
    coarse = torch.randn(1, 1, 3, generator=seeded(2)).expand(9, 1, 3)
    fine = torch.randn(1, 1, 3, 3, generator=seeded(3)).expand(9, 1, 3, 3)
    bits, coarse_bits = latent_bits(coarse, fine, levels, levels)
    assert torch.allclose((2.0**-bits).sum(), torch.tensor(1.0))
    assert torch.allclose((2.0**-coarse_bits).sum(), torch.tensor(3.0))  # every plane counted thrice
    assert (bits >= coarse_bits).all()


def test_the_gradient_of_the_rate_is_the_slope_between_levels() -> None:
    coarse = torch.randn(1, 3, generator=seeded(4))
    fine = torch.randn(1, 3, 3, generator=seeded(5))

    def cost(level: float) -> float:
        at = torch.tensor([level])
        return float(latent_bits(coarse, fine, at, at)[0])

    for value in (-4.4, -3.3, -0.6, 0.2, 1.7, 4.4):
        u = torch.tensor([value], requires_grad=True)
        bits, _ = latent_bits(coarse, fine, u.detach().round().clamp(-LEVEL, LEVEL), u)
        assert float(bits.detach()) == pytest.approx(cost(max(-4, min(4, round(value)))), abs=1e-5)
        bits.sum().backward()
        below = max(-4, min(3, int(np.floor(value))))
        assert u.grad is not None
        assert float(u.grad) == pytest.approx(cost(below + 1) - cost(below), abs=1e-5)


# Tokens


def test_token_bits_are_what_the_coder_pays(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    states = torch.randn(400, tiny_config.local_width, generator=seeded(6))
    targets = torch.randint(0, tiny_config.vocabulary, (400,), generator=seeded(7))
    readout, rows = tiny_vae.readout, np.arange(400)
    classes, slots = readout.class_of[targets], readout.slot_of[targets]
    first = frequencies(readout.classes(states))[rows, classes]
    second = frequencies(readout.slots(states, classes))[rows, slots]
    paid = cost_bits(first.numpy()) + cost_bits(second.numpy())
    bits = token_bits(readout, states, targets).double().numpy()
    assert np.abs(paid - bits).max() < 0.2  # logits are cut to steps of 1/32, twice
    assert abs(paid.mean() - bits.mean()) < 0.01


# The whole


def test_a_batch_is_the_sum_of_its_rows(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts = batch(tiny_config)
    together = compute(tiny_vae, tokens, counts, PLAIN, fast=False)
    alone: list[Terms] = []
    for row, count in enumerate(counts.tolist()):
        width = -(-count // tiny_config.patch) * tiny_config.patch
        alone.append(
            compute(tiny_vae, tokens[row : row + 1, :width], counts[row : row + 1], PLAIN, fast=False)
        )
    for name in ("exact", "gist", "rate", "coarse_rate"):
        parts = sum(float(getattr(t, name)) for t in alone)
        assert float(getattr(together, name)) == pytest.approx(parts, rel=1e-5), name
    assert together.tokens == sum(t.tokens for t in alone) == 30
    assert together.patches == sum(t.patches for t in alone) == 5 + 3 + 1


def test_padding_counts_for_nothing(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts = batch(tiny_config)
    wider = torch.nn.functional.pad(tokens, (0, 3 * tiny_config.patch))
    a = compute(tiny_vae, tokens, counts, PLAIN, fast=False)
    b = compute(tiny_vae, wider, counts, PLAIN, fast=False)
    for name in ("loss", "exact", "gist", "rate", "coarse_rate"):
        assert float(getattr(a, name)) == pytest.approx(float(getattr(b, name)), rel=1e-6), name
    assert (a.tokens, a.patches) == (b.tokens, b.patches)


def test_the_loss_is_the_weighted_sum(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts = batch(tiny_config)
    terms = compute(tiny_vae, tokens, counts, PLAIN, fast=False)
    whole = float(terms.exact) + 0.5 * float(terms.gist) + 0.25 * float(terms.rate)
    assert float(terms.loss) == pytest.approx(whole / terms.tokens, rel=1e-5)
    with_coarse = compute(tiny_vae, tokens, counts, Weights(0.5, 0.25, True, coarse=1.0), fast=False)
    assert float(with_coarse.loss) > float(terms.loss)
    assert float(with_coarse.exact) == pytest.approx(float(terms.exact), rel=1e-6)


def test_exact_bits_are_those_of_one_pass_by_hand(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts = batch(tiny_config)
    x = tokens[:1].unflatten(1, (-1, tiny_config.patch))
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    features = tiny_vae.decoder(tiny_vae.encode(x, valid).levels, valid)
    states = tiny_vae.exact.patches(features, tiny_vae.embed_patches(x), valid)
    slots = tiny_vae.exact.slots(states).unflatten(-1, (tiny_config.patch, -1)).flatten(0, 2)
    states = tiny_vae.exact.tokens(slots, token_history(tokens[:1])[0], tiny_vae.embed)
    bits = token_bits(tiny_vae.readout, states, tokens[0]).sum()
    terms = compute(tiny_vae, tokens[:1], counts[:1], PLAIN, fast=False)
    assert float(terms.exact) == pytest.approx(float(bits), rel=1e-6)


def test_fast_attention_costs_about_the_same(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts = batch(tiny_config)
    exact = compute(tiny_vae, tokens, counts, PLAIN, fast=False)
    fast = compute(tiny_vae, tokens, counts, PLAIN, fast=True)
    assert float(fast.loss) == pytest.approx(float(exact.loss), rel=0.1)


@pytest.mark.parametrize("into", [False, True])
def test_what_the_exact_loss_reaches(tiny_vae: TextVAE, tiny_config: ModelConfig, into: bool) -> None:
    model = TextVAE(tiny_config)
    model.load_state_dict(tiny_vae.state_dict())
    tokens, counts = batch(tiny_config)
    compute(model, tokens, counts, Weights(0.0, 0.0, into), fast=False).loss.backward()
    assert bool(model.encoder.patch.weight.grad is not None and model.encoder.patch.weight.grad.any()) == into
    gradient = model.exact.enter_tokens.weight.grad
    assert gradient is not None and gradient.any()


@pytest.mark.parametrize("fast", [False, True])
def test_every_parameter_learns(tiny_vae: TextVAE, tiny_config: ModelConfig, fast: bool) -> None:
    model = TextVAE(tiny_config)
    model.load_state_dict(tiny_vae.state_dict())
    tokens, counts = batch(tiny_config)
    weights = Weights(0.5, 0.25, True, token_dropout=0.1, coarse=0.1)
    torch.manual_seed(0)
    compute(model, tokens, counts, weights, fast=fast).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_dropped_tokens_are_hidden_from_the_encoder_only(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts = batch(tiny_config)
    torch.manual_seed(0)
    hidden = compute(tiny_vae, tokens, counts, Weights(0.5, 0.25, True, token_dropout=1.0), fast=False)
    tokens2 = tokens.clone()
    tokens2[0, :4] = tokens2[0, :4] % (tiny_config.vocabulary - 1) + 1
    other = compute(tiny_vae, tokens2, counts, Weights(0.5, 0.25, True, token_dropout=1.0), fast=False)
    assert float(hidden.rate) == float(other.rate)  # all latents alike, whatever the tokens
    assert float(hidden.exact) != float(other.exact)
