"""What training minimises: bits of the gist, and of the exact text given it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from colazip.nn.pointer import Shares
from colazip.nn.vae import TextVAE, TokenReadout, Told, embedded_history, real_tokens, token_history

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


class Coded(NamedTuple):
    """What coder and decoder are asked, and what the coder answers, at N tokens of a batch.

    at: int64 [N], where they stand among the B * P * K; targets, named: int64 [N], the tokens and what a gist
    says of them; class_logits, slot_logits: float32 [N, ...]; embedded: the gist, [B, P, K, E]; real: bool
    [B, P, K]; told, which: what search codes say, and of which code each token is told, int64 [N].
    """

    at: Tensor
    targets: Tensor
    named: Tensor
    class_logits: Tensor
    slot_logits: Tensor
    embedded: Tensor
    real: Tensor
    told: Told | None
    which: Tensor | None
    shares: Shares | None

    def bits(self, readout: TokenReadout) -> tuple[Tensor, Tensor]:
        """Of the classes and of the slots that a gist says, [N] each."""
        by_class = bits_of(self.class_logits, readout.class_of[self.targets])
        by_slot = bits_of(self.slot_logits, readout.slot_of[self.named])
        if self.shares is None:
            return by_class, by_slot
        own, same_class, same_token = self.shares
        both = -torch.log2(own * torch.exp2(-by_class - by_slot) + same_token)
        by_class = -torch.log2(own * torch.exp2(-by_class) + same_class)
        return by_class, both - by_class


def code(
    model: TextVAE,
    tokens: Tensor,
    counts: Tensor,
    guesses: Tensor,
    detail: int,
    *,
    fast: bool,
    about: About | None,
    whole: bool,
) -> Coded:
    """The coder over a batch, as `compute` takes it. whole: at padding too, without a look at the counts."""
    readout = model.readout
    patches = tokens.unflatten(1, (-1, model.config.patch))
    real = real_tokens(counts, patches)
    every = torch.arange(tokens.numel(), device=tokens.device)
    # Looked up once: on a GPU every mask as an index waits for its count.
    at = every if whole else real.flatten().nonzero()[:, 0]
    gist = readout.named(tokens, detail)
    embedded = model.embed(gist.view_as(patches))

    told = None if about is None else model.tell(about.vectors, about.of)
    leaning = None if told is None else told.to_coder()
    slots = model.coder.patches(embedded.flatten(-2), real[..., 0], detail, leaning, fast=fast)
    guess, kind = readout.named(guesses[0].flatten()[at], detail), guesses[1].flatten()[at]
    history = token_history(gist).flatten(0, 1)[at]
    before = None
    if whole:  # every token is embedded already
        start = model.embed(torch.zeros((), dtype=torch.long, device=tokens.device))
        before = embedded_history(embedded.flatten(1, 2), start).flatten(0, 1)
    slots = slots.flatten(0, 2) if whole else slots.flatten(0, 2)[at]
    states = model.coder.tokens(slots, history, guess, kind, model.embed, before)
    weighed = model.coder.weigh(states, guess, kind)
    shares = None
    if model.coder.pointer is not None:
        table = states
        if not whole:
            table = states.new_zeros(tokens.numel(), states.shape[1]).index_copy(0, at, states)
        shares = model.coder.pointer.shares(
            table.view(*tokens.shape, -1), readout.class_of[tokens], gist, fast=fast
        )
        shares = shares if whole else Shares(*(share[at] for share in shares))
    targets = tokens.flatten()[at]
    classes = readout.class_of[targets]
    which = lift = slot_lift = None
    if told is not None:
        which = told.of_tokens(patches).flatten()[at]
        lift, slot_lift = model.lifts(states, told, which, classes)
    return Coded(
        at,
        targets,
        gist.flatten()[at],
        readout.class_logits(states, weighed, lift),
        readout.gist_logits(states, classes, detail, weighed, slot_lift),
        embedded,
        real,
        told,
        which,
        shares,
    )


def rare_logits(model: TextVAE, coded: Coded, some: Tensor, detail: int, *, fast: bool) -> Tensor:
    """Slots of open tokens, `some` int64 [n] of the N: [n, slots]."""
    embedded, told = coded.embedded * coded.real[..., None], coded.told
    leaning = None if told is None else told.to_decoder()
    features = model.decoder(embedded, coded.real[..., 0], detail, leaning, fast=fast)
    read = model.decoder.read(features, embedded, coded.at[some])
    classes = model.readout.class_of[coded.targets[some]]
    lift = None
    if told is not None and coded.which is not None:
        lift = model.lift_rare(read, told, coded.which[some], classes)
    return model.readout.rare_logits(read, classes, detail, lift)


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
    coded = code(model, tokens, counts, guesses, detail, fast=fast, about=about, whole=False)
    class_bits, slot_bits = (bits.sum() for bits in coded.bits(readout))
    is_open = readout.is_open(coded.named, detail).nonzero()[:, 0]
    rare = rare_logits(model, coded, is_open, detail, fast=fast)
    wanted = readout.slot_of[coded.targets[is_open]]
    exact_bits = bits_of(rare, wanted).sum()
    return Terms(
        class_bits + slot_bits + exact_bits,
        class_bits.detach(),
        slot_bits.detach(),
        exact_bits.detach(),
        len(coded.at),
        len(wanted),
        (rare.argmax(-1) == wanted).sum(),
    )


def bits_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Code length of each target [N] under logits in log2 units [N, A], in bits: [N]."""
    return functional.cross_entropy(logits * LN2, targets, reduction="none") / LN2
