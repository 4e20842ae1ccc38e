"""The latent space of tokens: a vector each, and what a gist of some detail tells of it. No torch.

A token that a gist names is known; of a rarer one the class is, so that its latent lies among those of the
class's rarer tokens: a cell, given here as the box around them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class TokenCells:
    """Cells of one model. tensors: as shipped, of shapes that have been checked.

    Shapes: T tokens, C values of a latent, V tokens of the vocabulary.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.places = tensors["vae.places.q"].astype(np.float32) * tensors["vae.places.scale"]  # [V, C]
        self._class_of, self._slot_of = tensors["vae.readout.class_of"], tensors["vae.readout.slot_of"]
        self._token_of = tensors["vae.readout.token_of"].astype(np.int64)
        self._limits = tensors["vae.readout.limits"].astype(np.int64)
        self.details = len(self._limits)

    def named(self, tokens: np.ndarray, detail: int) -> np.ndarray:
        """What stands for tokens in a gist: int64 [...] -> int64 [...]."""
        classes = self._class_of[tokens]
        last = np.minimum(self._limits[detail], self._token_of.shape[1] - 1)[classes]
        return self._token_of[classes, np.minimum(self._slot_of[tokens], last)]

    def is_open(self, tokens: np.ndarray, detail: int) -> np.ndarray:
        """Whether tokens of a gist stand for more than one: bool [...]."""
        limits = self._limits[detail][self._class_of[tokens]]
        return (self._slot_of[tokens] == limits) & (limits < self._token_of.shape[1] - 1)

    def boxes(self, tokens: np.ndarray, detail: int) -> tuple[np.ndarray, np.ndarray]:
        """(centre, reach) of the cells of a gist's tokens [...], float32 [..., C] both: every value lies
        within reach of the centre. Reach 0 where the token is named."""
        low, high = self._bounds(detail)
        classes, is_open = self._class_of[tokens], self.is_open(tokens, detail)[..., None]
        at = self.places[tokens]
        centre = np.where(is_open, (low + high)[classes] / 2, at)
        return centre, np.where(is_open, (high - low)[classes] / 2, np.float32(0.0))

    def nearest(self, latents: np.ndarray, tokens: np.ndarray, detail: int) -> np.ndarray:
        """The token in each cell whose latent is nearest: float32 [T, C], the gist's tokens [T] -> [T]."""
        result = np.array(tokens, np.int64)
        for at in np.flatnonzero(self.is_open(tokens, detail)).tolist():
            classes = self._class_of[tokens[at]]
            rarer = self._token_of[classes, self._limits[detail][classes] :]
            gap = self.places[rarer] - latents[at]
            result[at] = rarer[(gap * gap).sum(1).argmin()]
        return result

    def anywhere(self, latents: np.ndarray) -> np.ndarray:
        """The token of the whole vocabulary whose latent is nearest: float32 [T, C] -> int64 [T]."""
        squares = (self.places * self.places).sum(1)
        return (squares - 2.0 * (latents @ self.places.T)).argmin(1).astype(np.int64)

    def _bounds(self, detail: int) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest latents of each class's rarer tokens, float32 [classes, C]."""
        places = self.places[self._token_of]
        rarer = np.arange(places.shape[1])[None] >= self._limits[detail][:, None]
        low = np.where(rarer[..., None], places, np.inf).min(1)
        high = np.where(rarer[..., None], places, -np.inf).max(1)
        some = rarer.any(1)[:, None]  # a class without rarer tokens has no cell, and no open token
        return np.where(some, low, 0.0).astype(np.float32), np.where(some, high, 0.0).astype(np.float32)
