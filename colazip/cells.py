"""The latent space of tokens: a vector each, and what a gist of some detail tells of it. No torch.

A token that a gist names is known; of a rarer one the class is, so that its latent lies among those of the
class's rarer tokens: a cell, given here as the box around them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from colazip.names import TokenNames


class TokenCells(TokenNames):
    """Cells of one model. tensors: as shipped, of shapes that have been checked.

    Shapes: T tokens, C values of a latent, V tokens of the vocabulary.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        super().__init__(tensors, "vae.readout.")
        self.places = tensors["vae.places.q"].astype(np.float32) * tensors["vae.places.scale"]  # [V, C]

    def boxes(self, tokens: np.ndarray, detail: int) -> tuple[np.ndarray, np.ndarray]:
        """(centre, reach) of the cells of a gist's tokens [...], float32 [..., C] both: every value lies
        within reach of the centre. Reach 0 where the token is named."""
        low, high = self._bounds(detail)
        classes, is_open = self.class_of[tokens], self.is_open(tokens, detail)[..., None]
        at = self.places[tokens]
        centre = np.where(is_open, (low + high)[classes] / 2, at)
        return centre, np.where(is_open, (high - low)[classes] / 2, np.float32(0.0))

    def nearest(self, latents: np.ndarray, tokens: np.ndarray, detail: int) -> np.ndarray:
        """The token in each cell whose latent is nearest: float32 [T, C], the gist's tokens [T] -> [T]."""
        result = np.array(tokens, np.int64)
        for at in np.flatnonzero(self.is_open(tokens, detail)).tolist():
            classes = self.class_of[tokens[at]]
            rarer = self.token_of[classes, self.limits[detail][classes] :]
            gap = self.places[rarer] - latents[at]
            result[at] = rarer[(gap * gap).sum(1).argmin()]
        return result

    def known(self, tokens: np.ndarray, detail: int) -> np.ndarray:
        """What a gist's tokens say, as a prior over entries takes it: the token if it is named, else the
        number of its set (`sets`) behind those of the tokens. int64 [...] -> int64 [...]."""
        classes, (count, _) = self.class_of[tokens].astype(np.int64), self.token_of.shape
        of_class = len(self.class_of) + 1 + detail * count + classes
        return np.where(self.is_open(tokens, detail), of_class, tokens)

    def sets(self) -> np.ndarray:
        """Which tokens each set holds, bool [1 + details * classes, V]: all of them, then what a gist of each
        detail leaves open in each class."""
        count, slots = self.token_of.shape
        rarer = np.arange(slots) >= self.limits[..., None]  # [details, classes, slots]
        held = np.zeros((1 + self.details * count, len(self.class_of)), bool)
        held[0] = True
        for detail in range(self.details):
            mine = held[1 + detail * count :][:count]
            np.put_along_axis(mine, self.token_of, rarer[detail], 1)
        return held

    def anywhere(self, latents: np.ndarray) -> np.ndarray:
        """The token of the whole vocabulary whose latent is nearest: float32 [T, C] -> int64 [T]."""
        squares = (self.places * self.places).sum(1)
        return (squares - 2.0 * (latents @ self.places.T)).argmin(1).astype(np.int64)

    def _bounds(self, detail: int) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest latents of each class's rarer tokens, float32 [classes, C]."""
        places = self.places[self.token_of]
        rarer = np.arange(places.shape[1])[None] >= self.limits[detail][:, None]
        low = np.where(rarer[..., None], places, np.inf).min(1)
        high = np.where(rarer[..., None], places, -np.inf).max(1)
        some = rarer.any(1)[:, None]  # a class without rarer tokens has no cell, and no open token
        return np.where(some, low, 0.0).astype(np.float32), np.where(some, high, 0.0).astype(np.float32)
