"""Tokens -> latents -> intervals of the entropy coder: the networks over batches of lanes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from colazip.entropy import cost_bits
from colazip.lanes import Lanes
from colazip.memory import recall
from colazip.nn.exact import frequencies
from colazip.nn.search_head import SearchHead
from colazip.nn.vae import TextVAE, cell_index, coarse_plane, real_tokens, token_history


@dataclass
class Coded:
    """Symbols of one lane in (start, freq) pairs, and what the layers of its part need."""

    coarse: np.ndarray  # [2, T]: a cell a token
    fine: np.ndarray  # [2, T]
    tokens: np.ndarray | None  # [2, T, 2]: class and slot of each token
    vector: np.ndarray  # float64 [D], a sum on the search head's grid

    def gist_bits(self) -> float:
        return float(cost_bits(self.coarse[1]).sum() + cost_bits(self.fine[1]).sum())

    def exact_bits(self) -> float:
        return 0.0 if self.tokens is None else float(cost_bits(self.tokens[1]).sum())

    def gist_symbols(self) -> tuple[np.ndarray, np.ndarray]:
        """(pairs [2, N], moments int64 [N]): coarse cell of token t at moment t, then all fine ones."""
        tokens = self.coarse.shape[1]
        last = np.full(tokens, np.iinfo(np.int64).max)
        return np.concatenate([self.coarse, self.fine], axis=1), np.concatenate([np.arange(tokens), last])

    def exact_symbols(self) -> tuple[np.ndarray, np.ndarray]:
        """(pairs [2, N], moments int64 [N]): class at moment 2 t, slot at 2 t + 1 of token t."""
        assert self.tokens is not None
        return self.tokens.reshape(2, -1), np.arange(self.tokens.shape[1] * 2)


class LaneEncoder:
    """Runs the networks of one model. batch: lanes that pass together."""

    def __init__(self, vae: TextVAE, search: SearchHead, batch: int) -> None:
        self._vae, self._search, self._batch = vae, search, batch
        self._patch, self._channels = vae.config.patch, vae.config.channels
        self._device = vae.readout.token_of.device

    def code(self, lanes: Lanes, table: np.ndarray, *, exact: bool) -> list[Coded]:
        """Every lane of the tokens int64 [L, T]. With `exact`, the lanes of a block must all be there."""
        guesses = np.stack(recall(table, lanes.block, lanes.count)) if exact else None
        result = []
        with torch.inference_mode():
            for lo, hi, width in self._batches(lanes):
                x, counts = self._tokens(table, lanes, lo, hi, width)
                part = None if guesses is None else self._tensor(guesses[:, lo:hi], width)
                result += self._run(x, counts, part)
        return result

    def pool(self, lanes: Lanes, table: np.ndarray) -> list[np.ndarray]:
        """Search sums alone, float64 [D] of every lane."""
        result: list[np.ndarray] = []
        with torch.inference_mode():
            for lo, hi, width in self._batches(lanes):
                result += list(self._encode(*self._tokens(table, lanes, lo, hi, width))[1])
        return result

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

    def _encode(self, x: Tensor, counts: Tensor) -> tuple[Tensor, np.ndarray]:
        """(levels float32 [B, P, K * C], search sums float64 [B, D]) of one batch of lanes."""
        levels, hidden = self._vae.encode(x, real_tokens(counts, x))
        return levels, self._search(hidden, x, counts).double().cpu().numpy()

    def _run(self, x: Tensor, counts: Tensor, guesses: Tensor | None) -> list[Coded]:
        """All networks over one batch of lanes: tokens int64 [B, P, K], counts int64 [B], for the exact layer
        the block memory's guesses and their kinds int64 [2, B, P * K]."""
        vae, channels = self._vae, self._channels
        real = real_tokens(counts, x)
        valid = real[..., 0]
        levels, sums = self._encode(x, counts)
        coarse = coarse_plane(levels)
        fine = levels - 3.0 * coarse
        split_at = np.cumsum(counts.tolist())[:-1]
        coarse_pairs = _pairs(vae.context(coarse, valid)[real], cell_index(coarse, channels)[real])
        fine_pairs = _pairs(vae.refiner.fine(coarse, valid)[real], cell_index(fine, channels)[real])
        coarse_rows = np.split(coarse_pairs, split_at, axis=1)
        fine_rows = np.split(fine_pairs, split_at, axis=1)
        token_rows: list[np.ndarray] | None = None
        if guesses is not None:
            features = vae.decoder(levels, valid)
            states = vae.exact.patches(features, vae.embed_patches(x), valid)
            slots = vae.exact.slots(states).unflatten(-1, (self._patch, -1))[real]
            flat, is_token = x.flatten(1), real.flatten(1)
            history, guess, kind = token_history(flat)[is_token], guesses[0][is_token], guesses[1][is_token]
            states = vae.exact.tokens(slots, history, guess, kind, vae.embed)
            guessed = vae.exact.weigh(states, guess, kind)
            targets = flat[is_token]
            classes = vae.readout.class_of[targets]
            pairs = np.stack(
                [
                    _pairs(vae.readout.class_logits(states, guessed), classes),
                    _pairs(vae.readout.slot_logits(states, classes, guessed), vae.readout.slot_of[targets]),
                ],
                -1,
            )
            token_rows = np.split(pairs, split_at, axis=1)
        return [
            Coded(coarse_rows[i], fine_rows[i], token_rows[i] if token_rows else None, sums[i])
            for i in range(len(x))
        ]


def _pairs(logits: Tensor, symbols: Tensor) -> np.ndarray:
    """Interval of each symbol [N] under its logits [N, A]: uint32 [2, N] of start and frequency."""
    freq = frequencies(logits)
    end = freq.cumsum(-1, dtype=torch.int32).gather(1, symbols[:, None])[:, 0]
    mine = freq.gather(1, symbols[:, None])[:, 0]
    return torch.stack([end - mine, mine]).cpu().numpy().astype(np.uint32)
