"""The networks of the full float model: published sizes, causality, caches, losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from colazip.errors import ColazipError
from colazip.nn.cola import ColaConfig, ColaVAE
from colazip.nn.cola_dit import ColaDiT
from colazip.train.cola_losses import ColaWeights, Stage1, Stage2, draw
from colazip.train.recipes import paper_2b, paper_tiny

CONFIG = replace(paper_tiny().model, vocabulary=50)


def small(kind: type, config: ColaConfig = CONFIG):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    module = kind(config)
    module.initialize()
    # Zero at first: every layer would be the identity.
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return module


def test_published_sizes() -> None:
    with torch.device("meta"):
        model = paper_2b().model
        sizes = [sum(p.numel() for p in kind(model).parameters()) for kind in (ColaVAE, ColaDiT)]
    assert sizes[0] == pytest.approx(500e6, rel=0.02)
    assert sizes[1] == pytest.approx(1.8e9, rel=0.02)


@pytest.mark.parametrize("patch", [1, 3])
def test_the_vae_looks_back_only(patch: int) -> None:
    vae = small(ColaVAE, replace(CONFIG, patch=patch))
    tokens = torch.randint(1, 50, (2, 12 * patch))
    mean, _ = vae.encoder(tokens)
    assert mean.shape == (2, 12, CONFIG.latent)
    changed = tokens.clone()
    changed[:, 6 * patch :] = 7
    torch.testing.assert_close(vae.encoder(changed)[0][:, :6], mean[:, :6])
    logits = vae.decoder(mean)
    assert logits.shape == (2, 12 * patch, 50)
    memory = vae.decoder.memory()
    steps = [vae.decoder(mean[:, lo : lo + 5], lo, memory) for lo in (0, 5, 10)]
    torch.testing.assert_close(torch.cat(steps, 1), logits, rtol=1e-4, atol=1e-4)
    late = vae.decoder.head(vae.decoder.states(mean, skip=7))
    torch.testing.assert_close(late, logits[:, 7 * patch :], rtol=1e-4, atol=1e-4)


def test_the_prior_block_by_block_is_the_training_pass() -> None:
    prior = small(ColaDiT)
    clean, noisy = torch.randn(2, 20, CONFIG.latent), torch.randn(2, 20, CONFIG.latent)
    valid, history = torch.ones(2, 20, dtype=torch.bool), torch.tensor([True, True])
    whole = prior(noisy, torch.full((2, 3), 0.3), clean, valid, history)
    past = prior.memory()
    for lo in (0, 8, 16):
        block = slice(lo, lo + 8)
        torch.testing.assert_close(
            prior.velocity(noisy[:, block], 0.3, lo, past), whole[:, block], rtol=1e-3, atol=1e-4
        )
        prior.finish(clean[:, block], lo, past)
    together = prior.memory()  # two blocks at once, after one alone
    prior.finish(clean[:, :8], 0, together)
    prior.finish(clean[:, 8:], 8, together)
    for one, other in zip(past, together, strict=True):
        torch.testing.assert_close(one.key, other.key, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.value, other.value, rtol=1e-4, atol=1e-5)
    # Without the history, only the first block is as before.
    alone = prior(noisy, torch.full((2, 3), 0.3), clean, valid, ~history)
    torch.testing.assert_close(alone[:, :8], whole[:, :8])
    assert not torch.allclose(alone[:, 8:], whole[:, 8:])


def test_losses_add_up_over_parts_and_ignore_padding() -> None:
    stage = small(lambda config: Stage1(config, ColaWeights(masked=0.0)))
    tokens, counts = torch.randint(1, 50, (2, 16)), torch.tensor([16, 9])
    with torch.no_grad():
        sums = stage(tokens, counts, 1)
    assert sums["tokens"] == 25 and sums["latents"] == 25 and sums["masked"] == 0
    other = tokens.clone()
    other[1, 9:] = 3
    with torch.no_grad():
        again = stage(other, counts, 1)
    assert float(again["loss"]) == pytest.approx(float(sums["loss"]), rel=1e-5)


def test_gradients_reach_what_they_should() -> None:
    """The prior's loss reaches the encoder through the noisy block; the reference gets none."""
    stage = small(lambda config: Stage2(config, ColaWeights(vae=0.0, reference=0.0)))
    stage.start_from(stage.vae.state_dict())
    stage(torch.randint(1, 50, (2, 16)), torch.tensor([16, 16]), 5)["loss"].backward()
    assert stage.vae.encoder.embed.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in stage.reference.parameters())
    gradient = stage.vae.decoder.head.weight.grad
    assert gradient is None or not gradient.any()


def test_recomputing_changes_nothing() -> None:
    stage = small(lambda config: Stage2(config, ColaWeights()))
    tokens, counts = torch.randint(1, 50, (2, 16)), torch.tensor([16, 12])
    gradients = []
    for recompute in (False, True):
        for module in stage.modules():
            if hasattr(module, "recompute"):
                module.recompute = recompute
        stage.zero_grad()
        stage(tokens, counts, 3)["loss"].backward()
        gradients.append(stage.vae.encoder.embed.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_the_reference_starts_where_the_encoder_is() -> None:
    stage = small(lambda config: Stage2(config, ColaWeights()))
    stage.start_from(small(ColaVAE).state_dict())
    sums = stage(torch.randint(1, 50, (2, 16)), torch.tensor([16, 16]), 5)
    assert float(sums["reference_kl"]) == pytest.approx(0.0, abs=1e-3)


def test_noise_depends_on_the_seed_alone() -> None:
    vae = small(ColaVAE)
    tokens, real = torch.randint(1, 50, (1, 8)), torch.ones(1, 8, dtype=torch.bool)
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed * 100)
        samples.append(draw(vae, tokens, real, torch.Generator().manual_seed(seed)).sample)
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


def test_a_loss_that_is_not_finite_stops_with_the_batch_saved(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from tests.paper_runs import short_recipe, train
    from tests.tiny_model import write_corpus

    write_corpus(tmp_path)
    broken = replace(short_recipe(), weights=ColaWeights(kl=float("nan")))
    with pytest.raises(ColazipError, match=r"not finite at step 0; the batch is in .*bad_batch\.npz"):
        train(tmp_path, tmp_path / "run", broken)
    assert (tmp_path / "run" / "stage1" / "bad_batch.npz").exists()
