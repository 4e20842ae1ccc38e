"""Tokens -> intervals of the entropy coder: the networks over batches of lanes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from colazip.entropy import cost_bits
from colazip.lanes import Lanes
from colazip.memory import recall
from colazip.nn.exact import cumulative, in_runs
from colazip.nn.loading import block_memory, expect_work
from colazip.nn.pointer import WholeLanes
from colazip.nn.threads import each
from colazip.nn.vae import TextVAE, real_tokens, token_history
from colazip.side import Side

_TOKENS_AT_ONCE = 8192  # on a CPU


@dataclass
class Coded:
    """Symbols of one lane in (start, freq) pairs, by layer."""

    gist: np.ndarray  # [2, N]
    moments: np.ndarray  # int64 [N]: class of token t at 2 t, its slot at 2 t + 1
    exact: np.ndarray  # [2, M]: slots of the open tokens

    def gist_bits(self) -> float:
        return float(cost_bits(self.gist[1]).sum())

    def exact_bits(self) -> float:
        return float(cost_bits(self.exact[1]).sum())

    def gist_symbols(self) -> tuple[np.ndarray, np.ndarray]:
        """(pairs [2, N], moments int64 [N])."""
        return self.gist, self.moments

    def exact_symbols(self) -> tuple[np.ndarray, np.ndarray]:
        """(pairs [2, M], moments int64 [M]): lane after lane."""
        return self.exact, np.zeros(self.exact.shape[1], np.int64)


class LaneEncoder:
    """Runs the networks of one model. batch: lanes that pass together."""

    def __init__(self, vae: TextVAE, batch: int) -> None:
        self._vae, self._batch = vae, batch
        self._patch = vae.config.patch
        self._device = vae.readout.token_of.device

    def code(
        self, lanes: Lanes, table: np.ndarray, detail: int, *, exact: bool, side: Side | None = None
    ) -> list[Coded]:
        """Every lane of the tokens int64 [L, T]; the lanes of a block must all be there, as they share its
        memory. exact: whether the exact layer is wanted. side: what lanes are coded given, if anything."""
        named = self._vae.readout.named(torch.from_numpy(table).to(self._device), detail).cpu().numpy()
        expect_work(int(lanes.count.sum()))
        guesses = np.stack(recall(named, lanes.block, lanes.count, block_memory))

        def coded(batch: tuple[int, int, int]) -> list[Coded]:
            lo, hi, width = batch
            x, counts = self._tokens(table, lanes, lo, hi, width)
            part = self._tensor(guesses[:, lo:hi], width)
            given = None if side is None else side.lanes(lo, hi, width // self._patch)
            return self._run(x, counts, part, detail, exact, given)

        batches = list(self._batches(lanes))
        if self._device.type == "cpu":
            return [row for rows in each(coded, batches) for row in rows]
        with torch.inference_mode():
            return [row for batch in batches for row in coded(batch)]

    def _batches(self, lanes: Lanes) -> Iterator[tuple[int, int, int]]:
        """(first lane, end, tokens of its whole patches); lanes come longest first, so padding is small."""
        for lo in range(0, len(lanes), self._batch):
            yield lo, min(lo + self._batch, len(lanes)), int(lanes.patches[lo]) * self._patch

    def _tokens(self, table: np.ndarray, lanes: Lanes, lo: int, hi: int, width: int) -> tuple[Tensor, Tensor]:
        """Tokens int64 [B, P, K] and counts int64 [B] of lanes lo to hi."""
        tokens = self._tensor(table[lo:hi], width).unflatten(1, (-1, self._patch))
        return tokens, torch.from_numpy(lanes.count[lo:hi].copy()).to(self._device)

    def _tensor(self, values: np.ndarray, width: int) -> Tensor:
        """int64 [..., T] -> [..., width], cut or padded with zeros."""
        padded = np.zeros((*values.shape[:-1], width), np.int64)
        kept = min(width, values.shape[-1])
        padded[..., :kept] = values[..., :kept]
        return torch.from_numpy(padded).to(self._device)

    def _run(
        self, x: Tensor, counts: Tensor, guesses: Tensor, detail: int, exact: bool, side: Side | None
    ) -> list[Coded]:
        """All networks over one batch of lanes: tokens int64 [B, P, K], counts int64 [B], the block memory's
        guesses and their kinds int64 [2, B, P * K]."""
        vae, readout = self._vae, self._vae.readout
        real = real_tokens(counts, x)
        valid, is_token = real[..., 0], real.flatten(1)
        gist = readout.named(x, detail)
        told = about = None
        if side is not None:
            vectors, of = (torch.from_numpy(a).to(self._device) for a in (side.vectors, side.of))
            told = vae.tell(vectors, of)
            about = told.to_coder()
        slots = vae.coder.patches(vae.embed_patches(gist), valid, detail, about)[real]
        flat = gist.flatten(1)
        named, history = flat[is_token], token_history(flat)[is_token]
        guess, kind = guesses[0][is_token], guesses[1][is_token]
        which = None if told is None else told.of_tokens(x)[real]
        every_class, every_slot = readout.class_of[named], readout.slot_of[named]
        said = readout.has_slots(every_class, detail)
        class_pairs, slot_pairs = [], []
        # Every token by itself from here on: a few at a time, so that what lies between is not large.
        runs = [slice(*run) for run in in_runs(len(named), _TOKENS_AT_ONCE, self._device)]
        pointing = None
        if vae.coder.pointer is not None:
            pointing = WholeLanes(vae.coder.pointer, counts, flat.shape[1], every_class, every_slot)
        for part in runs:
            classes, rows = every_class[part], said[part]
            states = vae.coder.tokens(slots[part], history[part], guess[part], kind[part], vae.embed)
            weighed = vae.coder.weigh(states, guess[part], kind[part])
            class_lift = slot_lift = None
            if told is not None and which is not None:
                class_lift, slot_lift = vae.lifts(states, told, which[part], classes)
            mix = slot_mix = None
            if pointing is not None:
                aim = pointing.aim(states, vae.config.classes)
                mix = aim.of_class()
            cdf = cumulative(readout.class_logits(states, weighed, class_lift), mix)
            class_pairs.append(_pairs(cdf, classes))
            logits = readout.gist_logits(states, classes, detail, weighed, slot_lift)
            if pointing is not None:
                slot_mix = aim.given_class(cdf, classes, pointing.known, vae.config.slots).rows(rows)
            slot_pairs.append(_pairs(cumulative(logits[rows], slot_mix), every_slot[part][rows]))
        exact_pairs, open_of_lane = np.zeros((2, 0), np.uint32), np.zeros(len(x), np.int64)
        if exact:
            where = readout.is_open(gist, detail) & real
            rare = vae.rare_logits(gist, real, where, detail, told)
            exact_pairs = _pairs(cumulative(rare), readout.slot_of[x[where]])
            open_of_lane = where.flatten(1).sum(1).cpu().numpy()
        return [
            Coded(*row, pairs)
            for row, pairs in zip(
                _in_lanes(
                    np.concatenate(class_pairs, axis=1),
                    np.concatenate(slot_pairs, axis=1),
                    said.cpu().numpy(),
                    counts.cpu().numpy(),
                ),
                np.split(exact_pairs, np.cumsum(open_of_lane)[:-1], axis=1),
                strict=True,
            )
        ]


def _in_lanes(
    classes: np.ndarray, slots: np.ndarray, said: np.ndarray, counts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of each lane in order and their moments: of the class of every token [2, N], and of the slots of
    those that have one, where bool [N]."""
    slot_ends = np.cumsum(said)
    lo = 0
    for count in counts.tolist():
        hi = lo + count
        has = said[lo:hi]
        mine = slots[:, slot_ends[hi - 1] - has.sum() : slot_ends[hi - 1]]
        moments = np.concatenate([2 * np.arange(count), 2 * np.flatnonzero(has) + 1])
        order = np.argsort(moments, kind="stable")
        yield np.concatenate([classes[:, lo:hi], mine], axis=1)[:, order], moments[order]
        lo = hi


def _pairs(cdf: Tensor, symbols: Tensor) -> np.ndarray:
    """Interval of each symbol [N] in its table [N, A + 1]: uint32 [2, N] of start and frequency."""
    start, end = (cdf.gather(1, (symbols + i)[:, None])[:, 0] for i in (0, 1))
    return torch.stack([start, end - start]).cpu().numpy().astype(np.uint32)
