"""Which tokens a gist names, and what stands in it for the others. No torch.

A token is its class and its slot within the class, common slots first. A gist of some detail names the first
slots of each class, up to the class's limit; the slot at the limit stands for all rarer ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class TokenNames:
    """class_of, slot_of: of each token, int [V]; token_of: int64 [classes, slots]; limits: int64 [details,
    classes]. details: how many kinds of gists there are."""

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str) -> None:
        """tensors: as shipped, of shapes and values that have been checked; prefix: of those of the
        readout."""
        self.class_of, self.slot_of = tensors[f"{prefix}class_of"], tensors[f"{prefix}slot_of"]
        self.token_of = tensors[f"{prefix}token_of"].astype(np.int64)
        self.limits = tensors[f"{prefix}limits"].astype(np.int64)
        self.details = len(self.limits)

    def named(self, tokens: np.ndarray, detail: int) -> np.ndarray:
        """What stands for tokens in a gist: int64 [...] -> int64 [...]."""
        classes = self.class_of[tokens]
        return self.token_of[classes, np.minimum(self.slot_of[tokens], self.last(detail)[classes])]

    def is_open(self, tokens: np.ndarray, detail: int) -> np.ndarray:
        """Whether tokens of a gist stand for more than one: bool [...]."""
        limits = self.limits[detail][self.class_of[tokens]]
        return (self.slot_of[tokens] == limits) & (limits < self.token_of.shape[1] - 1)

    def last(self, detail: int) -> np.ndarray:
        """The last slot of each class that a gist can say, int64 [classes]."""
        return np.minimum(self.limits[detail], self.token_of.shape[1] - 1)
