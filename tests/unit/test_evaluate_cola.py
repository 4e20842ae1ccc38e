"""The full float model in use: its bound on bits, its continuations; word overlap."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from colazip.errors import UsageError
from colazip.evaluate.cola import continue_tokens, elbo_bits
from colazip.evaluate.overlap import bleu, rouge_l
from colazip.nn.cola import ColaVAE
from colazip.nn.cola_dit import ColaDiT
from colazip.train.recipes import paper_tiny

CONFIG = replace(paper_tiny().model, vocabulary=50)


def networks() -> tuple[ColaVAE, ColaDiT]:
    torch.manual_seed(0)
    vae, prior = ColaVAE(CONFIG), ColaDiT(CONFIG)
    vae.initialize()
    prior.initialize()
    return vae.requires_grad_(False), prior.requires_grad_(False)


class Linear(nn.Module):
    """A flow whose density is known: dx / dt = rate * x takes N(0, 1) to N(0, exp(2 * rate))."""

    block = 8

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, noisy: Tensor, t: Tensor, clean: Tensor, valid: Tensor, history: Tensor) -> Tensor:
        return self.rate * noisy


@pytest.mark.parametrize("rate", [0.0, 0.7])
def test_the_bound_with_a_flow_that_is_known(rate: float) -> None:
    vae, _ = networks()
    vae.shift.fill_(0.3)
    vae.scale.fill_(2.0)
    tokens, counts = torch.randint(1, 50, (3, 16)), torch.tensor([16, 5, 11])
    given = elbo_bits(vae, Linear(rate), tokens, counts, steps=64, seed=4)  # type: ignore[arg-type]
    noise = torch.Generator().manual_seed(4)
    mean, log_variance = vae.encoder(tokens)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    z = mean + q.stddev * torch.randn(mean.shape, generator=noise)
    p = torch.distributions.Normal(0.3, 2.0 * math.exp(rate))
    nats = nn.functional.cross_entropy(vae.decoder(z).transpose(1, 2), tokens, reduction="none")
    each = nats + (q.log_prob(z) - p.log_prob(z)).sum(-1)
    real = torch.arange(16)[None] < counts[:, None]
    wanted = (each * real).sum(1) / math.log(2.0)
    torch.testing.assert_close(given.float(), wanted, rtol=1e-3, atol=0.05)


def test_padding_costs_nothing() -> None:
    vae, prior = networks()
    tokens, counts = torch.randint(1, 50, (2, 24)), torch.tensor([24, 24])
    alone = elbo_bits(vae, prior, tokens, counts, steps=2)
    assert torch.isfinite(alone).all() and (alone > 0).all()
    none = elbo_bits(vae, prior, tokens, torch.tensor([24, 0]), steps=2)
    assert none[1] == 0 and float(none[0]) == pytest.approx(float(alone[0]), rel=1e-4)


def test_continuations() -> None:
    vae, prior = networks()
    for parameter in prior.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    prefix = torch.randint(1, 50, (2, 16))
    said = continue_tokens(vae, prior, prefix, 11, steps=3, guidance=2.0, seed=1)
    assert said.shape == (2, 11)
    assert torch.equal(said, continue_tokens(vae, prior, prefix, 11, steps=3, guidance=2.0, seed=1))
    with pytest.raises(UsageError, match="15 tokens"):
        continue_tokens(vae, prior, prefix[:, :15], 4)


def test_overlap_by_hand() -> None:
    assert rouge_l("The cat sat.", "the cat sat.") == 1.0
    assert rouge_l("a b c d", "a x c y") == pytest.approx(0.5)
    assert rouge_l("", "a") == rouge_l("a", "") == 0.0
    assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(1.0)
    assert bleu(["x y z"], ["a b c"]) == 0.0
    # One word of two right, no pair: 1/2, then (0 + 1) / (1 + 1), and no longer runs at all.
    assert bleu(["a x"], ["a b"]) == pytest.approx((0.5 * 0.5) ** 0.25)


@settings(max_examples=30, deadline=None)
@given(st.text("ab .", max_size=30), st.text("ab .", max_size=30))
def test_overlap_lies_between_0_and_1(a: str, b: str) -> None:
    assert 0.0 <= rouge_l(a, b) <= 1.0 and 0.0 <= bleu([a], [b]) <= 1.0 + 1e-9
    assert rouge_l(a, b) == pytest.approx(rouge_l(b, a))
