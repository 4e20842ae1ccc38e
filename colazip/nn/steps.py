"""What decoding asks of the networks, and the torch side of it. `colazip.nn.portable` is the NumPy side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from colazip.entropy import StreamDecoder
from colazip.memory import BlockMemory
from colazip.names import TokenNames
from colazip.nn.exact import cumulative, has_triton
from colazip.nn.loading import block_memory, compiled_loops, load_kernels
from colazip.nn.pointer import TokenCache
from colazip.nn.vae import TextVAE, Told
from colazip.side import Side

if TYPE_CHECKING:
    from colazip.nn.gpu_decode import Decoding


class Networks(Protocol):
    """Networks that advance lanes side by side. Lanes come longest first; those still active are a prefix.

    Shapes: L lanes, n or m of them active, P patches, K tokens a patch, C channels a token. Tables are
    cumulative integer frequencies, int32 [rows, symbols + 1].
    on_gpu: what decodes without waiting for each step's tables; None: nothing does.
    """

    @property
    def on_gpu(self) -> Decoding | None: ...

    def streams(self, streams: Sequence[bytes]) -> StreamDecoder:
        """What decodes the entropy streams of several blocks."""

    def memory(self, blocks: int) -> BlockMemory:
        """Empty memories of so many blocks."""

    def start(self, lanes: int, detail: int, side: Side | None = None) -> None:
        """Begin the gists, of one detail, of `lanes` lanes. side: what they are coded given, if anything."""

    def context(self, position: int, previous: np.ndarray) -> None:
        """Advance to a patch; tokens of the one before int64 [n, K] (any at 0)."""

    def class_table(
        self, token: int, lanes: np.ndarray, history: np.ndarray, guess: np.ndarray, kind: np.ndarray
    ) -> np.ndarray:
        """Tables of the class of one token of the patch, each asked for in turn; lanes int64 [m]: those still
        active, in any order; tokens before int64 [m, 3], latest first, and the memory's guesses and kinds
        int64 [m]."""

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


@lru_cache(maxsize=8)
def decoding_kernels(device: torch.device) -> Any:
    """The module that decodes on a GPU; None where its kernels don't run."""

    def works(kernels: Any) -> bool:
        kernels.try_out(device)
        return True

    if not has_triton(device):
        return None
    return load_kernels("colazip.nn.gpu_decode", works, "decoding step by step, without kernels")


