"""The loss of a prior over entries of a codebook: what stands behind all that is not told."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from colazip.nn.entries import NOWHERE, EntryDiT

_RUN = 4  # vectors that go missing together, in some sequences
# How often what goes missing, in the order of `draw_known`.
_STYLES = (0.25, 0.15, 0.1, 0.25, 0.25)


@dataclass(frozen=True)
class Telling:
    """What training tells of entries.

    said: int64 [ways, V], what stands for each entry in each way of telling less, as `EntryDiT` takes it;
    members: bool [S, V] of the sets in there, the first of all entries. exact, complete: shares of the
    sequences told entry by entry, and with nothing missing. blockwise: share of the batches in blocks after a
    clean past, half of their sequences told nothing; the others are whole. noised: share of the sequences at
    times above 0.
    """

    said: Tensor
    members: Tensor
    exact: float = 0.5
    complete: float = 0.1
    blockwise: float = 0.25
    noised: float = 0.2


def draw_known(entries: Tensor, real: Tensor, telling: Telling) -> Tensor:
    """What is told of entries int64 [B, P, K], those of `real` bool [B, P, K]; int64 [B, P, K].

    A sequence lacks nothing, or as much as chance has it: vectors here and there, in runs, or every other
    one; single parts; or all behind some place but for single parts, as where a sequence goes on.
    """
    (count, length, parts), device = entries.shape, entries.device
    nothing = telling.said.shape[1]  # the number of the set of all entries

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, device=device)

    kind = chance(count)
    way = torch.randint(len(telling.said), (count, 1, 1), device=device)
    known = torch.where((kind > 1 - telling.exact)[:, None, None], entries, telling.said[way, entries])
    share = chance(count, 1)
    here = chance(count, length) < share
    runs = (chance(count, -(-length // _RUN)) < share).repeat_interleave(_RUN, 1)[:, :length]
    place = torch.arange(length, device=device)
    other = place % 2 == torch.randint(2, (count, 1), device=device)
    behind = place >= chance(count, 1) * real[..., 0].sum(1, keepdim=True)
    single = chance(count, length, parts) < share[..., None]
    every = [here[..., None], runs[..., None], other[..., None], single, behind[..., None] & single]
    styles = torch.stack([style.expand_as(single) for style in every])
    style = torch.multinomial(torch.tensor(_STYLES, device=device), count, replacement=True)
    lost = styles[style, torch.arange(count, device=device)] & (kind >= telling.complete)[:, None, None]
    return torch.where(real, torch.where(lost, nothing, known), NOWHERE)


def entry_error(prior: EntryDiT, entries: Tensor, real: Tensor, telling: Telling) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of what is not told, and over how many entries.

    entries int64 [B, P, K]; real bool [B, P, K].
    """
    (count, length, _), device, nothing = entries.shape, entries.device, len(prior.table)
    known = draw_known(entries, real, telling)
    time = torch.zeros(count, length, device=device)
    noised = torch.rand(count, 1, device=device)
    clean = mask = None
    table = prior.look_up(telling.members)
    if float(torch.rand(())) < telling.blockwise:
        untold = torch.rand(count, 1, 1, device=device) < 0.5
        known = torch.where(untold & real, nothing, known)
        drawn = torch.rand(count, -(-length // prior.block), device=device)
        drawn = drawn.repeat_interleave(prior.block, 1)[:, :length]
        time = torch.where(noised < 2 * telling.noised, drawn, time)
        mask = prior.training_mask(real[..., 0], torch.rand(count, device=device) >= 0.1)[:, None]
        clean = prior.inputs(torch.where(real, entries, NOWHERE), table)
    else:
        time = torch.where(noised < telling.noised, torch.rand(count, 1, device=device), time)
        if not real[..., 0].all():
            mask = real[:, None, None, :, 0]
    inputs = prior.inputs(known, table)
    where = known >= nothing
    chosen, t = known[where], time[..., None].expand_as(known)[where]
    place = prior.places()[entries[where]]
    noisy = (1 - t[:, None]) * torch.randn_like(place) + t[:, None] * place
    beliefs = prior.beliefs(chosen, telling.members, noisy, t)
    at = torch.nonzero(where.flatten())[:, 0]
    heard = t > 0
    if heard.any():
        told = prior.noisy_inputs(beliefs[heard])
        inputs = inputs.flatten(0, 2).index_copy(0, at[heard], told).view(inputs.shape)
    queries = prior.queries(inputs, time, mask, clean)
    logits = beliefs + queries[where] @ prior.table.T
    loss = functional.cross_entropy(logits, entries[where], reduction="sum")
    return loss, torch.tensor(float(len(chosen)), device=device)
