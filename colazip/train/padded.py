"""Bits of a batch in operations whose shapes are known before: a GPU's graph of them is captured once.

The same sums as `losses.compute`, which picks what is there out of a batch; here padding is computed and
weighs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from colazip.nn.vae import TextVAE
from colazip.train.losses import About, bits_of, code, rare_logits


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
    coded = code(model, tokens, counts, guesses, detail, fast=fast, about=about, whole=True)
    weight = coded.real.flatten().float()
    class_bits, slot_bits = coded.bits(readout)
    is_open = readout.is_open(coded.named, detail).float() * weight
    some = torch.argsort(is_open, descending=True)[:room]
    rare = rare_logits(model, coded, some, detail, fast=fast)
    return torch.stack(
        [
            weight.sum(),
            (class_bits * weight).sum(),
            (slot_bits * weight).sum(),
            (bits_of(rare, readout.slot_of[coded.targets[some]]) * is_open[some]).sum(),
            is_open.sum(),
        ]
    )
