"""What training minimises: true code lengths, whatever the batch looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from colazip.config import ModelConfig
from colazip.entropy import cost_bits
from colazip.memory import KINDS
from colazip.nn.exact import frequencies
from colazip.nn.vae import (
    LEVEL,
    PLANE,
    Guess,
    TextVAE,
    cell_index,
    coarse_plane,
    real_tokens,
    token_history,
)
from colazip.train.losses import Terms, Weights, compute, latent_bits, token_bits

PLAIN = Weights(gist=0.5, rate=0.25, exact_into_latents=True)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """tokens [3, 20], counts [3], guesses and kinds [2, 3, 20]: a full row, a last patch that is not full, a
    single token."""
    counts = torch.tensor([20, 9, 1])
    real = torch.arange(20)[None] < counts[:, None]
    tokens = torch.randint(1, config.vocabulary, (3, 20), generator=seeded(1)) * real
    kind = torch.randint(-KINDS // 2, KINDS, (3, 20), generator=seeded(8)).clamp_min(0) * real
    guess = torch.randint(0, config.vocabulary, (3, 20), generator=seeded(9))
    guess = torch.where(torch.rand(3, 20, generator=seeded(10)) < 0.5, tokens, guess) * (kind > 0)
    return tokens, counts, torch.stack([guess, kind])


# Latents


def tables(tokens: int, channels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of the coarse cell [1, K, cells] and of the fine one under each [1, K, cells, cells]."""
    cells = PLANE**channels
    coarse = torch.randn(1, tokens, cells, generator=seeded(seed))
    return coarse, torch.randn(1, tokens, cells, cells, generator=seeded(seed + 1))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_levels_of_a_token_share_one_unit_of_probability(channels: int) -> None:
    grid = torch.arange(-LEVEL, LEVEL + 1.0)
    levels = torch.cartesian_prod(*[grid] * channels).view(-1, channels)  # all the places of one token
    coarse, fine = tables(1, channels, 2)
    bits, coarse_bits = latent_bits(
        coarse.expand(len(levels), -1, -1), fine.expand(len(levels), -1, -1, -1), levels, levels
    )
    assert bits.shape == coarse_bits.shape == (9**channels, 1)
    assert (2.0**-bits).sum().item() == pytest.approx(1.0, rel=1e-5)
    # Every coarse cell is counted once for each of its fine ones.
    assert (2.0**-coarse_bits).sum().item() == pytest.approx(PLANE**channels, rel=1e-5)
    assert (bits >= coarse_bits).all()


def test_latent_bits_are_what_the_coder_pays(tiny_config: ModelConfig) -> None:
    """Against the coder's own tables: the coarse cell's, then the fine one's under it, one token after the
    other."""
    patch, channels, count = tiny_config.patch, tiny_config.channels, 50
    cells = PLANE**channels
    coarse_logits = torch.randn(count, patch, cells, generator=seeded(11))
    fine_logits = torch.randn(count, patch, cells, cells, generator=seeded(12))
    levels = torch.randint(-LEVEL, LEVEL + 1, (count, patch * channels), generator=seeded(13)).float()
    plane = coarse_plane(levels)
    first, second = cell_index(plane, channels), cell_index(levels - 3.0 * plane, channels)
    bits, coarse_bits = latent_bits(coarse_logits, fine_logits, levels, levels)
    for n, k in np.ndindex(count, patch):
        a = frequencies(coarse_logits[n, k][None])[0, first[n, k]]
        b = frequencies(fine_logits[n, k, first[n, k]][None])[0, second[n, k]]
        paid = cost_bits(np.array([a, b]))
        assert float(coarse_bits[n, k]) == pytest.approx(paid[0], abs=0.1)  # logits are cut to steps of 1/32
        assert float(bits[n, k]) == pytest.approx(paid.sum(), abs=0.2)


@pytest.mark.parametrize("channel", [0, 1, 2, 3])
def test_the_gradient_of_the_rate_is_the_slope_between_levels(channel: int) -> None:
    """Two tokens of two channels, whose cells have one table each: the slope along a channel is taken with
    the other channels where they stand."""
    coarse, fine = tables(2, 2, 4)

    def cost(at: list[int]) -> float:
        levels = torch.tensor([at]).float()
        return float(latent_bits(coarse, fine, levels, levels)[0].sum())

    draws = torch.rand(6, 4, generator=seeded(6)) * 9.0 - 4.5
    for row, value in zip(draws, (-4.4, -3.3, -0.6, 0.2, 1.7, 4.4), strict=True):
        row[channel] = value
        u = row[None].clone().requires_grad_()
        levels = u.detach().round().clamp(-LEVEL, LEVEL)
        at = [int(v) for v in levels[0]]
        bits, _ = latent_bits(coarse, fine, levels, u)
        assert float(bits.detach().sum()) == pytest.approx(cost(at), abs=1e-4)
        bits.sum().backward()
        below = max(-4, min(3, int(np.floor(value))))
        lo, hi = ([*at[:channel], level, *at[channel + 1 :]] for level in (below, below + 1))
        assert u.grad is not None
        assert float(u.grad[0, channel]) == pytest.approx(cost(hi) - cost(lo), abs=1e-4)


