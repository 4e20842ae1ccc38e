"""The Text VAE's parts: step by step equals in parallel, what is shipped equals what is trained."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from colazip.config import ModelConfig
from colazip.nn.exact import ExactEmbedding, ExactLinear, ExactReadout, quantize_rows
from colazip.nn.vae import LEVEL, TextVAE, TokenReadout, coarse_plane, round_latents, token_history

LANES, PATCHES = 4, 13


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths() -> Tensor:
    """Patches of each lane, longest first."""
    return torch.tensor([PATCHES, PATCHES, 6, 1])


def mask() -> Tensor:
    return torch.arange(PATCHES)[None] < lengths()[:, None]


def random_coarse(config: ModelConfig) -> Tensor:
    coarse = torch.randint(-1, 2, (LANES, PATCHES, config.channels), generator=seeded(3)).float()
    coarse[:, 4] = 0  # an all-zero latent is not the start of a text
    return coarse


def random_tokens(config: ModelConfig) -> Tensor:
    tokens = torch.randint(1, config.vocabulary, (LANES, PATCHES, config.patch), generator=seeded(4))
    tokens[~mask()] = 0
    tokens[2, 5, 1:] = 0  # a last patch that is not full
    return tokens


# Step by step


def test_latent_context_steps_equal_the_parallel_pass(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, coarse = tiny_vae.context, random_coarse(tiny_config)
    expected = net(coarse, mask())
    each = tiny_config.channels // tiny_config.groups
    caches = net.stack.caches(LANES)
    for i in range(PATCHES):
        n = int((lengths() > i).sum())
        context = net.step(coarse[:n, i - 1] if i else None, n, i, caches)
        for group in range(tiny_config.groups):
            known = coarse[:n, i, : group * each]
            got = net.step_logits(group, context, known)
            assert torch.equal(got, expected[:n, i, group * each : (group + 1) * each])
    assert expected.std() > 0.1


def test_latent_context_sees_only_what_is_decoded(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, coarse = tiny_vae.context, random_coarse(tiny_config)
    each = tiny_config.channels // tiny_config.groups
    changed = coarse.clone()
    changed[:, 7, each:] = 1 - changed[:, 7, each:].abs()  # the second group of one position
    before, after = net(coarse, mask()), net(changed, mask())
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.equal(before[0, 8:], after[0, 8:])
    changed = coarse.clone()
    changed[:, 7, :each] = 1 - changed[:, 7, :each].abs()  # the first group: the second one depends on it
    after = net(changed, mask())
    assert torch.equal(before[:, :7], after[:, :7])
    assert torch.equal(before[:, 7, :each], after[:, 7, :each])
    assert not torch.equal(before[:, 7, each:], after[:, 7, each:])


def test_the_start_is_told_from_a_latent_of_zeros(tiny_vae: TextVAE) -> None:
    net = tiny_vae.context
    start = net.step(None, 1, 0, net.stack.caches(1))
    zeros = net.step(torch.zeros(1, net.channels), 1, 0, net.stack.caches(1))
    assert not torch.equal(start, zeros)


def test_exact_coder_steps_equal_the_parallel_pass(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = random_tokens(tiny_config)
    embedded = tiny_vae.embed_patches(tokens)
    levels = tiny_vae.encode(tokens, mask()).levels
    features = tiny_vae.decoder(levels, mask())
    net = tiny_vae.exact
    expected = net.patches(features, embedded, mask())
    caches = net.stack.caches(LANES)
    for i in range(PATCHES):
        n = int((lengths() > i).sum())
        before = embedded[:n, i - 1] if i else torch.zeros_like(embedded[:n, 0])
        assert torch.equal(net.step(features[:n, i], before, i, caches), expected[:n, i])


def test_token_states_one_by_one(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, local = tiny_vae.exact, tiny_config.local_width
    slots = torch.randn(50, local, generator=seeded(5))
    history = torch.randint(0, tiny_config.vocabulary, (50, 3), generator=seeded(6))
    together = net.tokens(slots, history, tiny_vae.embed)
    alone = [net.tokens(slots[i : i + 1], history[i : i + 1], tiny_vae.embed) for i in range(50)]
    assert torch.equal(torch.cat(alone), together)
    for place in range(3):  # every token of the history matters
        other = history.clone()
        other[:, place] = (other[:, place] + 1) % tiny_config.vocabulary
        assert not torch.equal(net.tokens(slots, other, tiny_vae.embed), together)


def test_an_exact_patch_depends_on_earlier_tokens_only(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = random_tokens(tiny_config)
    features = torch.randn(LANES, PATCHES, tiny_config.decoder.width, generator=seeded(7))
    before = tiny_vae.exact.patches(features, tiny_vae.embed_patches(tokens), mask())
    tokens[:, 6] = (tokens[:, 6] + 1) % tiny_config.vocabulary
    after = tiny_vae.exact.patches(features, tiny_vae.embed_patches(tokens), mask())
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[0, 7:], after[0, 7:])


# Batches and padding: what any lane gets must not depend on its neighbours


def test_lanes_alone_and_unpadded_get_the_same(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, valid = random_tokens(tiny_config), mask()
    together = everything(tiny_vae, tokens, valid)
    for lane, length in enumerate(lengths().tolist()):
        alone = everything(tiny_vae, tokens[lane : lane + 1, :length], valid[lane : lane + 1, :length])
        for name, value in together.items():
            assert torch.equal(value[lane, :length], alone[name][0]), name


def everything(vae: TextVAE, tokens: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Outputs of every network, [B, P, ...] each."""
    levels, hidden = vae.encode(tokens, valid)
    coarse = coarse_plane(levels)
    features = vae.decoder(levels, valid)
    states = vae.exact.patches(features, vae.embed_patches(tokens), valid)
    return {
        "levels": levels,
        "hidden": hidden,
        "context": vae.context(coarse, valid),
        "refiner": vae.refiner(coarse, valid),
        "features": features,
        "gist": vae.decoder.read(features.flatten(0, 1)).unflatten(0, features.shape[:2]),
        "exact": states,
    }


