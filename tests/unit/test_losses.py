"""What training minimises: true code lengths, whatever the batch looks like."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from colazip.codec import Codec
from colazip.config import ModelConfig
from colazip.encode import LaneEncoder
from colazip.lanes import lay_out
from colazip.memory import KINDS, recall
from colazip.nn.vae import TextVAE, real_tokens, token_history
from colazip.pretrained import Model
from colazip.train.losses import Terms, compute
from tests.pointing_model import pointing_model
from tests.tiny_model import passages, tiny_codec, tiny_model

DETAILS = range(3)


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


def bits(terms: Terms) -> tuple[float, float, float]:
    return float(terms.classes), float(terms.slots), float(terms.exact)


def bits_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Code length of each target, by the definition: [N]."""
    share = torch.softmax(logits.double() * np.log(2), -1).gather(1, targets[:, None])[:, 0]
    return -share.log2()


# What the coder pays


def paid_and_estimated(codec: Codec, detail: int) -> tuple[np.ndarray, np.ndarray, Terms]:
    """Bits of (gist, exact) that the encoder's intervals cost, those of `compute`, and its terms."""
    model, texts = codec.model, [t.encode() for t in passages()[-8:]]
    tokens = model.tokenizer.encode(texts)
    segment, patch = model.config.segment * model.config.patch, model.config.patch
    lanes = lay_out([[min(len(t), segment) for t in tokens]], segment, patch)
    table = np.zeros((len(lanes), int(lanes.patches[0]) * patch), np.int64)
    for row, (part, count) in enumerate(zip(lanes.part, lanes.count, strict=True)):
        table[row, :count] = tokens[part][:count]
    rows = LaneEncoder(model.vae, 3).code(lanes, table, detail, exact=True)
    paid = np.array([sum(r.gist_bits() for r in rows), sum(r.exact_bits() for r in rows)])
    named = model.vae.readout.named(torch.from_numpy(table), detail).numpy()
    guesses = torch.from_numpy(np.stack(recall(named, lanes.block, lanes.count)))
    with torch.inference_mode():
        terms = compute(
            model.vae, torch.from_numpy(table), torch.from_numpy(lanes.count), guesses, detail, fast=False
        )
    return paid, np.array([float(terms.gist), float(terms.exact)]), terms


@pytest.mark.parametrize("detail", DETAILS)
@pytest.mark.parametrize("model", [tiny_model, pointing_model])
def test_bits_are_what_the_coder_pays(model: Callable[[], Model], detail: int) -> None:
    paid, estimated, terms = paid_and_estimated(Codec(model()), detail)
    # Logits are cut to steps of 1/32, a slot at least has a share of 2**-20, and one that is closed too.
    assert paid == pytest.approx(estimated, rel=2e-3)
    assert (terms.open == 0) == (paid[1] == 0)


def test_less_detail_moves_bits_from_the_gist_to_the_exact_layer() -> None:
    found = [paid_and_estimated(tiny_codec(), detail) for detail in DETAILS]
    assert [f[2].open for f in found] == sorted(f[2].open for f in found)
    gist, exact = ([f[0][i] for f in found] for i in (0, 1))
    assert gist == sorted(gist, reverse=True) and exact == sorted(exact)


@pytest.mark.parametrize("detail", DETAILS)
def test_bits_are_those_of_one_pass_by_hand(tiny_vae: TextVAE, tiny_config: ModelConfig, detail: int) -> None:
    tokens, counts, guesses = (t[..., :1, :] if t.ndim > 1 else t[:1] for t in batch(tiny_config))
    readout = tiny_vae.readout
    x = tokens.unflatten(1, (-1, tiny_config.patch))
    real = real_tokens(counts, x)
    gist = readout.named(x, detail)
    slots = tiny_vae.coder.patches(tiny_vae.embed_patches(gist), real[..., 0], detail).flatten(0, 2)
    guess, kind = readout.named(guesses[0, 0], detail), guesses[1, 0]
    states = tiny_vae.coder.tokens(slots, token_history(gist.flatten(1))[0], guess, kind, tiny_vae.embed)
    weighed = tiny_vae.coder.weigh(states, guess, kind)
    named, classes = gist.flatten(), readout.class_of[tokens[0]]
    class_bits = bits_of(readout.class_logits(states, weighed), classes)
    slot_bits = bits_of(readout.gist_logits(states, classes, detail, weighed), readout.slot_of[named])
    assert tiny_vae.coder.pointer is not None
    shares = tiny_vae.coder.pointer.shares(states[None], classes[None], named[None], fast=False)
    assert (shares.same_token > 0).any() and (shares.own < 1).any()
    token_share = shares.own * 2.0 ** -(class_bits + slot_bits) + shares.same_token
    class_bits = -torch.log2(shares.own * 2.0**-class_bits + shares.same_class)
    slot_bits = -torch.log2(token_share) - class_bits
    where = readout.is_open(gist, detail)
    rare = tiny_vae.rare_logits(gist, real, where, detail)
    wanted = readout.slot_of[x[where]]
    terms = compute(tiny_vae, tokens, counts, guesses, detail, fast=False)
    expected = (float(b.sum()) for b in (class_bits, slot_bits, bits_of(rare, wanted)))
    assert bits(terms) == pytest.approx(tuple(expected), rel=1e-5, abs=1e-4)
    assert (terms.tokens, terms.open) == (20, int(where.sum()))
    assert terms.guessed == int((rare.argmax(1) == wanted).sum())