def test_the_rate_of_a_token_leaves_the_others_alone() -> None:
    coarse, fine = tables(3, 2, 7)
    u = torch.rand(1, 6, generator=seeded(14)) * 8.0 - 4.0
    u.requires_grad_()
    bits, _ = latent_bits(coarse, fine, u.detach().round(), u)
    bits[0, 1].backward()
    assert u.grad is not None and u.grad[0].bool().tolist() == [False, False, True, True, False, False]


# Tokens


@pytest.mark.parametrize("guessed", [False, True])
def test_token_bits_are_what_the_coder_pays(
    tiny_vae: TextVAE, tiny_config: ModelConfig, guessed: bool
) -> None:
    states = torch.randn(400, tiny_config.local_width, generator=seeded(6))
    targets = torch.randint(0, tiny_config.vocabulary, (400,), generator=seeded(7))
    readout, rows = tiny_vae.readout, np.arange(400)
    classes, slots = readout.class_of[targets], readout.slot_of[targets]
    guess = None
    if guessed:  # a third is right, a third of the right class only
        near = readout.token_of[classes, (slots + 1) % tiny_config.slots]
        far = readout.token_of[(classes + 1) % tiny_config.classes, slots]
        token = torch.where(torch.arange(400) % 3 == 0, targets, near)
        token = torch.where(torch.arange(400) % 3 == 2, far, token)
        guess = Guess(token, torch.rand(400, 2, generator=seeded(15)) * 8.0 - 2.0)
    first = frequencies(readout.class_logits(states, guess))[rows, classes]
    second = frequencies(readout.slot_logits(states, classes, guess))[rows, slots]
    paid = cost_bits(first.numpy()) + cost_bits(second.numpy())
    bits = token_bits(readout, states, targets, guess).double().numpy()
    assert np.abs(paid - bits).max() < 0.2  # logits are cut to steps of 1/32, twice
    assert abs(paid.mean() - bits.mean()) < 0.01
    if guessed:
        without = token_bits(readout, states, targets).double().numpy()
        assert (bits != without).all() and (bits - without)[::3].mean() < -1.0


# The whole


