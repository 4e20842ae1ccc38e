"""The full float model in use: continue a text, and bound how many bits one has under it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from colazip.errors import UsageError
from colazip.nn.cola import ColaVAE, KeysValues
from colazip.nn.cola_dit import ColaDiT
from colazip.train.cola_losses import draw

_LOG_2_PI = math.log(2.0 * math.pi)


@torch.inference_mode()
def continue_tokens(
    vae: ColaVAE,
    prior: ColaDiT,
    prefix: Tensor,
    count: int,
    *,
    steps: int = 16,
    guidance: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """The next `count` tokens, int64 [B, count], after `prefix` int64 [B, T].

    The prefix's latents are the history; blocks of noise are carried to latents in `steps` Euler steps each,
    and all new latents are read in one pass, each token the likeliest. guidance: above 1, away from what the
    prior expects without the history (arXiv 2207.12598). Raises UsageError unless the prefix is whole blocks.
    """
    whole = prior.block * vae.config.patch
    if prefix.shape[1] % whole:
        raise UsageError(f"a prefix of {prefix.shape[1]} tokens is no multiple of a block of {whole}")
    noise = torch.Generator(prefix.device).manual_seed(seed)
    known = (vae.encoder(prefix)[0] - vae.shift) / vae.scale
    past, start = prior.memory(), 0
    if known.shape[1]:
        prior.finish(known, start, past)
        start = known.shape[1]
    wanted = -(-count // vae.config.patch)
    blocks, more = [known], -(-wanted // prior.block)
    for left in reversed(range(more)):
        shape = len(prefix), prior.block, known.shape[-1]
        x = torch.randn(shape, generator=noise, device=prefix.device)
        for i in range(steps):
            x = x + _velocity(prior, x, i / steps, start, past, guidance) / steps
        if left:
            prior.finish(x, start, past)
        start += prior.block
        blocks.append(x)
    latents = torch.cat(blocks, 1) * vae.scale + vae.shift
    states = vae.decoder.states(latents, skip=known.shape[1])[:, :count]
    return vae.decoder.head(states).argmax(-1)


def _velocity(
    prior: ColaDiT, x: Tensor, t: float, start: int, past: list[KeysValues], guidance: float
) -> Tensor:
    guided = prior.velocity(x, t, start, past)
    if guidance == 1.0:
        return guided
    free = prior.velocity(x, t, start, prior.memory())
    return free + guidance * (guided - free)


def elbo_bits(
    vae: ColaVAE, prior: ColaDiT, tokens: Tensor, counts: Tensor, *, steps: int = 16, seed: int = 0
) -> Tensor:
    """Bits of each text, float64 [B]: reconstruction + log q(z | x) - log p(z), of one sample of z.

    In expectation an upper bound on -log2 p(x), but for the integration: log p(z) follows the flow back to
    noise in `steps` midpoint steps, its divergence estimated with one random direction (arXiv 1810.01367).
    All blocks flow side by side, each after the clean blocks before it. tokens int64 [B, P * K], counts int64
    [B].
    """
    noise = torch.Generator(tokens.device).manual_seed(seed)
    real = torch.arange(tokens.shape[1], device=tokens.device)[None] < counts[:, None]
    with torch.no_grad():
        posterior = draw(vae, tokens, real, noise)
        logits = vae.decoder(posterior.sample).float()
        nats = functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        nats = (nats.view(tokens.shape) * real).sum(1)
        deviation = (posterior.sample - posterior.mean) / (0.5 * posterior.log_variance).exp()
        density = -0.5 * (deviation.square() + posterior.log_variance + _LOG_2_PI).sum(-1)
        latents = (posterior.sample - vae.shift) / vae.scale
    valid = posterior.valid
    flowed = _log_density(prior, latents, valid, steps, noise)
    volume = vae.scale.log().sum() * valid.sum(1)
    total = nats + (density * valid).sum(1) - (flowed - volume)
    return total.double() / math.log(2.0)


def _log_density(
    prior: ColaDiT, latents: Tensor, valid: Tensor, steps: int, noise: torch.Generator
) -> Tensor:
    """Log density of latents [B, P, C] under the prior, over those that are valid: [B]."""
    history = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
    signs = torch.randint(0, 2, latents.shape, generator=noise, device=latents.device) * 2.0 - 1.0
    signs = signs * valid[..., None]
    blocks = -(-latents.shape[1] // prior.block)

    def velocity(x: Tensor, t: float) -> Tensor:
        times = torch.full((len(x), blocks), t, device=x.device)
        return prior(x, times, latents, valid, history) * valid[..., None]

    x, divergence = latents, torch.zeros(len(latents), device=latents.device)
    for i in range(steps):
        t = 1.0 - i / steps
        with torch.no_grad():
            middle = x - velocity(x, t) / (2 * steps)
        with torch.enable_grad():
            middle = middle.detach().requires_grad_(True)
            v = velocity(middle, t - 0.5 / steps)
            (slope,) = torch.autograd.grad((v * signs).sum(), middle)
        divergence = divergence + (slope * signs).sum((1, 2)) / steps
        x = x - v.detach() / steps
    normal = -0.5 * (x.square() + _LOG_2_PI).sum(-1)
    return (normal * valid).sum(1) - divergence