def test_slots_that_a_gist_does_not_say_cost_nothing(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    terms = compute(tiny_vae, tokens, counts, guesses, 2, fast=False)  # classes alone
    assert float(terms.slots) == pytest.approx(0.0, abs=1e-4)
    assert terms.open == terms.tokens == 30
    assert float(terms.exact) > 0


# The whole


@pytest.mark.parametrize("detail", DETAILS)
def test_a_batch_is_the_sum_of_its_rows(tiny_vae: TextVAE, tiny_config: ModelConfig, detail: int) -> None:
    tokens, counts, guesses = batch(tiny_config)
    together = compute(tiny_vae, tokens, counts, guesses, detail, fast=False)
    alone: list[Terms] = []
    for row, count in enumerate(counts.tolist()):
        width = -(-count // tiny_config.patch) * tiny_config.patch
        mine = slice(row, row + 1)
        one = tokens[mine, :width], counts[mine], guesses[:, mine, :width]
        alone.append(compute(tiny_vae, *one, detail, fast=False))
    for name in ("classes", "slots", "exact", "gist"):
        parts = sum(float(getattr(t, name)) for t in alone)
        assert float(getattr(together, name)) == pytest.approx(parts, rel=1e-5, abs=1e-4), name
    for name in ("tokens", "open", "guessed"):
        assert getattr(together, name) == sum(getattr(t, name) for t in alone), name
    assert together.tokens == 30


def test_padding_counts_for_nothing(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    a = compute(tiny_vae, tokens, counts, guesses, 1, fast=False)
    wider, wider_guesses = (torch.nn.functional.pad(t, (0, 3 * tiny_config.patch)) for t in (tokens, guesses))
    wider[torch.arange(wider.shape[1])[None] >= counts[:, None]] = 7
    b = compute(tiny_vae, wider, counts, wider_guesses, 1, fast=False)
    assert bits(a) == pytest.approx(bits(b), rel=1e-6)
    assert (a.tokens, a.open, a.guessed) == (b.tokens, b.open, b.guessed)


@pytest.mark.parametrize("detail", DETAILS)
def test_the_loss_is_all_bits_a_token(tiny_vae: TextVAE, tiny_config: ModelConfig, detail: int) -> None:
    terms = compute(tiny_vae, *batch(tiny_config), detail, fast=False)
    assert float(terms.gist) == pytest.approx(float(terms.classes) + float(terms.slots), rel=1e-6)
    assert float(terms.loss) == pytest.approx(sum(bits(terms)), rel=1e-6)


def test_guesses_change_the_gist_s_bits_alone(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    with_guesses = compute(tiny_vae, tokens, counts, guesses, 1, fast=False)
    without = compute(tiny_vae, tokens, counts, torch.zeros_like(guesses), 1, fast=False)
    assert float(with_guesses.classes) != float(without.classes)
    assert float(with_guesses.slots) != float(without.slots)
    assert float(with_guesses.exact) == float(without.exact)


def test_guesses_are_of_the_gist_that_is_coded(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    """A memory of the gist of most detail, whose tokens another gist does not name."""
    tokens, counts, guesses = batch(tiny_config)
    named = torch.stack([tiny_vae.readout.named(guesses[0], 1), guesses[1]])
    assert not torch.equal(named, guesses)
    a, b = (compute(tiny_vae, tokens, counts, g, 1, fast=False) for g in (guesses, named))
    assert bits(a) == bits(b)


def test_the_gist_knows_nothing_of_what_it_leaves_open(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    tokens, counts, guesses = batch(tiny_config)
    readout = tiny_vae.readout
    rarer = readout.token_of[readout.class_of[tokens], -1]
    other = torch.where(readout.is_open(readout.named(tokens, 1), 1), rarer, tokens)
    assert not torch.equal(other, tokens)
    a, b = (compute(tiny_vae, t, counts, guesses, 1, fast=False) for t in (tokens, other))
    assert bits(a)[:2] == bits(b)[:2] and bits(a)[2] != bits(b)[2]


def test_fast_attention_costs_about_the_same(tiny_vae: TextVAE, tiny_config: ModelConfig) -> None:
    exact, fast = (compute(tiny_vae, *batch(tiny_config), 1, fast=f) for f in (False, True))
    assert float(fast.loss) == pytest.approx(float(exact.loss), rel=0.1)


@pytest.mark.parametrize("fast", [False, True])
def test_every_parameter_learns(tiny_vae: TextVAE, tiny_config: ModelConfig, fast: bool) -> None:
    model = TextVAE(tiny_config)
    model.load_state_dict(tiny_vae.state_dict())
    model.places.requires_grad_(False)  # from the company that tokens keep, not from these losses
    for detail in DETAILS:
        compute(model, *batch(tiny_config), detail, fast=fast).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name


def test_a_gist_without_open_tokens_still_gives_a_gradient(
    tiny_vae: TextVAE, tiny_config: ModelConfig
) -> None:
    model = TextVAE(tiny_config)
    model.load_state_dict(tiny_vae.state_dict())
    everything = torch.full_like(model.readout.limits, tiny_config.slots)
    model.readout.set_classes(model.readout.token_of.clone(), everything)
    terms = compute(model, *batch(tiny_config), 0, fast=False)
    assert (terms.open, terms.guessed, float(terms.exact)) == (0, 0, 0.0)
    terms.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
