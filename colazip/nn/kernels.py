"""What decoding does beside the networks, on a GPU: rANS states, and what a block has said so far.

Same integers as `colazip.entropy.StreamDecoder` and `colazip.memory.BlockMemory`, which explain them. A block
is a program that takes its symbols one after the other, as their order is the format; all blocks run side by
side, and nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from colazip.entropy import CUT_SHORT, MAX_STATES, PRECISION, StreamDecoder, damaged
from colazip.memory import ODD, ORDERS, RUN_BITS, RUNS, SLOT_BITS, TAG_BITS, TOKEN_BITS

_LANES = 128  # whose contexts a program looks up
_SIGNED_ODD = [int(odd) - (1 << 64) if odd >> 63 else int(odd) for odd in ODD]


@triton.jit
def _decode_kernel(  # type: ignore[no-untyped-def]
    cdf, wanted, out, order, first, active, state, states, turn, cursor, end, words, origin, bad,
    WANTED: tl.constexpr, A: tl.constexpr, C: tl.constexpr, S: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    n = tl.load(active + block)
    begin = tl.load(first + block)
    count = tl.load(states + block)
    place = tl.load(turn + block)
    at = tl.load(cursor + block)
    stop = tl.load(end + block)
    least = tl.load(origin + block)
    wrong = tl.load(bad + block)
    which = tl.arange(0, S)
    column = tl.arange(0, C)
    held = tl.load(state + block * S + which)
    for i in range(n):
        row = tl.load(order + begin + i).to(tl.int64)
        said = 1
        if WANTED:
            said = tl.load(wanted + row).to(tl.int32)
        symbol = 0
        if said != 0:
            # Upper ends of all intervals: those at or below the slot are of symbols before this one.
            ends = tl.load(cdf + row * (A + 1) + 1 + column, mask=column < A, other=1 << BITS).to(tl.int64)
            x = tl.sum(tl.where(which == place, held, 0), 0)
            slot = x & ((1 << BITS) - 1)
            below = (ends <= slot) & (column < A - 1)
            symbol = tl.sum(below.to(tl.int32), 0)
            low = tl.max(tl.where(below, ends, 0), 0)
            high = tl.sum(tl.where(column == symbol, ends, 0), 0)
            x = ((x >> BITS) & ((1 << (64 - BITS)) - 1)) * (high - low) + slot - low
            if (x >> 32) == 0:  # below 2**32, also where the sign bit is set
                if at < stop:
                    x = (x << 32) | tl.load(words + at)
                    at += 1
                else:
                    wrong = wrong | (x < least).to(tl.int32)
            held = tl.where(which == place, x, held)
            place = (place + 1) % count
        tl.store(out + row, symbol)
    tl.store(state + block * S + which, held)
    tl.store(turn + block, place)
    tl.store(cursor + block, at)
    tl.store(bad + block, wrong)


@triton.jit
def _guess_kernel(  # type: ignore[no-untyped-def]
    tokens, width, at, block, table, blocks, guess, kind, tags, slots, entries, lanes, stride,
    ODD0: tl.constexpr, ODD1: tl.constexpr, ODD2: tl.constexpr, SLOT: tl.constexpr, TAG: tl.constexpr,
    TOKEN: tl.constexpr, RUN: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * R + tl.arange(0, R)
    inside = lane < lanes
    home = tl.load(block + lane, mask=inside, other=0)
    last = tokens + lane.to(tl.int64) * width + at
    context = tl.load(last + 2, mask=inside, other=0) + 1
    found = tl.zeros([R], tl.int64)
    sort = tl.zeros([R], tl.int64)
    for order in tl.static_range(3):
        odd = ODD0
        if order == 1:
            context = (context << TOKEN) | tl.load(last + 1, mask=inside, other=0)
            odd = ODD1
        if order == 2:
            context = (context << TOKEN) | tl.load(last, mask=inside, other=0)
            odd = ODD2
        mixed = context * odd
        tag = tl.maximum((mixed >> 8) & ((1 << TAG) - 1), 1)
        slot = ((order * blocks + home) << SLOT) + ((mixed >> (64 - SLOT)) & ((1 << SLOT) - 1))
        entry = tl.load(table + slot, mask=inside, other=0)
        hit = (entry >> (TOKEN + RUN)) == tag
        found = tl.where(hit, entry & ((1 << TOKEN) - 1), found)
        runs = (entry >> TOKEN) & ((1 << RUN) - 1)
        sort = tl.where(hit, 1 + order * (1 << RUN) + runs, sort)
        tl.store(tags + order * stride + lane, tag, mask=inside)
        tl.store(slots + order * stride + lane, slot, mask=inside)
        tl.store(entries + order * stride + lane, entry, mask=inside)
    tl.store(guess + lane, found, mask=inside)
    tl.store(kind + lane, sort, mask=inside)


@triton.jit
def _learn_kernel(  # type: ignore[no-untyped-def]
    came, order, first, active, table, tags, slots, entries, stride, TOKEN: tl.constexpr, RUN: tl.constexpr
):
    block = tl.program_id(0)
    at = tl.program_id(1).to(tl.int64) * stride
    begin = tl.load(first + block)
    for i in range(tl.load(active + block)):  # in the order of the lanes: where they meet, the last one stays
        lane = tl.load(order + begin + i).to(tl.int64)
        token = tl.load(came + lane)
        tag = tl.load(tags + at + lane)
        entry = tl.load(entries + at + lane)
        again = ((entry >> (TOKEN + RUN)) == tag) & ((entry & ((1 << TOKEN) - 1)) == token)
        runs = tl.minimum(((entry >> TOKEN) & ((1 << RUN) - 1)) + 1, (1 << RUN) - 1)
        runs = tl.where(again, runs, 0)
        tl.store(table + tl.load(slots + at + lane), (tag << (TOKEN + RUN)) | (runs << TOKEN) | token)


class Rows:
    """Rows of a batch, block after block. order: int32 [N], the rows; first: int32 [B], where those of a
    block begin there."""

    def __init__(self, block: np.ndarray, blocks: int, device: torch.device) -> None:
        """block: int64 [N], of each row."""
        order = np.argsort(block, kind="stable").astype(np.int32)
        self.count = np.bincount(block, minlength=blocks).astype(np.int32)
        self.order = torch.from_numpy(order).to(device)
        self.first = torch.from_numpy(np.cumsum(self.count) - self.count).to(device, torch.int32)


class DeviceStreams(StreamDecoder):
    """A `StreamDecoder` whose states are on a GPU. Damage shows when `finish` is called."""

    def __init__(self, streams: Sequence[bytes], device: torch.device) -> None:
        super().__init__(streams)

        def moved(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(device)

        self._there = np.arange(MAX_STATES)[None] < self._count[:, None]
        states = np.zeros(self._there.shape, np.uint64)
        states[self._there] = self._state
        self._device_state, self._states = moved(states.view(np.int64)), moved(self._count)
        self._device_words = moved(self._words if len(self._words) else np.zeros(1, np.uint32))
        self._device_cursor, self._stop = moved(self._cursor), moved(self._end)
        self._least, self._device_turn = moved(self._origin), moved(self._turn)
        self._bad = torch.zeros(len(streams), dtype=torch.int32, device=device)

    def decode_rows(self, cdf: Tensor, rows: Rows, active: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Next symbols of the first `active` rows of each block, int32 [B]: int64 [N], 0 where a row is not
        wanted, bool [N]. cdf: int32 [N, A + 1]."""
        size = cdf.shape[1] - 1
        cdf = cdf.contiguous()
        out = torch.zeros(len(cdf), dtype=torch.int64, device=cdf.device)
        _decode_kernel[(len(self._count),)](
            cdf,
            out if wanted is None else wanted,
            out,
            rows.order,
            rows.first,
            active,
            self._device_state,
            self._states,
            self._device_turn,
            self._device_cursor,
            self._stop,
            self._device_words,
            self._least,
            self._bad,
            wanted is not None,
            size,
            triton.next_power_of_2(size),
            MAX_STATES,
            PRECISION,
            num_warps=1,
        )
        return out

    def finish(self) -> None:
        bad = np.flatnonzero(self._bad.cpu().numpy())
        if len(bad):
            raise damaged(int(bad[0]), CUT_SHORT)
        self._state = self._device_state.cpu().numpy().view(np.uint64)[self._there]
        self._cursor = self._device_cursor.cpu().numpy()
        super().finish()


