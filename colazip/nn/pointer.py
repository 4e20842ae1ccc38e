"""Tokens of a text point at tokens before them: what came after a state like theirs may come again.

The pointer sentinel mixture of language models (arXiv 1609.07843), over the states of a continuous cache
(arXiv 1612.04426): a token's query meets the keys of all tokens before it in the segment, each key made from
the state that the token was coded by. What the keys weigh goes to the tokens that they belong to, what the
sentinel weighs to what the network says by itself. Patches meet in the transformer as they are cut; here a
word that stood across two of them is found again.

Weights are integers, so that mixtures are exact. First the class of a token is coded, then its slot; of the
two the mixture's second has the weights that are left once the class is known (`given_class`). Shapes: B
segments of T tokens; N tokens that look at K keys; C classes, S slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from colazip.nn.exact import (
    ExactLinear,
    Mix,
    exact_kernels,
    in_runs,
    inverse_rms,
    quantize_rows,
    softmax_of_steps,
)
from colazip.nn.grid import GRID, POINTER_RMS, PRECISION, SHARES, TABLE_STEPS
from colazip.nn.layers import TEMPERATURE_UNIT, straight_through

_SHARPNESS = 4.2  # a state meets its like at 43 log2 units, where training starts
_RESERVE = 45.0  # log2 units of the sentinel there, so that hardly anything is pointed at
_LN2 = math.log(2.0)
_PLAIN = 1 << 22  # scores at once, operation by operation


class Shares(NamedTuple):
    """Of a token's mixture, float32 [N] each: what the network's own word has, what points at the token's
    class, and at the token."""

    own: Tensor
    same_class: Tensor
    same_token: Tensor


def leveled(q: Tensor, inverse: Tensor) -> Tensor:
    """Integer rows [..., W] and 1 / rms of each, [..., 1] -> as integers of one root mean square."""
    return (q * (inverse * POINTER_RMS)).round_().clamp_(-GRID, GRID)


def level_rows(x: Tensor) -> Tensor:
    """Rows [..., W] as integers of one root mean square, so that products of two tell their cosine."""
    with torch.no_grad():
        q, _ = quantize_rows(x.detach())
        level = leveled(q, inverse_rms(q))
    if not x.requires_grad:
        return level
    return straight_through(x * (x.square().mean(-1, keepdim=True) + 1e-12).rsqrt() * POINTER_RMS, level)


class Pointer(nn.Module):
    """Token states -> queries, keys and sentinels. states: [..., L], those that are read off."""

    joined: Tensor | None
    joined_scale: Tensor

    def __init__(self, local: int, width: int) -> None:
        super().__init__()
        self.both = ExactLinear(local, 2 * width, norm=True)
        self.sentinel = ExactLinear(local, 1, norm=True, zero=True)
        self.temperature = nn.Parameter(torch.full((1,), _SHARPNESS))
        self.offset = nn.Parameter(torch.full((1,), _RESERVE))
        # Both matrices and their scales, one below the other, once they are frozen.
        self.register_buffer("joined", None, persistent=False)
        self.register_buffer("joined_scale", None, persistent=False)
        with torch.no_grad():  # states that are alike meet from the start
            self.both.trainable[width:] = self.both.trainable[:width]

    def keys(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys as integers in float32, [..., W] each."""
        query, key = self.both(states).unflatten(-1, (2, -1)).unbind(-2)
        return level_rows(query), level_rows(key)

    def read(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Without gradients, of states [N, L]: queries and keys int8 [N, W] each, scores of sentinels [N]."""
        if self.both.weight is None and (kernels := exact_kernels(states.device)) is not None:
            if self.joined is None:
                parts = self.both, self.sentinel
                self.joined_scale = torch.cat([p.scale for p in parts])
                self.joined = torch.cat([p.q for p in parts])  # last: what other threads look at
            found = kernels.linear(states, self.joined, self.joined_scale, norm=True)
            both = kernels.level(found[:, :-1], self.width)
            return both[:, 0], both[:, 1], (found[:, -1] + self.offset) * float(TABLE_STEPS)
        query, key = self.keys(states)
        return query.to(torch.int8), key.to(torch.int8), self.reserve(states)

    def factor(self) -> Tensor:
        """What products of queries and keys are multiplied by for scores in steps of the table of weights."""
        return self.temperature * TEMPERATURE_UNIT * float(TABLE_STEPS)

    def reserve(self, states: Tensor) -> Tensor:
        """Scores of the sentinels, in the same steps: [...]."""
        reserve: Tensor = (self.sentinel(states)[..., 0] + self.offset) * float(TABLE_STEPS)
        return reserve

    @property
    def width(self) -> int:
        """Of queries and keys."""
        return len(self.both.q if self.both.weight is None else self.both.weight) // 2

    def aim(self, query: Tensor, reserve: Tensor, known: Known, at: Tensor, most: int, classes: int) -> Aim:
        """What tokens point at, given what `read` says of them. at: as `Aim` has it; most: how many keys any
        of them may look at."""
        return Aim(*point(query, reserve, self.factor(), known, at, most, classes), at)

    def shares(self, states: Tensor, classes: Tensor, tokens: Tensor, *, fast: bool) -> Shares:
        """Of all tokens of whole segments: states [B, T, L], classes and tokens int64 [B, T] -> [B * T].
        fast: weights are not rounded, for training only."""
        query, key = self.keys(states)
        scores = (query @ key.transpose(-1, -2)) * self.factor()
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_()
        scores = torch.cat([scores.masked_fill(later, -torch.inf), self.reserve(states)[..., None]], -1)
        weights = torch.softmax(scores * (_LN2 / TABLE_STEPS), -1)
        if not fast:
            with torch.no_grad():
                whole, _ = softmax_of_steps(scores.clone())
                whole[..., -1].clamp_min_(1.0)
                rounded = whole / whole.sum(-1, keepdim=True)
            weights = straight_through(weights, rounded)
        pointed = weights[..., :-1]
        return Shares(
            weights[..., -1].flatten(),
            (pointed * (classes[:, :, None] == classes[:, None])).sum(-1).flatten(),
            (pointed * (tokens[:, :, None] == tokens[:, None])).sum(-1).flatten(),
        )


class Known(NamedTuple):
    """Tokens that can be pointed at. keys: int8 [M, W]; classes, slots: int32 [M]."""

    keys: Tensor
    classes: Tensor
    slots: Tensor


class Aim(NamedTuple):
    """What N tokens point at. own: int32 [N], weights of the sentinels, at least 1; by_class: int32 [N, C];
    weights: uint8 [N, K], of each key; at: int64 [2, N], the first key that each may look at and how many."""

    own: Tensor
    by_class: Tensor
    weights: Tensor
    at: Tensor

    def of_class(self) -> Mix:
        """The mixture of the class."""
        return Mix(self.own, self.by_class)

    def given_class(self, cdf: Tensor, classes: Tensor, known: Known, slots: int) -> Mix:
        """The mixture of the slot. cdf: int32 [N, C + 1], the tables that the classes int64 [N] came by."""
        kernels = exact_kernels(cdf.device)
        mix = plain_mix_slots if kernels is None else kernels.mix_slots
        return Mix(*mix(self, known, cdf, classes, slots))


def point(
    query: Tensor, reserve: Tensor, factor: Tensor, known: Known, at: Tensor, most: int, classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the sentinels, int32 [N], of classes, int32 [N, C], and of keys, uint8 [N, K].

    query: int8 [N, W]; reserve: float32 [N] and factor [1], for scores in steps of the table; at, most: as
    `Pointer.aim` takes them.
    """
    kernels = exact_kernels(query.device)
    found: tuple[Tensor, Tensor, Tensor] = (plain_point if kernels is None else kernels.point)(
        query, reserve, factor, known, at, most, classes
    )
    return found


def plain_point(
    query: Tensor, reserve: Tensor, factor: Tensor, known: Known, at: Tensor, most: int, classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`point`, operation by operation."""
    keys = known.keys
    weights = torch.zeros(len(query), most, dtype=torch.uint8, device=query.device)
    own = torch.ones(len(query), dtype=torch.int32, device=query.device)
    by_class = torch.zeros(len(query), classes, dtype=torch.int32, device=query.device)
    for lo, hi, length, shared in _runs(at, most, keys.shape[1]):
        index, rows = _index(at[:, lo:hi], length, len(keys)), query[lo:hi].float()
        if shared:
            products = rows @ keys[index[0]].float().t()
        else:
            products = (keys[index].float() @ rows[..., None])[..., 0]
        scores = products * factor
        each = torch.arange(length, device=query.device)
        scores = scores.masked_fill(each >= at[1, lo:hi, None], -torch.inf)
        found, _ = softmax_of_steps(torch.cat([scores, reserve[lo:hi, None]], -1))
        weights[lo:hi, :length] = found[:, :-1].to(torch.uint8)
        own[lo:hi] = found[:, -1].clamp_min(1.0).to(torch.int32)
        by_class[lo:hi] = _tally(found[:, :-1], known.classes[index], classes)
    return own, by_class, weights


def plain_mix_slots(
    aim: Aim, known: Known, cdf: Tensor, classes: Tensor, slots: int
) -> tuple[Tensor, Tensor]:
    """`Aim.given_class`, operation by operation: own and pointed of the mixture."""
    index = _index(aim.at, aim.weights.shape[1], len(known.keys))
    of_class = torch.where(known.classes[index] == classes[:, None], aim.weights.float(), 0.0)
    return share_slots(aim, cdf, classes, _tally(of_class, known.slots[index], slots))


def share_slots(aim: Aim, cdf: Tensor, classes: Tensor, by_slot: Tensor) -> tuple[Tensor, Tensor]:
    """The same where it is known what the slots of the class weigh, int32 [N, S]."""
    pointed = aim.by_class.gather(1, classes[:, None])[:, 0]
    low, high = (cdf.gather(1, (classes + i)[:, None])[:, 0] for i in (0, 1))
    total = (aim.own + aim.by_class.sum(-1, dtype=torch.int32)).double() * (high - low)
    # How much of the class's frequency came from what is pointed at, in so many parts.
    share = torch.round(pointed.double() * float(SHARES << PRECISION) / total).clamp_max_(SHARES - 1)
    share = share.to(torch.int32)
    return ((SHARES - share) * pointed).clamp_min_(1), by_slot * share[:, None]


def _runs(at: Tensor, most: int, width: int) -> Iterator[tuple[int, int, int, bool]]:
    """Rows that go together, how many keys they have at most, and whether these are the same: rows of one
    lane, or a few of any."""
    starts, sizes = torch.unique_consecutive(at[0], return_counts=True)
    if 4 * len(starts) > at.shape[1]:
        for lo, hi in in_runs(at.shape[1], max(1, _PLAIN // max(1, most * width)), at.device):
            yield lo, hi, most, False
        return
    lo = 0
    for size in sizes.tolist():
        yield lo, lo + size, int(at[1, lo : lo + size].amax()), True
        lo += size


def _index(at: Tensor, length: int, keys: int) -> Tensor:
    """Which keys rows look at, those behind the end being any: int64 [N, length]."""
    each = torch.arange(length, device=at.device)
    return (at[0, :, None] + each).clamp_max(max(0, keys - 1))


def _tally(weights: Tensor, labels: Tensor, count: int) -> Tensor:
    """Sums of weights [N, K] by their labels int32 [N, K]: int32 [N, count]."""
    sums = torch.zeros(len(weights), count, device=weights.device)
    return sums.scatter_add_(1, labels.long(), weights).to(torch.int32)


class WholeLanes:
    """Lanes that are known as a whole, one after the other, a few of their tokens at a time."""

    def __init__(
        self, pointer: Pointer, counts: Tensor, longest: int, classes: Tensor, slots: Tensor
    ) -> None:
        """counts: tokens of each lane, int64 [B], `longest` at most; classes, slots: of all their tokens,
        int64 [N] each."""
        self._pointer, self._longest, self._done = pointer, longest, 0
        device = classes.device
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts, output_size=len(classes))
        self._at = torch.stack([first, torch.arange(len(classes), device=device) - first])
        keys = torch.zeros(len(classes), pointer.width, dtype=torch.int8, device=device)
        self.known = Known(keys, classes.to(torch.int32), slots.to(torch.int32))

    def aim(self, states: Tensor, classes: int) -> Aim:
        """What the next tokens point at, given their states [n, L]."""
        lo, hi = self._done, self._done + len(states)
        self._done = hi
        query, self.known.keys[lo:hi], reserve = self._pointer.read(states)
        return self._pointer.aim(query, reserve, self.known, self._at[:, lo:hi], self._longest, classes)


class TokenCache:
    """The tokens of lanes that advance together, as far as they are coded. Storage grows as positions are
    reached and forgets lanes that have ended, which are the last."""

    def __init__(self, pointer: Pointer, lanes: int) -> None:
        self._pointer, self._room = pointer, 32
        device = pointer.temperature.device
        self._keys = torch.zeros(lanes, self._room, pointer.width, dtype=torch.int8, device=device)
        self._labels = torch.zeros(2, lanes, self._room, dtype=torch.int32, device=device)

    @property
    def known(self) -> Known:
        return Known(self._keys.flatten(0, 1), self._labels[0].flatten(), self._labels[1].flatten())

    def tell(self, position: int, lanes: Tensor, classes: Tensor, slots: Tensor) -> None:
        """What came at a position, int64 [n] each."""
        self._labels[0][lanes, position] = classes.to(torch.int32)
        self._labels[1][lanes, position] = slots.to(torch.int32)

    def step(self, states: Tensor, position: int, lanes: Tensor, classes: int) -> Aim:
        """States [n, L] of the tokens of a position, of lanes int64 [n]."""
        if position >= self._room:
            n = len(states)
            self._keys = torch.cat([self._keys[:n], torch.zeros_like(self._keys[:n])], 1)
            self._labels = torch.cat([self._labels[:, :n], torch.zeros_like(self._labels[:, :n])], 2)
            self._room *= 2
        query, self._keys[lanes, position], reserve = self._pointer.read(states)
        at = torch.stack([lanes * self._room, torch.full_like(lanes, position)])
        return self._pointer.aim(query, reserve, self.known, at, position, classes)
