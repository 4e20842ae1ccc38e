"""What the two stages of arXiv 2605.06548 minimise. Sums over a batch, so that parts of a batch add up.

Stage 1: reconstruction + beta KL(q || N(0, 1)) + BERT-style masking. Stage 2: reconstruction and masking, the
negative entropy of the latents, the flow-matching loss of the prior (with the history's gradient stopped,
that of the noisy block not), and the KL to the encoder as stage 1 left it. Everything random in a batch is
drawn from the batch's own seed, so that neither a resumed run nor another number of processes changes it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from colazip.nn.cola import ColaConfig, ColaVAE
from colazip.nn.cola_dit import ColaDiT

LOGIT_ROWS = 4096  # tokens whose logits are in memory at once
_LOG_2_PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class ColaWeights:
    """How the terms are weighed, and what is drawn.

    masked: share of tokens hidden from the encoder in the pass whose loss is weighed by `mask`. kl: weight of
    the KL to N(0, 1) in stage 1, and of the negative entropy in stage 2 (the paper's beta): it sets how noisy
    the latents are. shift: the mean of the logit-normal times (arXiv 2403.03206); below 0 there is more
    noise, which larger latents need. unconditional: share of rows whose history is hidden.
    """

    masked: float = 0.15
    mask: float = 0.3
    kl: float = 1e-3
    vae: float = 1.0
    flow: float = 1.0
    reference: float = 0.1
    shift: float = 0.0
    unconditional: float = 0.1


class Stage1(nn.Module):
    """The Text VAE alone."""

    def __init__(self, config: ColaConfig, weights: ColaWeights) -> None:
        super().__init__()
        self.weights = weights
        self.vae = ColaVAE(config)

    def initialize(self) -> None:
        self.vae.initialize()

    def forward(self, tokens: Tensor, counts: Tensor, seed: int) -> dict[str, Tensor]:
        """tokens int64 [B, P * K], counts int64 [B] of real tokens -> sums over tokens, in nats.

        `loss` carries the gradient; `tokens` and `latents` count.
        """
        noise = _generator(tokens.device, seed)
        real = torch.arange(tokens.shape[1], device=tokens.device)[None] < counts[:, None]
        sums, posterior = _autoencode(self.vae, tokens, real, self.weights, noise)
        kl = 0.5 * (posterior.mean.square() + posterior.variance - posterior.log_variance - 1.0)
        sums["kl"] = (kl.sum(-1) * posterior.valid).sum()
        loss = sums["reconstruction"] + self.weights.mask * sums["masked"] + self.weights.kl * sums["kl"]
        return {"loss": loss, **{name: value.detach() for name, value in sums.items()}}


class Stage2(nn.Module):
    """Text VAE and prior together. `start_from` sets what stage 1 gives."""

    def __init__(self, config: ColaConfig, weights: ColaWeights) -> None:
        super().__init__()
        self.weights, self.config = weights, config
        self.vae, self.prior = ColaVAE(config), ColaDiT(config)
        self.reference = copy.deepcopy(self.vae.encoder).requires_grad_(False)

    def initialize(self) -> None:
        self.vae.initialize()
        self.prior.initialize()

    def start_from(self, vae: dict[str, Tensor]) -> None:
        """Take the VAE of stage 1, and its encoder as the reference."""
        self.vae.load_state_dict(vae)
        self.reference.load_state_dict(self.vae.encoder.state_dict())

    def forward(self, tokens: Tensor, counts: Tensor, seed: int) -> dict[str, Tensor]:
        """As `Stage1.forward`; `flow` is the squared error of the velocity, the mean over channels summed
        over latents."""
        noise = _generator(tokens.device, seed)
        weights, patch = self.weights, self.config.patch
        real = torch.arange(tokens.shape[1], device=tokens.device)[None] < counts[:, None]
        sums, posterior = _autoencode(self.vae, tokens, real, weights, noise)
        sums["negative_entropy"] = (
            -0.5 * ((posterior.log_variance + _LOG_2_PI + 1.0).sum(-1) * posterior.valid).sum()
        )
        with torch.no_grad():
            mean, log_variance = self.reference(tokens)
        drift = 0.5 * (
            log_variance
            - posterior.log_variance
            + (posterior.variance + (posterior.mean - mean).square()) / log_variance.exp()
            - 1.0
        )
        sums["reference_kl"] = (drift.sum(-1) * posterior.valid).sum()
        latents = (posterior.sample - self.vae.shift) / self.vae.scale
        error = flow_error(self.prior, latents, posterior.valid, weights, noise)
        sums["flow"] = (error * posterior.valid).sum()
        autoencoder = (
            sums["reconstruction"] + weights.mask * sums["masked"] + weights.kl * sums["negative_entropy"]
        )
        loss = weights.vae * autoencoder + weights.reference * sums["reference_kl"]
        loss = loss + weights.flow * patch * sums["flow"]
        return {"loss": loss, **{name: value.detach() for name, value in sums.items()}}


@dataclass(frozen=True)
class Posterior:
    """q(z | x): mean, log_variance, sample float [B, P, C]; valid bool [B, P]."""

    mean: Tensor
    log_variance: Tensor
    sample: Tensor
    valid: Tensor

    @property
    def variance(self) -> Tensor:
        return self.log_variance.exp()


def draw(vae: ColaVAE, tokens: Tensor, real: Tensor, noise: torch.Generator | None) -> Posterior:
    """Latents of whole texts. real bool [B, T]."""
    mean, log_variance = vae.encoder(tokens)
    random = torch.randn(mean.shape, generator=noise, device=mean.device)
    valid = real.unflatten(1, (-1, vae.config.patch))[..., 0]
    return Posterior(mean, log_variance, mean + (0.5 * log_variance).exp() * random, valid)


def _autoencode(
    vae: ColaVAE, tokens: Tensor, real: Tensor, weights: ColaWeights, noise: torch.Generator | None
) -> tuple[dict[str, Tensor], Posterior]:
    """Reconstruction from the whole text, and of hidden tokens from the text without them."""
    posterior = draw(vae, tokens, real, noise)
    hidden = (torch.rand(tokens.shape, generator=noise, device=tokens.device) < weights.masked) & real
    mean, log_variance = vae.encoder(tokens, hidden)
    random = torch.randn(mean.shape, generator=noise, device=mean.device)
    partial = mean + (0.5 * log_variance).exp() * random
    sums = {
        "reconstruction": token_nats(vae, posterior.sample, tokens, real),
        "masked": token_nats(vae, partial, tokens, hidden),
        "signal": _log_signal_to_noise(posterior),
        "hidden": hidden.sum().float(),
        "tokens": real.sum().float(),
        "latents": posterior.valid.sum().float(),
    }
    return sums, posterior


@torch.no_grad()
def _log_signal_to_noise(posterior: Posterior) -> Tensor:
    """Log of the variance of the means in this batch over the noise's, the mean over channels summed over
    latents: the paper's log-SNR."""
    share = posterior.valid[..., None] / posterior.valid.sum().clamp_min(1)
    centre = (posterior.mean * share).sum((0, 1))
    spread = ((posterior.mean - centre).square() * share).sum((0, 1)).clamp_min(1e-12)
    return ((spread.log() - posterior.log_variance).mean(-1) * posterior.valid).sum()


def token_nats(vae: ColaVAE, z: Tensor, tokens: Tensor, counted: Tensor) -> Tensor:
    """Nats of the counted tokens given the latents. The logits of all tokens are never in memory together."""
    states, targets = vae.decoder.states(z).flatten(0, 1), tokens.flatten()
    total = torch.zeros((), device=z.device)
    for lo in range(0, len(targets), LOGIT_ROWS):
        part = slice(lo, lo + LOGIT_ROWS)
        arguments = vae.decoder.head, states[part], targets[part], counted.flatten()[part]
        if torch.is_grad_enabled():
            total = total + checkpoint(_nats, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            total = total + _nats(*arguments)
    return total


def _nats(head: nn.Module, states: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    nats = functional.cross_entropy(head(states).float(), targets, reduction="none")
    return (nats * counted).sum()


def flow_error(
    prior: ColaDiT, latents: Tensor, valid: Tensor, weights: ColaWeights, noise: torch.Generator | None
) -> Tensor:
    """Mean squared error of the velocity of each latent [B, P]. latents [B, P, C] in the prior's units.

    The history is cut off from the gradient; the noisy block and its target are not.
    """
    batch, length, _ = latents.shape
    blocks = -(-length // prior.block)
    draw = torch.randn(batch, blocks, generator=noise, device=latents.device)
    times = torch.sigmoid(draw + weights.shift)
    t = times.repeat_interleave(prior.block, 1)[:, :length, None]
    start = torch.randn(latents.shape, generator=noise, device=latents.device)
    history = torch.rand(batch, generator=noise, device=latents.device) >= weights.unconditional
    velocity = prior((1 - t) * start + t * latents, times, latents.detach(), valid, history)
    return (velocity - (latents - start)).square().mean(-1)


def _generator(device: torch.device, seed: int) -> torch.Generator | None:
    """None on the meta device, where nothing is drawn."""
    return None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
