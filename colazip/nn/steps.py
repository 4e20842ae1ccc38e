"""What decoding asks of the networks, and the torch side of it. `colazip.nn.portable` is the NumPy side."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from colazip.nn.exact import frequencies
from colazip.nn.vae import TextVAE


class Networks(Protocol):
    """Networks that advance lanes side by side. Lanes come longest first; those still active are a prefix.

    Shapes: L lanes, n or m of them active, P patches, K tokens a patch, C channels a token. Tables are
    cumulative integer frequencies, int32 [rows, symbols + 1].
    """

    def start_coarse(self, lanes: int) -> None:
        """Begin the coarse plane of `lanes` lanes."""

    def coarse_context(self, position: int, previous: np.ndarray) -> None:
        """Advance to a patch; previous: coarse plane of the one before, float32 [n, K * C] (any at 0)."""

    def coarse_table(self, token: int, known: np.ndarray) -> np.ndarray:
        """Tables of the cells of one token of the patch; known: those before it, float32 [m, token * C]."""

    def fine_table(self, coarse: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Tables of all fine cells, lane after lane: coarse float32 [L, P, K * C], tokens int64 [L]."""

    def features(self, levels: np.ndarray, counts: np.ndarray) -> Any:
        """levels float32 [L, P, K * C], tokens int64 [L] -> features, an array or tensor [L, P, W]."""

    def read(self, features: Any) -> np.ndarray:
        """Gist reading: features [N, W] -> tokens int64 [N, K]."""

    def start_exact(self, lanes: int) -> None:
        """Begin the exact text of `lanes` lanes."""

    def exact_context(self, position: int, features: Any, previous: np.ndarray) -> None:
        """Advance to a patch; features [n, W] of it, tokens of the one before int64 [n, K] (any at 0)."""

    def class_table(
        self, token: int, lanes: np.ndarray, history: np.ndarray, guess: np.ndarray, kind: np.ndarray
    ) -> np.ndarray:
        """Tables of the class of one token of the patch, for lanes int64 [m]; tokens before int64 [m, 3],
        latest first, and the memory's guesses and kinds int64 [m]."""

    def slot_table(self, classes: np.ndarray) -> np.ndarray:
        """Tables of the slots of the tokens last asked for, given their classes int64 [m]."""

    def tokens(self, classes: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """int64 [m]."""


class TorchNetworks:
    """`Networks` over a TextVAE, on its device. Call within `torch.inference_mode()`."""

    def __init__(self, vae: TextVAE) -> None:
        self._vae, self._config = vae, vae.config
        self._device = vae.readout.token_of.device

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _real(self, patches: int, counts: np.ndarray) -> Tensor:
        at = torch.arange(patches * self._config.patch, device=self._device).view(patches, -1)
        return at < self._tensor(counts)[:, None, None]

    def start_coarse(self, lanes: int) -> None:
        self._caches = self._vae.context.stack.caches(lanes)

    def coarse_context(self, position: int, previous: np.ndarray) -> None:
        before = self._tensor(previous) if position else None
        self._context = self._vae.context.step(before, len(previous), position, self._caches)

    def coarse_table(self, token: int, known: np.ndarray) -> np.ndarray:
        return table(self._vae.context.step_logits(token, self._context[: len(known)], self._tensor(known)))

    def fine_table(self, coarse: np.ndarray, counts: np.ndarray) -> np.ndarray:
        real = self._real(coarse.shape[1], counts)
        return table(self._vae.refiner.fine(self._tensor(coarse), real[..., 0])[real])

    def features(self, levels: np.ndarray, counts: np.ndarray) -> Tensor:
        return self._vae.decoder(self._tensor(levels), self._real(levels.shape[1], counts)[..., 0])

    def read(self, features: Tensor) -> np.ndarray:
        states = self._vae.decoder.read(features)
        best = self._vae.readout.best(states.flatten(0, 1))
        return best.view(states.shape[:2]).cpu().numpy()

    def start_exact(self, lanes: int) -> None:
        self._caches = self._vae.exact.stack.caches(lanes)

    def exact_context(self, position: int, features: Tensor, previous: np.ndarray) -> None:
        if position:
            before = self._vae.embed_patches(self._tensor(previous))
        else:
            width = self._config.patch * self._config.embedding
            before = torch.zeros(len(previous), width, device=self._device)
        state = self._vae.exact.step(features, before, position, self._caches)
        self._slots = self._vae.exact.slots(state).unflatten(-1, (self._config.patch, -1))

    def class_table(
        self, token: int, lanes: np.ndarray, history: np.ndarray, guess: np.ndarray, kind: np.ndarray
    ) -> np.ndarray:
        exact = self._vae.exact
        slots = self._slots[self._tensor(lanes), token]
        before, guesses, kinds = self._tensor(history), self._tensor(guess), self._tensor(kind)
        self._states = exact.tokens(slots, before, guesses, kinds, self._vae.embed)
        self._guess = exact.weigh(self._states, guesses, kinds)
        return table(self._vae.readout.class_logits(self._states, self._guess))

    def slot_table(self, classes: np.ndarray) -> np.ndarray:
        return table(self._vae.readout.slot_logits(self._states, self._tensor(classes), self._guess))

    def tokens(self, classes: np.ndarray, slots: np.ndarray) -> np.ndarray:
        found = self._vae.readout.token_of[self._tensor(classes), self._tensor(slots)]
        return found.cpu().numpy()


def table(logits: Tensor) -> np.ndarray:
    """Cumulative integer frequencies of logits [N, A]: int32 [N, A + 1]."""
    freq = frequencies(logits)
    cdf = torch.zeros(len(freq), freq.shape[1] + 1, dtype=torch.int32, device=freq.device)
    torch.cumsum(freq, -1, dtype=torch.int32, out=cdf[:, 1:])
    return cdf.cpu().numpy()
