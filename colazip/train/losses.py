"""What training minimises: bits of the gist reading, of the latents, and of the exact text given them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from colazip.nn.layers import straight_through
from colazip.nn.vae import (
    LEVEL,
    Guess,
    TextVAE,
    TokenReadout,
    cell_index,
    coarse_plane,
    round_latents,
    token_history,
)

LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Weights:
    """How the terms of one step are weighed.

    gist: weight of the gist reading. rate: weight of the latents' bits. exact_into_latents: whether the exact
    coder's loss reaches the encoder. token_dropout: share of input tokens hidden from the encoder. coarse:
    weight of a gist reading from the coarse plane alone (0 skips that pass).
    """

    gist: float
    rate: float
    exact_into_latents: bool
    token_dropout: float = 0.0
    coarse: float = 0.0


@dataclass(frozen=True)
class Terms:
    """Sums over a batch, in bits; tokens and patches counted without padding."""

    loss: Tensor
    exact: Tensor
    gist: Tensor
    rate: Tensor
    coarse_rate: Tensor
    tokens: int
    patches: int


def token_bits(readout: TokenReadout, states: Tensor, targets: Tensor, guess: Guess | None = None) -> Tensor:
    """Bits of each target token [N] under its state [N, L]: class, then slot within the class."""
    classes, slots = readout.class_of[targets], readout.slot_of[targets]
    first = nn.functional.cross_entropy(readout.class_logits(states, guess) * LN2, classes, reduction="none")
    second = nn.functional.cross_entropy(
        readout.slot_logits(states, classes, guess) * LN2, slots, reduction="none"
    )
    return (first + second) / LN2


def latent_bits(
    coarse_logits: Tensor, fine_logits: Tensor, levels: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """Bits of each token's latent [N, K] and of its coarse plane alone [N, K].

    coarse_logits [N, K, cells], fine_logits [N, K, cells, cells], levels and u [N, K * C]. The gradient
    towards u is the slope between the two levels around it, channel by channel: the code length itself is a
    step function.
    """
    coarse = torch.log_softmax(coarse_logits * LN2, -1)
    fine = torch.log_softmax(fine_logits * LN2, -1)
    table = ((coarse[..., None] + fine) / -LN2).flatten(-2)  # [N, K, cells * cells]
    cells, tokens = coarse.shape[-1], coarse.shape[-2]
    channels = levels.shape[-1] // tokens

    def entry(at: Tensor) -> Tensor:
        plane = coarse_plane(at)
        return cell_index(plane, channels) * cells + cell_index(at - 3.0 * plane, channels)

    index = entry(levels.detach())
    bits = table.gather(-1, index[..., None])[..., 0]
    with torch.no_grad():
        grid = levels.detach().unflatten(-1, (tokens, channels))
        below = torch.floor(u.clamp(-LEVEL, LEVEL - 1e-3)).unflatten(-1, (tokens, channels))
        slopes = []
        for c in range(channels):
            lo, hi = grid.clone(), grid.clone()
            lo[..., c], hi[..., c] = below[..., c], below[..., c] + 1
            both = [table.gather(-1, entry(x.flatten(-2))[..., None])[..., 0] for x in (lo, hi)]
            slopes.append(both[1] - both[0])
        slope = torch.stack(slopes, -1)
    bits = bits + (slope * (u - u.detach()).unflatten(-1, (tokens, channels))).sum(-1)
    plane = cell_index(coarse_plane(levels.detach()), channels)
    return bits, -coarse.gather(-1, plane[..., None])[..., 0] / LN2


def compute(
    model: TextVAE, tokens: Tensor, counts: Tensor, guesses: Tensor, weights: Weights, *, fast: bool
) -> Terms:
    """One batch. tokens int64 [B, P * K], counts int64 [B]; the block memory's guesses and their kinds int64
    [2, B, P * K]."""
    patch = model.config.patch
    position = torch.arange(tokens.shape[1], device=tokens.device)
    real = position[None] < counts[:, None]  # [B, T]
    tokens3 = tokens.unflatten(1, (-1, patch))
    valid = real.view(tokens3.shape)[..., 0]
    embedded = model.embed(tokens3)
    places = model.encoder.places(tokens3)
    seen = embedded
    if weights.token_dropout:
        keep = torch.rand(tokens3.shape, device=tokens.device) >= weights.token_dropout
        seen, places = embedded * keep[..., None], places * keep[..., None]
    u, _ = model.encoder(seen.flatten(-2), places.flatten(-2), valid, fast=fast)
    # Tokens that pad the last patch have no latent.
    u = u * real.view(tokens3.shape).repeat_interleave(model.config.channels, -1)
    levels = round_latents(u)
    features = model.decoder(levels, valid, fast=fast)

    third = levels / 3.0
    coarse = straight_through(third, coarse_plane(levels.detach()))
    bits, coarse_bits = latent_bits(
        model.context(coarse, valid, fast=fast)[valid],
        model.refiner(coarse, valid, fast=fast)[valid],
        levels[valid],
        u[valid],
    )

    into = features if weights.exact_into_latents else features.detach()
    patch_states = model.exact.patches(into, embedded.flatten(-2), valid, fast=fast)
    slots = model.exact.slots(patch_states).unflatten(-1, (patch, -1))[real.view(tokens3.shape)]
    guess, kind = guesses[0][real], guesses[1][real]
    exact_states = model.exact.tokens(slots, token_history(tokens)[real], guess, kind, model.embed)
    targets = tokens[real]
    keep_tokens = real.view(tokens3.shape)[valid]
    exact_bits = token_bits(
        model.readout, exact_states, targets, model.exact.weigh(exact_states, guess, kind)
    ).sum()
    states = [model.decoder.read(features[valid])[keep_tokens]]
    if weights.coarse:
        rough = model.decoder(coarse * 3.0, valid, fast=fast)
        states.append(model.decoder.read(rough[valid])[keep_tokens])
    read_bits = (
        token_bits(model.readout, torch.cat(states), targets.repeat(len(states))).view(len(states), -1).sum(1)
    )
    rate = bits[keep_tokens].sum()
    loss = exact_bits + weights.gist * read_bits[0] + weights.rate * rate
    if weights.coarse:
        loss = loss + weights.coarse * read_bits[1]
    count = len(targets)
    return Terms(
        loss / count,
        exact_bits.detach(),
        read_bits[0].detach(),
        rate.detach(),
        coarse_bits[keep_tokens].sum().detach(),
        count,
        int(valid.sum()),
    )