class DeviceMemory:
    """`BlockMemory` on a GPU, of lanes that advance together."""

    def __init__(self, rows: Rows, block: Tensor) -> None:
        """rows: the lanes; block: int64 [L], of each."""
        blocks, lanes, device = len(rows.count), len(block), block.device
        self._table = torch.zeros((ORDERS * blocks) << SLOT_BITS, dtype=torch.int64, device=device)
        self._rows, self._block, self._blocks = rows, block, blocks
        self._tags, self._slots, self._entries = (
            torch.zeros(ORDERS, lanes, dtype=torch.int64, device=device) for _ in range(3)
        )

    def guess(self, tokens: Tensor, at: int, lanes: int) -> tuple[Tensor, Tensor]:
        """Of the first `lanes` lanes, whose last tokens are at `at` to `at` + ORDERS - 1 of their rows, int64
        [L, ...]: (guess, kind), int64 [n] each."""
        guess, kind = torch.empty(2, lanes, dtype=torch.int64, device=tokens.device).unbind()
        _guess_kernel[(triton.cdiv(lanes, _LANES),)](
            tokens,
            tokens.stride(0),
            at,
            self._block,
            self._table,
            self._blocks,
            guess,
            kind,
            self._tags,
            self._slots,
            self._entries,
            lanes,
            self._tags.stride(0),
            *_SIGNED_ODD,
            SLOT_BITS,
            TAG_BITS,
            TOKEN_BITS,
            RUN_BITS,
            _LANES,
        )
        return guess, kind

    def learn(self, came: Tensor, active: Tensor) -> None:
        """The tokens that came, int64 [n], of the lanes last given to `guess`; active: int32 [B], how many of
        them each block has."""
        _learn_kernel[(self._blocks, ORDERS)](
            came,
            self._rows.order,
            self._rows.first,
            active,
            self._table,
            self._tags,
            self._slots,
            self._entries,
            self._tags.stride(0),
            TOKEN_BITS,
            RUN_BITS,
            num_warps=1,
        )


assert ORDERS == 3 and RUNS == 1 << RUN_BITS  # which the kernels have as numbers
