"""The Text VAE's parts: step by step equals in parallel, what is shipped equals what is trained."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from colazip.config import ModelConfig
from colazip.memory import KINDS
from colazip.nn.exact import ExactEmbedding, ExactLinear, ExactReadout, quantize_rows
from colazip.nn.grid import cell_plane
from colazip.nn.vae import (
    LEVEL,
    PLANE,
    TextVAE,
    TokenReadout,
    cell_index,
    coarse_plane,
    real_tokens,
    round_latents,
    token_history,
)

LANES, PATCHES = 4, 13


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths() -> Tensor:
    """Patches of each lane, longest first."""
    return torch.tensor([PATCHES, PATCHES, 6, 1])


def counts(config: ModelConfig) -> Tensor:
    """Tokens of each lane: the third one's last patch is not full."""
    return lengths() * config.patch - torch.tensor([0, 0, config.patch - 1, 0])


def mask() -> Tensor:
    return torch.arange(PATCHES)[None] < lengths()[:, None]


def random_coarse(config: ModelConfig) -> Tensor:
    """[B, P, K * C] in -1..1."""
    shape = (LANES, PATCHES, config.patch * config.channels)
    coarse = torch.randint(-1, 2, shape, generator=seeded(3)).float()
    coarse[:, 4] = 0  # an all-zero latent is not the start of a text
    return coarse


def random_tokens(config: ModelConfig) -> Tensor:
    """[B, P, K], padded with 0."""
    tokens = torch.randint(1, config.vocabulary, (LANES, PATCHES, config.patch), generator=seeded(4))
    return tokens * real_tokens(counts(config), tokens)