class TorchNetworks:
    """`Networks` over a TextVAE, on its device. Call within `torch.inference_mode()`."""

    def __init__(self, vae: TextVAE) -> None:
        self.vae, self._config = vae, vae.config
        self.device = vae.readout.token_of.device
        # Tokens, classes and slots are looked up here: a GPU would have to be waited for each time.
        self._names = TokenNames(
            {n: t.cpu().numpy() for n, t in vae.readout.named_buffers(recurse=False)}, ""
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _real(self, patches: int, counts: np.ndarray) -> Tensor:
        at = torch.arange(patches * self._config.patch, device=self.device).view(patches, -1)
        return at < self._tensor(counts)[:, None, None]

    def streams(self, streams: Sequence[bytes]) -> StreamDecoder:
        loops = compiled_loops()
        return StreamDecoder(streams) if loops is None else loops.LoopStreams(streams)

    def memory(self, blocks: int) -> BlockMemory:
        return block_memory(blocks)

    def start(self, lanes: int, detail: int, side: Side | None = None) -> None:
        self._caches, self._detail = self.vae.coder.stack.caches(lanes), detail
        pointer = self.vae.coder.pointer
        self._tokens = None if pointer is None else TokenCache(pointer, lanes)
        self._told = self._tell(side)

    def _tell(self, side: Side | None) -> Told | None:
        return None if side is None else self.vae.tell(self._tensor(side.vectors), self._tensor(side.of))

    @cached_property
    def on_gpu(self) -> Decoding | None:
        if (kernels := decoding_kernels(self.device)) is None:
            return None
        decoding: Decoding = kernels.Decoding(self)
        return decoding

    def context(self, position: int, previous: np.ndarray) -> None:
        self.advance(position, self._tensor(previous))

    def advance(self, position: int, previous: Tensor) -> None:
        """`context`, of tokens int64 [n, K]."""
        self._first = position * self._config.patch
        if position:
            before = self.vae.embed_patches(previous)
        else:
            width = self._config.patch * self._config.embedding
            before = torch.zeros(len(previous), width, device=self.device)
        about = None
        if self._told is not None:
            self._which = self._told.of[: len(previous), position]
            about = self._told.coder[self._which]
        self._slots = self.vae.coder.step(before, position, self._detail, self._caches, about)

    def class_table(
        self, token: int, lanes: np.ndarray, history: np.ndarray, guess: np.ndarray, kind: np.ndarray
    ) -> np.ndarray:
        asked = self._tensor(np.column_stack([lanes, guess, kind, history]))  # one transfer
        return on_host(self._class_cdf(token, asked[:, 0], asked[:, 3:], asked[:, 1], asked[:, 2]))

    def class_cdf(self, token: int, history: Tensor, guess: Tensor, kind: Tensor) -> Tensor:
        """`class_table` of the first n lanes: history int64 [n, 3], guess and kind int64 [n]."""
        return self._class_cdf(token, torch.arange(len(guess), device=self.device), history, guess, kind)

    def _class_cdf(self, token: int, lanes: Tensor, history: Tensor, guess: Tensor, kind: Tensor) -> Tensor:
        vae = self.vae
        slots = self._slots[lanes, token]
        self._states = vae.coder.tokens(slots, history, guess, kind, vae.embed)
        self._guess = vae.coder.weigh(self._states, guess, kind)
        lift = mix = None
        if self._told is not None:
            self._asked, self._gates = self._which[lanes], vae.gates(self._states)
            lift = vae.lift_classes(self._gates, self._told, self._asked)
        if self._tokens is not None:
            position = self._first + token
            if position:
                came = history[:, 0]
                self._tokens.tell(position - 1, lanes, vae.readout.class_of[came], vae.readout.slot_of[came])
            self._aim = self._tokens.step(self._states, position, lanes, self._config.classes)
            mix = self._aim.of_class()
        self._cdf = cumulative(vae.readout.class_logits(self._states, self._guess, lift), mix)
        return self._cdf

    def slot_table(self, classes: np.ndarray) -> np.ndarray:
        return on_host(self.slot_cdf(self._tensor(classes)))

    def slot_cdf(self, classes: Tensor) -> Tensor:
        """`slot_table`: int64 [n]."""
        lift = mix = None
        if self._told is not None:
            lift = self.vae.lift_slots(self._gates, self._told, self._asked, classes)
        if self._tokens is not None:
            mix = self._aim.given_class(self._cdf, classes, self._tokens.known, self._config.slots)
        logits = self.vae.readout.gist_logits(self._states, classes, self._detail, self._guess, lift)
        return cumulative(logits, mix)

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
        return on_host(cumulative(self.rare_logits(tokens, counts, where, detail, side)))

    def rare_best(
        self,
        tokens: np.ndarray,
        counts: np.ndarray,
        where: np.ndarray,
        detail: int,
        side: Side | None = None,
    ) -> np.ndarray:
        return self.rare_logits(tokens, counts, where, detail, side).argmax(-1).cpu().numpy()

    def rare_logits(
        self, tokens: np.ndarray, counts: np.ndarray, where: np.ndarray, detail: int, side: Side | None
    ) -> Tensor:
        """What `rare_table` is the table of."""
        shape = len(tokens), -1, self._config.patch
        patches = self._tensor(tokens).view(shape)
        real = self._real(patches.shape[1], counts)
        return self.vae.rare_logits(patches, real, self._tensor(where).view(shape), detail, self._tell(side))


def on_host(cdf: Tensor) -> np.ndarray:
    """Tables as NumPy has them."""
    if not cdf.is_cuda:
        return cdf.numpy()
    # Into pinned memory, several times faster than what `cpu` does.
    return torch.empty(cdf.shape, dtype=cdf.dtype, pin_memory=True).copy_(cdf).numpy()
