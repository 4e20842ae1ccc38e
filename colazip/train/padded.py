"""Bits of a batch in operations whose shapes are known before: a GPU's graph of them is captured once.

The same sums as `losses.compute`, which picks what is there out of a batch; here padding is computed and
weighs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from colazip.nn.vae import TextVAE, embedded_history, real_tokens, token_history
from colazip.train.losses import LN2, About


def padded_sums(
    model: TextVAE,
    tokens: Tensor,
    counts: Tensor,
    guesses: Tensor,
    detail: int,
    *,
    room: int,
    fast: bool,
    about: About | None = None,
) -> Tensor:
    """How many tokens there are, bits of their classes, slots and exact text, and how many a gist leaves
    open: float32 [5].

    Arguments as `losses.compute` has them; every segment has a token. room: of open tokens; more are left out
    of the exact layer's sum.
    """
    readout = model.readout
    patches = tokens.unflatten(1, (-1, model.config.patch))
    real = real_tokens(counts, patches)
    valid, weight = real[..., 0], real.flatten().float()
    targets = tokens.flatten()
    gist = readout.named(tokens, detail)
    named = gist.flatten()
    embedded = model.embed(gist.view_as(patches))

    told = None if about is None else model.tell(about.vectors, about.of)
    leaning = None if told is None else told.to_coder()
    slots = model.coder.patches(embedded.flatten(-2), valid, detail, leaning, fast=fast).flatten(0, 2)
    guess, kind = readout.named(guesses[0].flatten(), detail), guesses[1].flatten()
    history = token_history(gist).flatten(0, 1)
    start = model.embed(torch.zeros((), dtype=torch.long, device=tokens.device))
    before = embedded_history(embedded.flatten(1, 2), start).flatten(0, 1)
    states = model.coder.tokens(slots, history, guess, kind, model.embed, before)
    weighed = model.coder.weigh(states, guess, kind)
    classes = readout.class_of[targets]
    which = lift = slot_lift = None
    if told is not None:
        which = told.of_tokens(patches).flatten()
        lift, slot_lift = model.lifts(states, told, which, classes)
    class_bits = _bits(readout.class_logits(states, weighed, lift), classes)
    slot_logits = readout.gist_logits(states, classes, detail, weighed, slot_lift)
    slot_bits = _bits(slot_logits, readout.slot_of[named])

    embedded = embedded * real[..., None]
    leaning = None if told is None else told.to_decoder()
    features = model.decoder(embedded, valid, detail, leaning, fast=fast)
    is_open = readout.is_open(named, detail).float() * weight
    at = torch.argsort(is_open, descending=True)[:room]
    read = model.decoder.read(features, embedded, at)
    rare_lift = None
    if told is not None and which is not None:
        rare_lift = model.lift_rare(read, told, which[at], classes[at])
    rare = readout.rare_logits(read, classes[at], detail, rare_lift)
    exact_bits = _bits(rare, readout.slot_of[targets[at]])
    return torch.stack(
        [
            weight.sum(),
            (class_bits * weight).sum(),
            (slot_bits * weight).sum(),
            (exact_bits * is_open[at]).sum(),
            is_open.sum(),
        ]
    )


def _bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Code length of each target [N] under logits in log2 units [N, A], in bits: [N]."""
    return functional.cross_entropy(logits * LN2, targets, reduction="none") / LN2
