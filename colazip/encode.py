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
    vector: np.ndarray  # float32 [P, D]: what each patch adds to a passage, on the search head's grid

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
        with torch.inference_mode():
            return [
                row
                for lo, x, counts in self._batches(lanes, table)
                for row in self._run(x, counts, self._part(guesses, lo, x))
            ]

    def pool(self, lanes: Lanes, table: np.ndarray) -> list[np.ndarray]:
        """Search summands alone, float32 [P, D] of every lane."""
        with torch.inference_mode():
            return [row for _, x, counts in self._batches(lanes, table) for row in self._encode(x, counts)[1]]

    def _batches(self, lanes: Lanes, table: np.ndarray) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(first lane, tokens int64 [B, P, K], counts int64 [B]); lanes come longest first, so padding is
        small."""
        for lo in range(0, len(lanes), self._batch):
            hi = min(lo + self._batch, len(lanes))
            width = int(lanes.patches[lo]) * self._patch
            x = np.zeros((hi - lo, width), np.int64)
            kept = min(width, table.shape[1])
            x[:, :kept] = table[lo:hi, :kept]
            counts = torch.from_numpy(lanes.count[lo:hi].copy())
            yield (
                lo,
                torch.from_numpy(x).view(hi - lo, -1, self._patch).to(self._device),
                counts.to(self._device),
            )

    def _part(self, guesses: np.ndarray | None, lo: int, x: Tensor) -> Tensor | None:
        """Guesses [2, L, T] of the batch of lanes x [B, P, K] that begins with lane lo: [2, B, P * K]."""
        if guesses is None:
            return None
        part = np.zeros((2, len(x), x.shape[1] * x.shape[2]), np.int64)
        kept = min(part.shape[2], guesses.shape[2])
        part[:, :, :kept] = guesses[:, lo : lo + len(x), :kept]
        return torch.from_numpy(part).to(self._device)

    def _encode(self, x: Tensor, counts: Tensor) -> tuple[Tensor, list[np.ndarray]]:
        """(levels float32 [B, P, K * C], search summands float32 [P, D] of each) of one batch of lanes."""
        levels, hidden = self._vae.encode(x, real_tokens(counts, x))
        summands = self._search.patches(hidden, x, counts).cpu().numpy()
        ends = (-(-counts // self._patch)).tolist()
        return levels, [summands[i, :end].copy() for i, end in enumerate(ends)]

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
