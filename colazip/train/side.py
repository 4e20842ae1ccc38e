"""Search codes of training text, as the codec would write them beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from colazip.config import ModelConfig
from colazip.passages import PASSAGE_TOKENS, count_passages, windows
from colazip.side import code_of_patches
from colazip.tokenizer import Tokenizer
from colazip.train.data import Batch
from colazip.train.losses import About
from colazip.vectors import RowSums, SearchRows, assign_codes, pack_rows, read_codes, unit, unpack_nibbles

if TYPE_CHECKING:
    from colazip.pretrained import Model


class Teller:
    """Makes codes of batches, by the rows alone: the encoder would take a while, and vectors with and without
    it lie in one space."""

    def __init__(
        self,
        config: ModelConfig,
        sums: RowSums,
        packed: np.ndarray,
        codebooks: Mapping[int, np.ndarray],
    ) -> None:
        """packed: `search.tokens` as shipped, which `sums` adds up."""
        self.sums, self.patch, self.codebooks = sums, config.patch, codebooks
        self._vocabulary, self._packed = config.vocabulary, packed

    @classmethod
    def of_search(cls, config: ModelConfig, search: SearchRows, tokenizer: Tokenizer) -> Teller:
        """Of a search head as it will be once it is shipped."""
        packed, scale = pack_rows(search.rows)
        sums = RowSums(packed, scale, tokenizer.table, config.word_rows)
        return cls(config, sums, packed, search.codebooks)

    @classmethod
    def of_model(cls, model: Model) -> Teller:
        """Of a model that is shipped."""
        return cls(model.config, model.rows, model.tensors["search.tokens.q"], model.codebooks)

    def rows(self) -> Tensor:
        """Integers of the tokens' rows, int8 [V, D]."""
        return torch.from_numpy(unpack_nibbles(self._packed[: self._vocabulary]))

    def windows(self, tokens: int) -> list[tuple[int, int]]:
        """First patch and end of each passage of a text of so many tokens."""
        patches = -(-tokens // self.patch)
        return windows(patches, self.patch, count_passages(patches, self.patch, PASSAGE_TOKENS))

    def vectors(self, tokens: np.ndarray) -> np.ndarray:
        """Of the passages of a text: int64 [T] -> unit vectors, float32 [C, D]."""
        patches = self.sums.patches(tokens, self.patch)
        return unit(np.stack([patches[lo:hi].sum(0) for lo, hi in self.windows(len(tokens))]))

    def about(self, batch: Batch, size: int, device: torch.device) -> About:
        """Codes of `size` bytes of each segment of a batch, taken as a text of its own."""
        found: list[np.ndarray] = []
        of = np.zeros((len(batch.counts), batch.tokens.shape[1] // self.patch), np.int64)
        first = 0
        for row, (tokens, count) in enumerate(zip(batch.tokens, batch.counts.tolist(), strict=True)):
            found.append(self.vectors(tokens[:count]))
            patches, codes = -(-count // self.patch), len(found[-1])
            of[row, :patches] = first + code_of_patches(patches, codes)
            first += codes
        codebook = self.codebooks[size]
        vectors = read_codes(assign_codes(np.concatenate(found), codebook), codebook)
        return About(torch.from_numpy(vectors).to(device), torch.from_numpy(of).to(device))
