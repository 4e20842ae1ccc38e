"""The networks that read an archive, for a few lanes, in loops that Numba compiles. No torch.

What `colazip.nn.portable` says, bit for bit. There a lane waits for some hundred operations of NumPy at each
token; here a step of the coder is one call, and so are a token's classes and its slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from colazip.config import ModelConfig, StackConfig
from colazip.entropy import StreamDecoder
from colazip.memory import KINDS, BlockMemory
from colazip.nn import portable
from colazip.nn.exact_loops import (
    advance,
    cumulative,
    cumulative_mix,
    judge_tokens,
    mix_slots,
    multiply,
    point,
    recall_rows,
    slot_logits,
)
from colazip.nn.grid import ATTENTION_TABLE, FREQUENCY_TABLE, TABLE_STEPS, alibi_slopes
from colazip.nn.loops import LoopMemory, LoopStreams
from colazip.nn.shapes import coding_shapes
from colazip.side import Side

_F = np.float32
_ROOM = 32  # positions that caches begin with
_WEIGHTS = ATTENTION_TABLE.astype(np.int32)


def loop_product(weight: np.ndarray) -> portable.Product:
    """The product with int8 [M, K]: in a compiled loop, which reads a quarter of the bytes, for few rows; by
    NumPy's BLAS for more, as they share what is read."""
    whole: list[portable.Product] = []

    def product(q: np.ndarray) -> np.ndarray:
        if len(q) > 32:
            if not whole:
                whole.append(portable.float_product(weight))
            return whole[0](q)
        found = np.empty((len(q), len(weight)), np.int32)
        multiply(q.astype(np.int8), weight, found)
        return found.astype(_F)

    return product