def random_guesses(config: ModelConfig, count: int) -> tuple[Tensor, Tensor]:
    """Guesses of a block memory and their kinds, int64 [count] each; a third of them none."""
    kind = torch.randint(-KINDS // 2, KINDS, (count,), generator=seeded(9)).clamp_min(0)
    guess = torch.randint(0, config.vocabulary, (count,), generator=seeded(10)) * (kind > 0)
    return guess, kind


# Step by step


def test_latent_context_steps_equal_the_parallel_pass(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, coarse, each = tiny_vae.context, random_coarse(tiny_config), tiny_config.channels
    expected = net(coarse, mask())
    assert expected.shape == (LANES, PATCHES, tiny_config.patch, PLANE**each)
    caches = net.stack.caches(LANES)
    for i in range(PATCHES):
        n = int((lengths() > i).sum())
        context = net.step(coarse[:n, i - 1] if i else None, n, i, caches)
        for token in range(tiny_config.patch):
            # Lanes whose last patch ends here are no longer asked: what the others get may not change.
            m = int((counts(tiny_config) > i * tiny_config.patch + token).sum())
            got = net.step_logits(token, context[:m], coarse[:m, i, : token * each])
            assert torch.equal(got, expected[:m, i, token])
    assert expected.std() > 0.1


def test_latent_context_sees_only_what_is_decoded(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, coarse, each = tiny_vae.context, random_coarse(tiny_config), tiny_config.channels
    before = net(coarse, mask())
    for token in range(tiny_config.patch):
        for channel in range(each):
            changed = coarse.clone()
            at = token * each + channel
            changed[:, 7, at] = 1 - changed[:, 7, at].abs()
            after = net(changed, mask())
            assert torch.equal(before[:, :7], after[:, :7])
            # The cell itself is one symbol: none of its channels helps to code it.
            assert torch.equal(before[:, 7, : token + 1], after[:, 7, : token + 1])
            for later in range(token + 1, tiny_config.patch):
                assert not torch.equal(before[:, 7, later], after[:, 7, later])
            assert not torch.equal(before[0, 8:], after[0, 8:])


def test_the_start_is_told_from_a_latent_of_zeros(tiny_vae: TextVAE) -> None:
    net = tiny_vae.context
    start = net.step(None, 1, 0, net.stack.caches(1))
    zeros = net.step(torch.zeros(1, net.patch * net.channels), 1, 0, net.stack.caches(1))
    assert not torch.equal(start, zeros)


def test_fine_logits_are_the_row_of_the_coarse_cell(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, coarse = tiny_vae.refiner, random_coarse(tiny_config)
    table = net(coarse, mask())
    cells = PLANE**tiny_config.channels
    assert table.shape == (LANES, PATCHES, tiny_config.patch, cells, cells)
    fine = net.fine(coarse, mask())
    index = cell_index(coarse, tiny_config.channels)
    for lane, patch, token in np.ndindex(LANES, PATCHES, tiny_config.patch):
        assert torch.equal(fine[lane, patch, token], table[lane, patch, token, index[lane, patch, token]])


def test_exact_coder_steps_equal_the_parallel_pass(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = random_tokens(tiny_config)
    embedded = tiny_vae.embed_patches(tokens)
    levels = tiny_vae.encode(tokens, real_tokens(counts(tiny_config), tokens)).levels
    features = tiny_vae.decoder(levels, mask())
    net = tiny_vae.exact
    expected = net.patches(features, embedded, mask())
    caches = net.stack.caches(LANES)
    for i in range(PATCHES):
        n = int((lengths() > i).sum())
        before = embedded[:n, i - 1] if i else torch.zeros_like(embedded[:n, 0])
        assert torch.equal(net.step(features[:n, i], before, i, caches), expected[:n, i])


def test_token_states_one_by_one(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, local, count = tiny_vae.exact, tiny_config.local_width, 50
    slots = torch.randn(count, local, generator=seeded(5))
    history = torch.randint(0, tiny_config.vocabulary, (count, 3), generator=seeded(6))
    guess, kind = random_guesses(tiny_config, count)
    together = net.tokens(slots, history, guess, kind, tiny_vae.embed)
    bonus = net.weigh(together, guess, kind).bonus
    for i in range(count):
        row = slice(i, i + 1)
        alone = net.tokens(slots[row], history[row], guess[row], kind[row], tiny_vae.embed)
        assert torch.equal(alone, together[row])
        assert torch.equal(net.weigh(alone, guess[row], kind[row]).bonus, bonus[row])
    for place in range(3):  # every token of the history matters
        other = history.clone()
        other[:, place] = (other[:, place] + 1) % tiny_config.vocabulary
        assert not torch.equal(net.tokens(slots, other, guess, kind, tiny_vae.embed), together)


def test_an_exact_patch_depends_on_earlier_tokens_only(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = random_tokens(tiny_config)
    features = torch.randn(LANES, PATCHES, tiny_config.decoder.width, generator=seeded(7))
    before = tiny_vae.exact.patches(features, tiny_vae.embed_patches(tokens), mask())
    tokens[:, 6] = (tokens[:, 6] + 1) % tiny_config.vocabulary
    after = tiny_vae.exact.patches(features, tiny_vae.embed_patches(tokens), mask())
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[0, 7:], after[0, 7:])


# Guesses of the block memory


def test_a_guess_and_its_kind_count_where_there_is_one(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, count = tiny_vae.exact, 60
    slots = torch.randn(count, tiny_config.local_width, generator=seeded(5))
    history = torch.randint(0, tiny_config.vocabulary, (count, 3), generator=seeded(6))
    guess, kind = random_guesses(tiny_config, count)
    there = kind > 0
    assert 20 <= int(there.sum()) <= 50
    states = net.tokens(slots, history, guess, kind, tiny_vae.embed)

    def changed(other_guess: Tensor, other_kind: Tensor) -> Tensor:
        other = net.tokens(slots, history, other_guess, other_kind, tiny_vae.embed)
        return (other != states).any(1)

    assert torch.equal(changed((guess + 1) % tiny_config.vocabulary, kind), there)  # no guess, no input
    assert torch.equal(changed(guess, torch.where(there, kind % (KINDS - 1) + 1, kind)), there)


def test_the_bonus_goes_to_the_guess_alone(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, readout, count = tiny_vae.exact, tiny_vae.readout, 60
    states = torch.randn(count, tiny_config.local_width, generator=seeded(11))
    guess, kind = random_guesses(tiny_config, count)
    guessed = net.weigh(states, guess, kind)
    there = kind > 0
    assert torch.equal(guessed.bonus.any(1), there)
    rows = torch.arange(count)
    classes = readout.class_of[guess]

    expected = readout.class_logits(states)
    assert not torch.equal(expected[rows, classes], readout.class_logits(states, guessed)[rows, classes])
    expected[rows, classes] += guessed.bonus[:, 0]
    assert torch.equal(readout.class_logits(states, guessed), expected)

    expected = readout.slot_logits(states, classes)
    expected[rows, readout.slot_of[guess]] += guessed.bonus[:, 1]
    assert torch.equal(readout.slot_logits(states, classes, guessed), expected)
    elsewhere = (classes + 1) % tiny_config.classes  # another class came: the guess says nothing of its slots
    plain = readout.slot_logits(states, elsewhere)
    assert torch.equal(readout.slot_logits(states, elsewhere, guessed), plain)


# Batches and padding: what any lane gets must not depend on its neighbours


def test_lanes_alone_and_unpadded_get_the_same(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, count = random_tokens(tiny_config), counts(tiny_config)
    together = everything(tiny_vae, tokens, count)
    for lane, length in enumerate(lengths().tolist()):
        alone = everything(tiny_vae, tokens[lane : lane + 1, :length], count[lane : lane + 1])
        for name, value in together.items():
            assert torch.equal(value[lane, :length], alone[name][0]), name


def everything(vae: TextVAE, tokens: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Outputs of every network, [B, P, ...] each. tokens [B, P, K], count [B]."""
    real = real_tokens(count, tokens)
    valid = real[..., 0]
    levels, hidden = vae.encode(tokens, real)
    coarse = coarse_plane(levels)
    features = vae.decoder(levels, valid)
    states = vae.exact.patches(features, vae.embed_patches(tokens), valid)
    return {
        "levels": levels,
        "hidden": hidden,
        "context": vae.context(coarse, valid),
        "refiner": vae.refiner(coarse, valid),
        "fine": vae.refiner.fine(coarse, valid),
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
    tokens, count = random_tokens(tiny_config), counts(tiny_config)
    mine, theirs = everything(tiny_vae, tokens, count), everything(shipped, tokens, count)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
        assert torch.isfinite(value).all()
    states = mine["gist"].flatten(0, 2)
    assert torch.equal(tiny_vae.readout.best(states), shipped.readout.best(states))
    guess, kind = random_guesses(tiny_config, len(states))
    history = token_history(tokens.flatten(1)).flatten(0, 1)
    classes = tiny_vae.readout.class_of[tokens.flatten()]
    logits = []
    for vae in (tiny_vae, shipped):
        found = vae.exact.tokens(states, history, guess, kind, vae.embed)
        guessed = vae.exact.weigh(found, guess, kind)
        inner = vae.readout.slot_logits(found, classes, guessed)
        logits.append((found, guessed.bonus, vae.readout.class_logits(found, guessed), inner))
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*logits, strict=True))


def test_zero_projections_were_randomized(tiny_vae: TextVAE) -> None:
    """Or the tests above prove little: blocks would add nothing to their input."""
    for name, parameter in tiny_vae.named_parameters():
        assert parameter.any(), name


# Latents


def test_levels_are_integers_in_range(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = random_tokens(tiny_config)
    levels = tiny_vae.encode(tokens, real_tokens(counts(tiny_config), tokens)).levels
    assert levels.shape == (LANES, PATCHES, tiny_config.patch * tiny_config.channels)
    assert torch.equal(levels, levels.round())
    assert levels.abs().max() <= LEVEL
    assert len(levels.unique()) >= 5


def test_tokens_that_pad_have_no_latent(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = random_tokens(tiny_config)
    real = real_tokens(counts(tiny_config), tokens)
    levels = tiny_vae.encode(tokens, real).levels.unflatten(-1, (tiny_config.patch, -1))
    assert not levels[~real].any()
    assert levels[real].any(-1).float().mean() > 0.5


def test_which_tokens_are_real() -> None:
    tokens = torch.zeros(4, 2, 3)
    expected = [[0] * 6, [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1] * 6]
    assert real_tokens(torch.tensor([0, 1, 4, 6]), tokens).flatten(1).int().tolist() == expected


def test_a_token_stands_at_its_place_until_its_surroundings_move_it(tiny_config: ModelConfig) -> None:
    vae = TextVAE(tiny_config).eval()  # as it starts: what moves a latent is zero
    places = torch.randint(-LEVEL, LEVEL + 1, (tiny_config.vocabulary, tiny_config.channels))
    vae.encoder.set_places(places.float())
    tokens = random_tokens(tiny_config)
    real = real_tokens(counts(tiny_config), tokens)
    with torch.no_grad():
        levels = vae.encode(tokens, real).levels.unflatten(-1, (tiny_config.patch, -1))
    assert torch.equal(levels[real], places[tokens[real]].float())


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_cells_are_numbers_of_their_planes(channels: int) -> None:
    """All planes of two tokens and back; the first channel is the leading digit."""
    values = torch.tensor([-1.0, 0.0, 1.0])
    planes = torch.cartesian_prod(*[values] * (2 * channels))
    index = cell_index(planes, channels)
    assert index.shape == (9**channels, 2) and index.dtype == torch.int64
    back = cell_plane(index.numpy(), channels).reshape(planes.shape)
    assert np.array_equal(back, planes.numpy())
    size = PLANE**channels
    assert (index[:, 0] * size + index[:, 1]).tolist() == list(range(size * size))
    batched = planes.view(3, -1, 2 * channels)
    assert torch.equal(cell_index(batched, channels), index.view(3, -1, 2))


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
