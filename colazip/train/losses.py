"""What training minimises: bits of the gist, and of the exact text given it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from colazip.nn.vae import TextVAE, real_tokens, token_history

LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Terms:
    """Sums over a batch, in bits. tokens: without padding; open: those whose slot the gist leaves open, of
    which `guessed` many are the likeliest of what they can be."""

    loss: Tensor
    classes: Tensor
    slots: Tensor
    exact: Tensor
    tokens: int
    open: int
    guessed: int

    @property
    def gist(self) -> Tensor:
        return self.classes + self.slots


def compute(
    model: TextVAE, tokens: Tensor, counts: Tensor, guesses: Tensor, detail: int, *, fast: bool
) -> Terms:
    """One batch. tokens int64 [B, P * K], counts int64 [B]; the guesses of a block's memory at the gist's
    tokens, and their kinds, int64 [2, B, P * K]; detail: which gist."""
    readout = model.readout
    patches = tokens.unflatten(1, (-1, model.config.patch))
    real = real_tokens(counts, patches)
    valid = real[..., 0]
    flat_real = real.flatten(1)
    gist = readout.named(tokens, detail)
    embedded = model.embed(gist.view_as(patches))

    slots = model.coder.patches(embedded.flatten(-2), valid, detail, fast=fast)[real]
    guess, kind = readout.named(guesses[0][flat_real], detail), guesses[1][flat_real]
    states = model.coder.tokens(slots, token_history(gist)[flat_real], guess, kind, model.embed)
    weighed = model.coder.weigh(states, guess, kind)
    targets, named = tokens[flat_real], gist[flat_real]
    classes = readout.class_of[targets]
    class_bits = _bits(readout.class_logits(states, weighed), classes)
    slot_bits = _bits(readout.gist_logits(states, classes, detail, weighed), readout.slot_of[named])

    embedded = embedded * real[..., None]
    features = model.decoder(embedded, valid, detail, fast=fast)
    is_open = readout.is_open(named, detail)
    where = torch.zeros_like(real)
    where[real] = is_open
    rare = readout.rare_logits(model.decoder.read(features, embedded, where), classes[is_open], detail)
    wanted = readout.slot_of[targets[is_open]]
    exact_bits = _bits(rare, wanted)
    return Terms(
        class_bits + slot_bits + exact_bits,
        class_bits.detach(),
        slot_bits.detach(),
        exact_bits.detach(),
        len(targets),
        len(wanted),
        int((rare.argmax(-1) == wanted).sum()),
    )


def _bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Code length of all targets [N] under logits in log2 units [N, A]: a sum, in bits."""
    return functional.cross_entropy(logits * LN2, targets, reduction="sum") / LN2
