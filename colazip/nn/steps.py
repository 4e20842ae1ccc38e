"""What decoding asks of the networks, and the torch side of it. `colazip.nn.portable` is the NumPy side."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from colazip.names import TokenNames
from colazip.nn.exact import frequencies
from colazip.nn.vae import TextVAE, Told
from colazip.side import Side


class Networks(Protocol):
    """Networks that advance lanes side by side. Lanes come longest first; those still active are a prefix.

    Shapes: L lanes, n or m of them active, P patches, K tokens a patch, C channels a token. Tables are
    cumulative integer frequencies, int32 [rows, symbols + 1].
    """

    def start(self, lanes: int, detail: int, side: Side | None = None) -> None:
        """Begin the gists, of one detail, of `lanes` lanes. side: what they are coded given, if anything."""

    def context(self, position: int, previous: np.ndarray) -> None:
        """Advance to a patch; tokens of the one before int64 [n, K] (any at 0)."""

    def class_table(
        self, token: int, lanes: np.ndarray, history: np.ndarray, guess: np.ndarray, kind: np.ndarray
    ) -> np.ndarray:
        """Tables of the class of one token of the patch, for lanes int64 [m]; tokens before int64 [m, 3],
        latest first, and the memory's guesses and kinds int64 [m]."""

    def slot_table(self, classes: np.ndarray) -> np.ndarray:
        """Tables of the slots of the tokens last asked for, given their classes int64 [m]."""

    def tokens(self, classes: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Tokens int64 [m] by class and slot."""

    def has_slots(self, classes: np.ndarray, detail: int) -> np.ndarray:
        """Whether a gist says anything beyond these classes: bool [m]."""

    def is_open(self, tokens: np.ndarray, detail: int) -> np.ndarray:
        """Whether tokens of a gist [...] stand for more than one: bool [...]."""

    def rarer(self, tokens: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """The tokens int64 [N] that stand in the classes of `tokens` at `slots`."""

    def rare_table(
        self,
        tokens: np.ndarray,
        counts: np.ndarray,
        where: np.ndarray,
        detail: int,
        side: Side | None = None,
    ) -> np.ndarray:
        """Tables of the slots of open tokens, lane after lane: gists int64 [L, P * K], tokens of each int64
        [L], where bool [L, P * K]; side: of these lanes."""

    def rare_best(
        self,
        tokens: np.ndarray,
        counts: np.ndarray,
        where: np.ndarray,
        detail: int,
        side: Side | None = None,
    ) -> np.ndarray:
        """The likeliest slots of open tokens, int64 [N], as `rare_table` takes them."""


class TorchNetworks:
    """`Networks` over a TextVAE, on its device. Call within `torch.inference_mode()`."""

    def __init__(self, vae: TextVAE) -> None:
        self._vae, self._config = vae, vae.config
        self._device = vae.readout.token_of.device
        # Tokens, classes and slots are looked up here: a GPU would have to be waited for each time.
        self._names = TokenNames(
            {n: t.cpu().numpy() for n, t in vae.readout.named_buffers(recurse=False)}, ""
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _real(self, patches: int, counts: np.ndarray) -> Tensor:
        at = torch.arange(patches * self._config.patch, device=self._device).view(patches, -1)
        return at < self._tensor(counts)[:, None, None]

    def start(self, lanes: int, detail: int, side: Side | None = None) -> None:
        self._caches, self._detail = self._vae.coder.stack.caches(lanes), detail
        self._told = self._tell(side)

    def _tell(self, side: Side | None) -> Told | None:
        return None if side is None else self._vae.tell(self._tensor(side.vectors), self._tensor(side.of))

    def context(self, position: int, previous: np.ndarray) -> None:
        if position:
            before = self._vae.embed_patches(self._tensor(previous))
        else:
            width = self._config.patch * self._config.embedding
            before = torch.zeros(len(previous), width, device=self._device)
        about = None
        if self._told is not None:
            self._which = self._told.of[: len(previous), position]
            about = self._told.coder[self._which]
        self._slots = self._vae.coder.step(before, position, self._detail, self._caches, about)

    def class_table(
        self, token: int, lanes: np.ndarray, history: np.ndarray, guess: np.ndarray, kind: np.ndarray
    ) -> np.ndarray:
        coder = self._vae.coder
        asked = self._tensor(np.column_stack([lanes, guess, kind, history]))  # one transfer
        at, guesses, kinds, before = asked[:, 0], asked[:, 1], asked[:, 2], asked[:, 3:]
        slots = self._slots[at, token]
        self._states = coder.tokens(slots, before, guesses, kinds, self._vae.embed)
        self._guess = coder.weigh(self._states, guesses, kinds)
        lift = None
        if self._told is not None:
            self._asked, self._gates = self._which[at], self._vae.gates(self._states)
            lift = self._vae.lift_classes(self._gates, self._told, self._asked)
        return table(self._vae.readout.class_logits(self._states, self._guess, lift))

    def slot_table(self, classes: np.ndarray) -> np.ndarray:
        readout, asked, lift = self._vae.readout, self._tensor(classes), None
        if self._told is not None:
            lift = self._vae.lift_slots(self._gates, self._told, self._asked, asked)
        return table(readout.gist_logits(self._states, asked, self._detail, self._guess, lift))

    def tokens(self, classes: np.ndarray, slots: np.ndarray) -> np.ndarray:
        return self._names.token_of[classes, slots]

    def has_slots(self, classes: np.ndarray, detail: int) -> np.ndarray:
        return self._names.limits[detail][classes] > 0

    def is_open(self, tokens: np.ndarray, detail: int) -> np.ndarray:
        return self._names.is_open(tokens, detail)

    def rarer(self, tokens: np.ndarray, slots: np.ndarray) -> np.ndarray:
        return self._names.token_of[self._names.class_of[tokens], slots]

    def rare_table(
        self,
        tokens: np.ndarray,
        counts: np.ndarray,
        where: np.ndarray,
        detail: int,
        side: Side | None = None,
    ) -> np.ndarray:
        return table(self._rare(tokens, counts, where, detail, side))

    def rare_best(
        self,
        tokens: np.ndarray,
        counts: np.ndarray,
        where: np.ndarray,
        detail: int,
        side: Side | None = None,
    ) -> np.ndarray:
        return self._rare(tokens, counts, where, detail, side).argmax(-1).cpu().numpy()

    def _rare(
        self, tokens: np.ndarray, counts: np.ndarray, where: np.ndarray, detail: int, side: Side | None
    ) -> Tensor:
        shape = len(tokens), -1, self._config.patch
        patches = self._tensor(tokens).view(shape)
        real = self._real(patches.shape[1], counts)
        return self._vae.rare_logits(patches, real, self._tensor(where).view(shape), detail, self._tell(side))


def table(logits: Tensor) -> np.ndarray:
    """Cumulative integer frequencies of logits [N, A]: int32 [N, A + 1]."""
    freq = frequencies(logits)
    cdf = torch.zeros(len(freq), freq.shape[1] + 1, dtype=torch.int32, device=freq.device)
    torch.cumsum(freq, -1, dtype=torch.int32, out=cdf[:, 1:])
    if not cdf.is_cuda:
        return cdf.numpy()
    # Into pinned memory, several times faster than what `cpu` does.
    return torch.empty(cdf.shape, dtype=cdf.dtype, pin_memory=True).copy_(cdf).numpy()
