"""What training minimises: bits of the gist, and of the exact text given it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from colazip.nn.vae import TextVAE, real_tokens, token_history

LN2 = 0.6931471805599453


class About(NamedTuple):
    """Search codes of a batch. vectors: float32 [C, D], what they stand for; of: int64 [B, P], which of them
    each patch has."""

    vectors: Tensor
    of: Tensor


@dataclass(frozen=True)
class Terms:
    """Sums over a batch, in bits. tokens: without padding; open: those whose slot the gist leaves open, of
    which `guessed` many are the likeliest of what they can be, a tensor: to ask a GPU for it is to wait."""

    loss: Tensor
    classes: Tensor
    slots: Tensor
    exact: Tensor
    tokens: int
    open: int
    guessed: Tensor

    @property
    def gist(self) -> Tensor:
        return self.classes + self.slots


def compute(
    model: TextVAE,
    tokens: Tensor,
    counts: Tensor,
    guesses: Tensor,
    detail: int,
    *,
    fast: bool,
    about: About | None = None,
) -> Terms:
    """One batch. tokens int64 [B, P * K], counts int64 [B]; the guesses of a block's memory at the gist's
    tokens, and their kinds, int64 [2, B, P * K]; detail: which gist; about: what it is coded given."""
    readout = model.readout
    patches = tokens.unflatten(1, (-1, model.config.patch))
    real = real_tokens(counts, patches)
    valid = real[..., 0]
    at = real.flatten().nonzero()[:, 0]  # looked up once: on a GPU every mask as an index waits for its count
    gist = readout.named(tokens, detail)
    embedded = model.embed(gist.view_as(patches))

    told = None if about is None else model.tell(about.vectors, about.of)
    leaning = None if told is None else told.to_coder()
    slots = model.coder.patches(embedded.flatten(-2), valid, detail, leaning, fast=fast).flatten(0, 2)[at]
    guess, kind = readout.named(guesses[0].flatten()[at], detail), guesses[1].flatten()[at]
    history = token_history(gist).flatten(0, 1)[at]
    states = model.coder.tokens(slots, history, guess, kind, model.embed)
    weighed = model.coder.weigh(states, guess, kind)
    targets, named = tokens.flatten()[at], gist.flatten()[at]
    classes = readout.class_of[targets]
    which = lift = slot_lift = None
    if told is not None:
        which = told.of_tokens(patches).flatten()[at]
        lift, slot_lift = model.lifts(states, told, which, classes)
    class_bits = _bits(readout.class_logits(states, weighed, lift), classes)
    slot_logits = readout.gist_logits(states, classes, detail, weighed, slot_lift)
    slot_bits = _bits(slot_logits, readout.slot_of[named])

    embedded = embedded * real[..., None]
    leaning = None if told is None else told.to_decoder()
    features = model.decoder(embedded, valid, detail, leaning, fast=fast)
    is_open = readout.is_open(named, detail).nonzero()[:, 0]
    read = model.decoder.read(features, embedded, at[is_open])
    targets = targets[is_open]
    rare_lift = None
    if told is not None and which is not None:
        rare_lift = model.lift_rare(read, told, which[is_open], classes[is_open])
    rare = readout.rare_logits(read, classes[is_open], detail, rare_lift)
    wanted = readout.slot_of[targets]
    exact_bits = _bits(rare, wanted)
    return Terms(
        class_bits + slot_bits + exact_bits,
        class_bits.detach(),
        slot_bits.detach(),
        exact_bits.detach(),
        len(at),
        len(wanted),
        (rare.argmax(-1) == wanted).sum(),
    )


def _bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Code length of all targets [N] under logits in log2 units [N, A]: a sum, in bits."""
    return functional.cross_entropy(logits * LN2, targets, reduction="sum") / LN2