class _Matrices:
    """The matrices of a name in all blocks of a stack: q int8 [blocks, M, K], scale float32 [blocks, M]."""

    def __init__(self, tensors: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
        self.q = np.stack([tensors[f"{name}.q"] for name in names])
        self.scale = np.stack([tensors[f"{name}.scale"][:, 0] for name in names])


class _Pointer(portable.Pointer):
    """`portable.Pointer` in compiled loops."""

    def _first(self) -> np.ndarray:
        return self._lanes * self._keys.shape[1]

    def _point(
        self, query: np.ndarray, reserve: np.ndarray, classes: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = len(query)
        own, by_class = np.empty(n, np.int32), np.empty((n, classes), np.int32)
        weights = np.empty((n, self._at), np.uint8)
        point(
            query.astype(np.int8), reserve, self.factor[0], self._keys.reshape(-1, self.width),
            self._labels[0].reshape(-1), self._first(), np.full(n, self._at), _WEIGHTS, own, by_class,
            weights,
        )  # fmt: skip
        return own, by_class, weights

    def given_class(self, cdf: np.ndarray, classes: np.ndarray, slots: int) -> portable.Mix:
        mixed, pointed = np.empty(len(classes), np.int32), np.empty((len(classes), slots), np.int32)
        labels, slot_of = self._labels.reshape(2, -1)
        count = np.full(len(classes), self._at)
        mix_slots(
            self._own, self._by_class, self._weights, self._first(), count, labels, slot_of, cdf, classes,
            mixed, pointed,
        )  # fmt: skip
        return portable.Mix(mixed, pointed)


class CompiledNetworks(portable.PortableNetworks):
    """`colazip.nn.steps.Networks` in compiled loops."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> None:
        super().__init__(config, tensors, loop_product)
        coder, shape = "vae.coder", config.coder
        blocks = [f"{coder}.stack.blocks.{i}" for i in range(shape.layers)]
        qkv, out, up, down = (
            _Matrices(tensors, [f"{block}.{name}" for block in blocks])
            for name in ("qkv", "out", "up", "down")
        )
        self._stacked = qkv.q, out.q, up.q, down.q, (qkv.scale, out.scale, up.scale, down.scale)
        temperature = np.stack([tensors[f"{block}.temperature"] for block in blocks])
        # A power of two is multiplied last: it rounds nothing.
        self._factor = temperature * portable.TEMPERATURE_UNIT * _F(TABLE_STEPS)
        self._slopes = alibi_slopes(shape.heads)
        ups, downs = (_Matrices(tensors, [f"{coder}.{n}.{i}" for i in range(2)]) for n in ("ups", "downs"))
        judges = [f"{coder}.trust", "vae.readout.classes"] + [f"{coder}.heed"] * bool(config.conditional)
        if config.pointer is not None:
            judges += [f"{coder}.pointer.sentinel", f"{coder}.pointer.both"]
            self._pointer = _Pointer(portable.Weights(tensors, f"{coder}.pointer."), config.pointer)
        recent = tensors[f"{coder}.recent.q"], tensors[f"{coder}.recent.scale"][:, 0].copy()
        self._token_nets = (
            *recent,
            ups.q,
            downs.q,
            (ups.scale, downs.scale),
            np.concatenate([tensors[f"{name}.q"] for name in judges]),
            np.concatenate([tensors[f"{name}.scale"][:, 0] for name in judges]),
        )
        names = ["vae.embed", *(f"{coder}.{name}" for name in ("bigrams", "trigrams", "kinds"))]
        self._tables = (
            tuple(tensors[f"{name}.q"] for name in names),
            tuple(tensors[f"{name}.scale"][:, 0].copy() for name in names),
        )
        self._slot_matrices = (
            tensors["vae.readout.slots.q"],
            tensors["vae.readout.slots.scale"][..., 0].copy(),
        )

    def streams(self, streams: Sequence[bytes]) -> StreamDecoder:
        return LoopStreams(streams)

    def memory(self, blocks: int) -> BlockMemory:
        return LoopMemory(blocks)

    def start(self, lanes: int, detail: int, side: Side | None = None) -> None:
        super().start(lanes, detail, side)
        shape = self._config.coder
        size = shape.layers, lanes, shape.heads, _ROOM, shape.width // shape.heads
        self._keys, self._values = np.zeros((2, *size), np.int8)

    def _step(self, x: np.ndarray, position: int) -> np.ndarray:
        if position >= self._keys.shape[3]:
            self._keys, self._values = (portable.doubled(kept, 3) for kept in (self._keys, self._values))
        advance(
            x, position, self._keys, self._values, *self._stacked, self._factor, self._slopes, ATTENTION_TABLE
        )
        return x

    def follow(self, lane: int) -> None:
        for cache in (self._keys, self._values):
            cache[:] = cache[:, lane : lane + 1].copy()
        portable.follow(lane, self._slots)
        if self._pointer is not None:
            self._pointer.follow(lane)

    def _recall(self, history: np.ndarray, guess: np.ndarray, kind: np.ndarray) -> np.ndarray:
        recent = np.empty((len(guess), self._token_nets[0].shape[1]), _F)
        recall_rows(history, guess, kind, *self._tables, recent)
        return recent

    def _token_states(self, recent: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        states = np.empty(slots.shape, _F)
        judged = np.empty((len(slots), len(self._token_nets[-1])), _F)
        judge_tokens(recent, slots, *self._token_nets, states, judged)
        return states, judged

    def _slot_logits_of(self, classes: np.ndarray) -> np.ndarray:
        logits = np.empty((len(classes), self._config.slots), _F)
        slot_logits(self._states, *self._slot_matrices, classes, logits)
        return logits

    def _table(self, logits: np.ndarray, mix: portable.Mix | None) -> np.ndarray:
        cdf = np.empty((len(logits), logits.shape[1] + 1), np.int32)
        if mix is None:
            cumulative(logits, FREQUENCY_TABLE, cdf)
        else:
            cumulative_mix(logits, FREQUENCY_TABLE, *mix, cdf)
        return cdf


def agrees() -> bool:
    """Whether the loops give what NumPy's operations give: every table of a small model of random weights."""
    config = ModelConfig(
        "", classes=6, slots=5, patch=2, segment=8, embedding=70, channels=2, local_width=40, local_hidden=72,
        coder=StackConfig(140, 2, 2), decoder=StackConfig(8, 1, 1), ngram_rows=64, ngram_width=6, vector=16,
        code_bytes=8, word_rows=8, conditional=True, pointer=16,
    )  # fmt: skip
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name, (shape, kind) in coding_shapes(config).items():
        if name.endswith("temperature"):
            tensors[name] = np.full(shape, 0.75, _F)
        elif kind == "float32":
            tensors[name] = random.uniform(0.002, 0.02, shape).astype(_F)
        else:
            tensors[name] = random.integers(-127, 128, shape).astype(kind)
    tokens = np.arange(config.vocabulary)
    tensors["vae.readout.class_of"], tensors["vae.readout.slot_of"] = (
        part.astype(np.int32) for part in np.divmod(tokens, config.slots)
    )
    tensors["vae.readout.token_of"] = tokens.reshape(config.classes, config.slots).astype(np.int32)
    tensors["vae.readout.limits"] = np.full((1, config.classes), config.slots, np.int32)
    said = []
    for net in (portable.PortableNetworks(config, tensors), CompiledNetworks(config, tensors)):
        drawn, lanes = np.random.default_rng(1), np.array([2, 0, 1])
        side = Side(drawn.standard_normal((2, config.vector)).astype(_F), drawn.integers(0, 2, (3, 40)))
        net.start(3, 0, side)
        for position in range(40):
            net.context(position, drawn.integers(0, config.vocabulary, (3, config.patch)))
            for token in range(config.patch):
                before = drawn.integers(0, config.vocabulary, (4, 3))
                said.append(net.class_table(token, lanes, before[:3], before[3], drawn.integers(0, KINDS, 3)))
                said.append(net.slot_table(drawn.integers(0, config.classes, 3)))
    half = len(said) // 2
    return all(np.array_equal(a, b) for a, b in zip(said[:half], said[half:], strict=True))
