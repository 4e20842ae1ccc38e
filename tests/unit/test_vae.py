"""The Text VAE's parts: step by step equals in parallel, what is shipped equals what is trained."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from colazip.config import ModelConfig
from colazip.memory import KINDS
from colazip.nn.exact import ExactEmbedding, ExactLinear, ExactReadout, quantize_rows
from colazip.nn.grid import CLOSED
from colazip.nn.vae import TextVAE, TokenReadout, real_tokens, token_history

LANES, PATCHES = 4, 13
DETAILS = range(3)


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


def random_tokens(config: ModelConfig) -> Tensor:
    """[B, P, K], padded with 0."""
    tokens = torch.randint(1, config.vocabulary, (LANES, PATCHES, config.patch), generator=seeded(4))
    return tokens * real_tokens(counts(config), tokens)


def random_guesses(config: ModelConfig, count: int) -> tuple[Tensor, Tensor]:
    """Guesses of a block memory and their kinds, int64 [count] each; a third of them none."""
    kind = torch.randint(-KINDS // 2, KINDS, (count,), generator=seeded(9)).clamp_min(0)
    guess = torch.randint(0, config.vocabulary, (count,), generator=seeded(10)) * (kind > 0)
    return guess, kind


def features(vae: TextVAE, tokens: Tensor, real: Tensor, detail: int) -> Tensor:
    """What the decoder sees in a gist: tokens int64 [B, P, K], real bool [B, P, K] -> [B, P, W]."""
    seen: Tensor = vae.decoder(vae.embed_gist(tokens, real), real[..., 0], detail)
    return seen


# Step by step


@pytest.mark.parametrize("detail", DETAILS)
def test_coder_steps_equal_the_parallel_pass(
    tiny_vae: TextVAE, tiny_config: ModelConfig, detail: int
) -> None:
    embedded = tiny_vae.embed_patches(random_tokens(tiny_config))
    net = tiny_vae.coder
    expected = net.patches(embedded, mask(), detail)
    assert expected.shape == (LANES, PATCHES, tiny_config.patch, tiny_config.local_width)
    caches = net.stack.caches(LANES)
    for i in range(PATCHES):
        n = int((lengths() > i).sum())
        before = embedded[:n, i - 1] if i else torch.zeros_like(embedded[:n, 0])
        assert torch.equal(net.step(before, i, detail, caches), expected[:n, i])
    assert expected.std() > 0.1


def test_a_patch_depends_on_earlier_ones_only(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = random_tokens(tiny_config)
    before = tiny_vae.coder.patches(tiny_vae.embed_patches(tokens), mask(), 0)
    tokens[:, 6] = (tokens[:, 6] + 1) % tiny_config.vocabulary
    after = tiny_vae.coder.patches(tiny_vae.embed_patches(tokens), mask(), 0)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[0, 7:], after[0, 7:])


def test_both_networks_are_told_the_detail(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = random_tokens(tiny_config)
    real = real_tokens(counts(tiny_config), tokens)
    embedded = tiny_vae.embed_patches(tokens)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(*(tiny_vae.coder.patches(embedded, mask(), d) for d in (a, b)))
        assert not torch.equal(*(features(tiny_vae, tokens, real, d) for d in (a, b)))


def test_token_states_one_by_one(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, local, count = tiny_vae.coder, tiny_config.local_width, 50
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


# The pass over the gist


def test_the_decoder_sees_both_sides(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = random_tokens(tiny_config)
    real = real_tokens(counts(tiny_config), tokens)
    before = features(tiny_vae, tokens, real, 0)
    tokens[0, 6] = (tokens[0, 6] + 1) % tiny_config.vocabulary
    after = features(tiny_vae, tokens, real, 0)
    assert (before[0] != after[0]).any(-1).all()  # from every patch
    assert torch.equal(before[1:], after[1:])


def test_what_fills_the_last_patch_is_not_seen(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = random_tokens(tiny_config)
    real = real_tokens(counts(tiny_config), tokens)
    other = torch.where(real, tokens, tiny_config.vocabulary - 1)
    assert not torch.equal(other[mask()], tokens[mask()])
    assert torch.equal(*(tiny_vae.rare_logits(t, real, real, 2) for t in (tokens, other)))


def test_open_tokens_are_read_one_by_one(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens = tiny_vae.readout.named(random_tokens(tiny_config), 1)
    real = real_tokens(counts(tiny_config), tokens)
    together = tiny_vae.rare_logits(tokens, real, real, 1)
    assert together.shape == (int(real.sum()), tiny_config.slots)
    for i, at in enumerate(real.nonzero().tolist()):
        where = torch.zeros_like(real)
        where[tuple(at)] = True
        assert torch.equal(tiny_vae.rare_logits(tokens, real, where, 1)[0], together[i])
    assert tiny_vae.rare_logits(tokens, real, real & False, 1).shape == (0, tiny_config.slots)


def test_a_token_s_neighbours_are_those_beside_it(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    """Across the border of patches too, and nothing beyond both ends."""
    tokens = random_tokens(tiny_config)[:1]
    real = torch.ones_like(tokens, dtype=torch.bool)
    embedded = tiny_vae.embed_gist(tokens, real)
    features = tiny_vae.decoder(embedded, real[..., 0], 0)
    every = torch.arange(tokens.numel())
    before = tiny_vae.decoder.read(features, embedded, every).view(*tokens.shape, -1)
    last = tokens.numel() - 1
    for at in (0, 1, tiny_config.patch - 1, tiny_config.patch, last):
        other = embedded.clone()
        other.view(1, -1, tiny_config.embedding)[:, at] *= -1
        found = tiny_vae.decoder.read(features, other, every).view(*tokens.shape, -1)
        changed = (found != before).any(-1).flatten()
        assert changed.nonzero()[:, 0].tolist() == [i for i in (at - 1, at, at + 1) if 0 <= i <= last]


# Guesses of the block memory


def test_a_guess_and_its_kind_count_where_there_is_one(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    net, count = tiny_vae.coder, 60
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


@pytest.mark.parametrize("detail", DETAILS)
def test_the_bonus_goes_to_the_guess_alone(tiny_vae: TextVAE, tiny_config: ModelConfig, detail: int) -> None:
    net, readout, count = tiny_vae.coder, tiny_vae.readout, 60
    states = torch.randn(count, tiny_config.local_width, generator=seeded(11))
    guess, kind = random_guesses(tiny_config, count)
    guess = readout.named(guess, detail)
    guessed = net.weigh(states, guess, kind)
    there = kind > 0
    assert torch.equal(guessed.bonus.any(1), there)
    rows = torch.arange(count)
    classes = readout.class_of[guess]

    expected = readout.class_logits(states)
    assert not torch.equal(expected[rows, classes], readout.class_logits(states, guessed)[rows, classes])
    expected[rows, classes] += guessed.bonus[:, 0]
    assert torch.equal(readout.class_logits(states, guessed), expected)

    expected = readout.gist_logits(states, classes, detail)
    expected[rows, readout.slot_of[guess]] += guessed.bonus[:, 1]
    assert torch.equal(readout.gist_logits(states, classes, detail, guessed), expected)
    elsewhere = (classes + 1) % tiny_config.classes  # another class came: the guess says nothing of its slots
    plain = readout.gist_logits(states, elsewhere, detail)
    assert torch.equal(readout.gist_logits(states, elsewhere, detail, guessed), plain)


# Batches and padding: what any lane gets must not depend on its neighbours


@pytest.mark.parametrize("detail", DETAILS)
def test_lanes_alone_and_unpadded_get_the_same(
    tiny_vae: TextVAE, tiny_config: ModelConfig, detail: int
) -> None:
    tokens, count = random_tokens(tiny_config), counts(tiny_config)
    together = everything(tiny_vae, tokens, count, detail)
    for lane, length in enumerate(lengths().tolist()):
        alone = everything(tiny_vae, tokens[lane : lane + 1, :length], count[lane : lane + 1], detail)
        real = real_tokens(count, tokens)[lane, :length]
        for name, value in together.items():
            mine, theirs = value[lane, :length], alone[name][0]
            if mine.ndim == 3:  # of tokens; what stands for padding is nobody's business
                mine, theirs = mine[real], theirs[real]
            assert torch.equal(mine, theirs), name


def everything(vae: TextVAE, tokens: Tensor, count: Tensor, detail: int) -> dict[str, Tensor]:
    """Outputs of both networks, [B, P, ...] each. tokens [B, P, K], count [B]."""
    real = real_tokens(count, tokens)
    gist = vae.readout.named(tokens, detail)
    embedded = vae.embed_gist(gist, real)
    features = vae.decoder(embedded, real[..., 0], detail)
    states = vae.decoder.read(features, embedded, torch.arange(real.numel()))
    return {
        "patches": vae.coder.patches(vae.embed_patches(gist), real[..., 0], detail),
        "features": features,
        "states": states.view(*real.shape, -1),
    }


def test_shipped_equals_trained(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    shipped = copy.deepcopy(tiny_vae)
    for module in shipped.modules():
        if isinstance(module, ExactLinear | ExactEmbedding | ExactReadout):
            q, scale = quantize_rows(module.weight.detach())
            module.freeze(q.to(torch.int8), scale)
    tokens, count = random_tokens(tiny_config), counts(tiny_config)
    mine, theirs = (everything(vae, tokens, count, 1) for vae in (tiny_vae, shipped))
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
        assert torch.isfinite(value).all()
    states = mine["states"].flatten(0, 2)
    guess, kind = random_guesses(tiny_config, len(states))
    history = token_history(tokens.flatten(1)).flatten(0, 1)
    classes = tiny_vae.readout.class_of[tokens.flatten()]
    logits = []
    for vae in (tiny_vae, shipped):
        found = vae.coder.tokens(states, history, guess, kind, vae.embed)
        guessed = vae.coder.weigh(found, guess, kind)
        inner = vae.readout.gist_logits(found, classes, 1, guessed)
        rare = vae.readout.rare_logits(states, classes, 1)
        logits.append((found, guessed.bonus, vae.readout.class_logits(found, guessed), inner, rare))
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*logits, strict=True))


def test_zero_projections_were_randomized(tiny_vae: TextVAE) -> None:
    """Or the tests above prove little: blocks would add nothing to their input."""
    for name, parameter in tiny_vae.named_parameters():
        assert parameter.any(), name


# Tokens


def test_which_tokens_are_real() -> None:
    tokens = torch.zeros(4, 2, 3)
    expected = [[0] * 6, [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1] * 6]
    assert real_tokens(torch.tensor([0, 1, 4, 6]), tokens).flatten(1).int().tolist() == expected


def test_token_history() -> None:
    history = token_history(torch.tensor([[5, 6, 7, 8, 9]]))
    assert history.tolist() == [[[0, 0, 0], [5, 0, 0], [6, 5, 0], [7, 6, 5], [8, 7, 6]]]


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_class_tables_are_a_bijection(tiny_config: ModelConfig, seed: int | None) -> None:
    readout, vocabulary = TokenReadout(tiny_config), torch.arange(tiny_config.vocabulary)
    rows = vocabulary.view(tiny_config.classes, tiny_config.slots)
    if seed is not None:
        rows = torch.randperm(tiny_config.vocabulary, generator=seeded(seed)).view(rows.shape)
        readout.set_classes(rows, torch.zeros_like(readout.limits))
    assert torch.equal(readout.token_of, rows)
    assert torch.equal(readout.token_of[readout.class_of, readout.slot_of], vocabulary)
    assert {t.dtype for t in (readout.class_of, readout.slot_of, readout.limits)} == {torch.int64}


# Named and open tokens


def readout_of(config: ModelConfig, seed: int) -> TokenReadout:
    """Tokens in any order; limits from no slot to all, fewer with less detail."""
    readout = TokenReadout(config)
    limits = torch.randint(0, config.slots + 1, (config.details, config.classes), generator=seeded(seed))
    limits[:, 0], limits[:, 1], limits[:, 2] = config.slots, config.slots - 1, 0
    order = torch.randperm(config.vocabulary, generator=seeded(seed + 1))
    readout.set_classes(order.view(config.classes, config.slots), limits.sort(0, descending=True).values)
    return readout


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(DETAILS))
def test_what_stands_for_a_token(tiny_config: ModelConfig, seed: int, detail: int) -> None:
    """Written down a second time, token by token."""
    readout = readout_of(tiny_config, seed)
    tokens = torch.arange(tiny_config.vocabulary)
    named, is_open = readout.named(tokens, detail), readout.is_open(tokens, detail)
    for row, limit in zip(readout.token_of.tolist(), readout.limits[detail].tolist(), strict=True):
        rarer = row[limit:]
        for token in row[:limit]:
            assert int(named[token]) == token and not is_open[token]
        for token in rarer:
            assert int(named[token]) == rarer[0]
        if rarer:  # a single rarer token is known by its class and what it is not
            assert bool(is_open[rarer[0]]) == (len(rarer) > 1)
    assert torch.equal(readout.named(named, detail), named)
    assert torch.equal(readout.class_of[named], readout.class_of)
    classes = torch.arange(tiny_config.classes)
    assert torch.equal(readout.has_slots(classes, detail), readout.limits[detail] > 0)
    for less in range(detail, tiny_config.details):  # a gist holds all that one of less detail does
        assert torch.equal(readout.named(named, less), readout.named(tokens, less))
        assert readout.is_open(readout.named(tokens, less), less)[is_open[named]].all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(DETAILS))
def test_gist_and_exact_layer_share_the_slots(tiny_config: ModelConfig, seed: int, detail: int) -> None:
    """What the gist can say is open to it and nothing else; what it leaves open, to the exact layer."""
    readout = readout_of(tiny_config, seed)
    tokens = torch.arange(tiny_config.vocabulary)
    states = torch.randn(len(tokens), tiny_config.local_width, generator=seeded(8))
    classes, slots = readout.class_of, readout.slot_of[:, None]
    named = readout.named(tokens, detail)
    said = readout.gist_logits(states, classes, detail) != CLOSED
    assert said.gather(1, readout.slot_of[named][:, None]).all()
    rare = readout.rare_logits(states, classes, detail) != CLOSED
    assert torch.equal(rare.gather(1, slots)[:, 0], slots[:, 0] >= readout.limits[detail][classes])
    some = readout.limits[detail] < tiny_config.slots
    both = (said & rare).sum(1)
    assert torch.equal(both, some[classes].long())  # the slot that stands for the rarer ones
    assert (said | rare).all()
    # In bits: a slot that is closed takes nothing worth mentioning from those that are not.
    shares = torch.softmax(readout.rare_logits(states, classes, detail).double() * np.log(2), 1)
    assert (shares * rare).sum(1)[some[classes]].sub(1).abs().max() < 1e-9