def test_a_batch_is_the_sum_of_its_rows(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    together = compute(tiny_vae, tokens, counts, guesses, PLAIN, fast=False)
    alone: list[Terms] = []
    for row, count in enumerate(counts.tolist()):
        width = -(-count // tiny_config.patch) * tiny_config.patch
        mine = slice(row, row + 1)
        one = tokens[mine, :width], counts[mine], guesses[:, mine, :width]
        alone.append(compute(tiny_vae, *one, PLAIN, fast=False))
    for name in ("exact", "gist", "rate", "coarse_rate"):
        parts = sum(float(getattr(t, name)) for t in alone)
        assert float(getattr(together, name)) == pytest.approx(parts, rel=1e-5), name
    assert together.tokens == sum(t.tokens for t in alone) == 30
    assert together.patches == sum(t.patches for t in alone) == 5 + 3 + 1


def test_padding_counts_for_nothing(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    wider = torch.nn.functional.pad(tokens, (0, 3 * tiny_config.patch))
    a = compute(tiny_vae, tokens, counts, guesses, PLAIN, fast=False)
    wider_guesses = torch.nn.functional.pad(guesses, (0, 3 * tiny_config.patch))
    b = compute(tiny_vae, wider, counts, wider_guesses, PLAIN, fast=False)
    for name in ("loss", "exact", "gist", "rate", "coarse_rate"):
        assert float(getattr(a, name)) == pytest.approx(float(getattr(b, name)), rel=1e-6), name
    assert (a.tokens, a.patches) == (b.tokens, b.patches)


def test_the_loss_is_the_weighted_sum(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    terms = compute(tiny_vae, tokens, counts, guesses, PLAIN, fast=False)
    whole = float(terms.exact) + 0.5 * float(terms.gist) + 0.25 * float(terms.rate)
    assert float(terms.loss) == pytest.approx(whole / terms.tokens, rel=1e-5)
    with_coarse = compute(tiny_vae, tokens, counts, guesses, Weights(0.5, 0.25, True, coarse=1.0), fast=False)
    assert float(with_coarse.loss) > float(terms.loss)
    assert float(with_coarse.exact) == pytest.approx(float(terms.exact), rel=1e-6)


def test_the_latents_of_padding_cost_nothing(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    """The rate is that of the real tokens' cells, however the rest of the last patch is filled."""
    tokens, counts, guesses = batch(tiny_config)
    x, patch = tokens.unflatten(1, (-1, tiny_config.patch)), tiny_config.patch
    real = real_tokens(counts, x)
    levels = tiny_vae.encode(x, real).levels
    coarse = coarse_plane(levels)
    valid = real[..., 0]
    bits, coarse_bits = latent_bits(
        tiny_vae.context(coarse, valid)[valid], tiny_vae.refiner(coarse, valid)[valid], *[levels[valid]] * 2
    )
    terms = compute(tiny_vae, tokens, counts, guesses, PLAIN, fast=False)
    assert float(terms.rate) == pytest.approx(float(bits[real[valid]].sum()), rel=1e-5)
    assert float(terms.coarse_rate) == pytest.approx(float(coarse_bits[real[valid]].sum()), rel=1e-5)
    assert real[valid].sum() == counts.sum() < len(bits) * patch


def test_guesses_change_the_exact_bits_alone(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    with_guesses = compute(tiny_vae, tokens, counts, guesses, PLAIN, fast=False)
    without = compute(tiny_vae, tokens, counts, torch.zeros_like(guesses), PLAIN, fast=False)
    assert float(with_guesses.exact) != float(without.exact)
    for name in ("gist", "rate", "coarse_rate"):
        assert float(getattr(with_guesses, name)) == float(getattr(without, name)), name


def test_exact_bits_are_those_of_one_pass_by_hand(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    x = tokens[:1].unflatten(1, (-1, tiny_config.patch))
    real = real_tokens(counts[:1], x)
    valid = real[..., 0]
    features = tiny_vae.decoder(tiny_vae.encode(x, real).levels, valid)
    states = tiny_vae.exact.patches(features, tiny_vae.embed_patches(x), valid)
    slots = tiny_vae.exact.slots(states).unflatten(-1, (tiny_config.patch, -1)).flatten(0, 2)
    guess, kind = guesses[:, 0]
    states = tiny_vae.exact.tokens(slots, token_history(tokens[:1])[0], guess, kind, tiny_vae.embed)
    weighed = tiny_vae.exact.weigh(states, guess, kind)
    bits = token_bits(tiny_vae.readout, states, tokens[0], weighed).sum()
    terms = compute(tiny_vae, tokens[:1], counts[:1], guesses[:, :1], PLAIN, fast=False)
    assert float(terms.exact) == pytest.approx(float(bits), rel=1e-6)


def test_fast_attention_costs_about_the_same(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    exact = compute(tiny_vae, tokens, counts, guesses, PLAIN, fast=False)
    fast = compute(tiny_vae, tokens, counts, guesses, PLAIN, fast=True)
    assert float(fast.loss) == pytest.approx(float(exact.loss), rel=0.1)


@pytest.mark.parametrize("into", [False, True])
def test_what_the_exact_loss_reaches(tiny_vae: TextVAE, tiny_config: ModelConfig, into: bool) -> None:
    model = TextVAE(tiny_config)
    model.load_state_dict(tiny_vae.state_dict())
    tokens, counts, guesses = batch(tiny_config)
    compute(model, tokens, counts, guesses, Weights(0.0, 0.0, into), fast=False).loss.backward()
    assert bool(model.encoder.patch.weight.grad is not None and model.encoder.patch.weight.grad.any()) == into
    gradient = model.exact.enter_tokens.weight.grad
    assert gradient is not None and gradient.any()


@pytest.mark.parametrize("fast", [False, True])
def test_every_parameter_learns(tiny_vae: TextVAE, tiny_config: ModelConfig, fast: bool) -> None:
    model = TextVAE(tiny_config)
    model.load_state_dict(tiny_vae.state_dict())
    tokens, counts, guesses = batch(tiny_config)
    weights = Weights(0.5, 0.25, True, token_dropout=0.1, coarse=0.1)
    torch.manual_seed(0)
    compute(model, tokens, counts, guesses, weights, fast=fast).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_dropped_tokens_are_hidden_from_the_encoder_only(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    torch.manual_seed(0)
    hidden = compute(
        tiny_vae, tokens, counts, guesses, Weights(0.5, 0.25, True, token_dropout=1.0), fast=False
    )
    tokens2 = tokens.clone()
    tokens2[0, :4] = tokens2[0, :4] % (tiny_config.vocabulary - 1) + 1
    other = compute(
        tiny_vae, tokens2, counts, guesses, Weights(0.5, 0.25, True, token_dropout=1.0), fast=False
    )
    assert float(hidden.rate) == float(other.rate)  # all latents alike, whatever the tokens
    assert float(hidden.exact) != float(other.exact)