def test_shipped_equals_trained(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    shipped = copy.deepcopy(tiny_vae)
    for module in shipped.modules():
        if isinstance(module, ExactLinear | ExactEmbedding | ExactReadout):
            q, scale = quantize_rows(module.weight.detach())
            module.freeze(q.to(torch.int8), scale)
    tokens, valid = random_tokens(tiny_config), mask()
    mine, theirs = everything(tiny_vae, tokens, valid), everything(shipped, tokens, valid)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
        assert torch.isfinite(value).all()
    states = mine["gist"].flatten(0, 2)
    assert torch.equal(tiny_vae.readout.best(states), shipped.readout.best(states))


def test_zero_projections_were_randomized(tiny_vae: TextVAE) -> None:
    """Or the tests above prove little: blocks would add nothing to their input."""
    for name, parameter in tiny_vae.named_parameters():
        assert parameter.any(), name


# Latents


def test_levels_are_integers_in_range(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    levels = tiny_vae.encode(random_tokens(tiny_config), mask()).levels
    assert torch.equal(levels, levels.round())
    assert levels.abs().max() <= LEVEL
    assert len(levels.unique()) >= 5


def test_levels_split_into_two_planes_of_three() -> None:
    levels = torch.arange(-LEVEL, LEVEL + 1.0)
    coarse = coarse_plane(levels)
    fine = levels - 3 * coarse
    assert coarse.tolist() == [-1, -1, -1, 0, 0, 0, 1, 1, 1]
    assert fine.tolist() == [-1, 0, 1] * 3


def test_rounded_latents_pass_the_gradient_on() -> None:
    u = torch.tensor([-4.49, -0.4, 0.6, 4.49], requires_grad=True)
    levels = round_latents(u)
    assert levels.tolist() == [-4, 0, 1, 4]
    levels.sum().backward()
    assert u.grad is not None and u.grad.tolist() == [1, 1, 1, 1]


# Tokens


def test_token_history() -> None:
    history = token_history(torch.tensor([[5, 6, 7, 8, 9]]))
    assert history.tolist() == [[[0, 0, 0], [5, 0, 0], [6, 5, 0], [7, 6, 5], [8, 7, 6]]]


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_class_tables_are_a_bijection(tiny_config: ModelConfig, seed: int | None) -> None:
    readout = TokenReadout(tiny_config)
    vocabulary = torch.arange(tiny_config.vocabulary)
    class_of = vocabulary // tiny_config.slots
    if seed is not None:
        class_of = torch.randperm(tiny_config.vocabulary, generator=seeded(seed)) % tiny_config.classes
        readout.set_classes(class_of)
    assert torch.equal(readout.class_of, class_of)
    assert torch.equal(readout.token_of[readout.class_of, readout.slot_of], vocabulary)
    assert torch.equal(readout.token_of.flatten().sort().values, vocabulary)
    rows = readout.token_of
    assert torch.equal(rows, rows.sort(1).values)  # slots follow token order
    assert {t.dtype for t in (readout.class_of, readout.slot_of, rows)} == {torch.int64}


def log_probabilities(readout: TokenReadout, states: Tensor, config: ModelConfig) -> np.ndarray:
    """log2 p of every token, float64 [N, V], one class after the other."""
    logits = readout.classes(states).double()
    first = torch.log_softmax(logits * np.log(2), -1) / np.log(2)
    table = torch.empty(len(states), config.vocabulary, dtype=torch.float64)
    for c in range(config.classes):
        inner = readout.slots(states, torch.full((len(states),), c)).double()
        second = torch.log_softmax(inner * np.log(2), -1) / np.log(2)
        table[:, readout.token_of[c]] = first[:, c : c + 1] + second
    return table.numpy()


def test_best_token_is_the_likeliest(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    states = torch.randn(200, tiny_config.local_width, generator=seeded(8))
    table = log_probabilities(tiny_vae.readout, states, tiny_config)
    assert np.allclose((2.0**table).sum(1), 1)
    best = tiny_vae.readout.best(states, beam=tiny_config.classes).numpy()
    assert np.allclose(table[np.arange(200), best], table.max(1), atol=1e-4)
    # A beam wider than there are classes is no error, a narrow one may miss some.
    assert np.array_equal(tiny_vae.readout.best(states, beam=1000).numpy(), best)
    assert (tiny_vae.readout.best(states).numpy() == best).mean() > 0.5
