"""The networks that read an archive, in NumPy alone: the second implementation of the exact layers.

What is stored comes back through this module exactly as through `colazip.nn.exact`, and without loading
torch. For a few lanes it is also the faster one: an operation of NumPy costs less to start than one of torch.
Products run in float32 through NumPy's BLAS; operands are integers, so every sum is exact in any order, and
where torch is there anyway its int8 product can take their place (`colazip.nn.quick`). Every step below
repeats the operations of its counterpart one by one: see `colazip.nn.exact` for why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from colazip.config import EncoderConfig, ModelConfig, StackConfig
from colazip.entropy import StreamDecoder
from colazip.memory import BlockMemory
from colazip.names import TokenNames
from colazip.nn.grid import (
    ATTENTION_TABLE,
    CLOSED,
    FREQUENCY_TABLE,
    GRID,
    LOOKED_UP,
    POINTER_RMS,
    PRECISION,
    SHARES,
    VALUE_STEPS,
    alibi_slopes,
    ngram_rows,
)
from colazip.side import Side
from colazip.vectors import unpack_nibbles

_F = np.float32
_TINY = _F(2.0**-121)
_ONE = _F(1.0)
_GRID = _F(GRID)
TEMPERATURE_UNIT = _F(1e-4)
_STEPS = _F(32.0)
_VECTORS = 256  # that meet all tokens at once
_ROOM = 32  # positions that caches of tokens begin with


def quantize_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray | np.float32]:
    """[..., K] -> (integers in float32 [..., K], scale [..., 1]; of one row a scalar)."""
    if x.size == x.shape[-1]:  # one lane: the same operations, most of them on scalars
        largest = np.maximum.reduce(np.abs(x), None)
        largest = largest if largest >= _TINY else _ONE
        return np.rint(x * ((_ONE / largest) * _GRID)), largest / _GRID
    top = np.abs(x).max(-1, keepdims=True)
    top = np.where(top >= _TINY, top, _ONE)
    return np.rint(x * ((_ONE / top) * _GRID)), top / _GRID


def _inverse_rms(q: np.ndarray) -> np.ndarray | np.float32:
    """1 / rms of integer rows [N, K] -> [N, 1]; of one row a scalar."""
    if len(q) == 1:
        square = max(np.dot(q[0], q[0]), _ONE)  # below 2**24, exact in any order
        return _ONE / _F(math.sqrt(square / _F(q.shape[-1])))
    squares = np.maximum((q * q).sum(-1, keepdims=True), _ONE)
    return _ONE / np.sqrt((squares / _F(q.shape[-1])).astype(np.float64)).astype(_F)


def integer_softmax(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integer weights [..., N] of log2 scores and their sum [..., 1]."""
    return integer_softmax_of_steps(scores * _STEPS)  # a power of two rounds nothing


def integer_softmax_of_steps(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of scores in steps of the table."""
    top = scores.max(-1, keepdims=True)
    step = np.minimum(np.rint(top - scores), _F(len(ATTENTION_TABLE) - 1))
    weights = ATTENTION_TABLE[step.astype(np.int32)]
    return weights, weights.sum(-1, keepdims=True)


class Mix(NamedTuple):
    """`colazip.nn.exact.Mix` in NumPy."""

    own: np.ndarray
    pointed: np.ndarray


def cumulative(logits: np.ndarray, mix: Mix | None = None) -> np.ndarray:
    """Logits float32 [N, A] in log2 units -> cumulative integer frequencies int32 [N, A + 1] up to
    2**PRECISION."""
    count = logits.shape[-1]
    top = logits.max(-1, keepdims=True)
    step = np.minimum(np.rint((top - logits) * _STEPS), _F(len(FREQUENCY_TABLE) - 1))
    weights = FREQUENCY_TABLE[step.astype(np.int32)].astype(np.float64)
    whole = weights.sum(-1, keepdims=True)
    if mix is not None:
        weights = weights * mix.own[:, None] + mix.pointed * whole
        whole = weights.sum(-1, keepdims=True)
    share = (1.0 / whole) * float(2**PRECISION - count)
    table = np.zeros((len(logits), count + 1), np.int32)
    freq = np.floor(weights * share).astype(np.int32) + 1
    freq[:, 0] += 2**PRECISION - freq.sum(-1, dtype=np.int32)
    freq.cumsum(-1, np.int32, table[:, 1:])
    return table


def _square(x: np.ndarray) -> np.ndarray:
    x = np.maximum(x, _F(0.0))
    return x * x


Product = Callable[[np.ndarray], np.ndarray]  # integers in float32 [N, K] -> [N, M]


def float_product(weight: np.ndarray) -> Product:
    """The product with int8 [M, K] by NumPy's BLAS."""
    matrix = np.ascontiguousarray(weight.astype(_F).T)
    return lambda q: q @ matrix


def one_thread() -> AbstractContextManager[object]:
    """Products of BLAS on one thread while this is entered, in the whole process.

    Those of few rows gain little from more threads, which wait for each other at each of thousands of
    operations; beside another busy process that took ten times as long.
    """
    controller: AbstractContextManager[object] = ThreadpoolController().limit(limits=1, user_api="blas")
    return controller


class Weights:
    """Shipped tensors by name, as NumPy arrays. product: makes a product of an int8 matrix."""

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        prefix: str,
        product: Callable[[np.ndarray], Product] = float_product,
    ) -> None:
        self._tensors, self._prefix, self.product = tensors, prefix, product

    def under(self, name: str) -> Weights:
        return Weights(self._tensors, f"{self._prefix}{name}.", self.product)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._prefix + name]


class Linear:
    """y = W x, or W (x / rms(x)) with norm=True. [N, K] -> [N, M]. Of several weights the rows one after the
    other: one product where the same x meets all of them."""

    def __init__(self, *weights: Weights, norm: bool = False) -> None:
        self._product = weights[0].product(np.concatenate([w["q"] for w in weights]))
        self._scale = np.concatenate([w["scale"][:, 0] for w in weights])
        self._norm = norm

    def __call__(self, x: np.ndarray) -> np.ndarray:
        q, scale = quantize_rows(x)
        factor = _inverse_rms(q) if self._norm else scale
        return self._product(q) * factor * self._scale


class Embedding:
    """Index [...] -> [..., D]."""

    def __init__(self, weights: Weights) -> None:
        self._q, self._scale = weights["q"], weights["scale"]
        self.width = self._q.shape[1]

    def __call__(self, index: np.ndarray) -> np.ndarray:
        return self._q[index].astype(_F) * self._scale[index]


class Cache:
    """Keys and values of one block for lanes that advance together: [lanes, heads, positions, width].

    Storage grows as positions are reached.
    """

    def __init__(self, lanes: int, heads: int, width: int) -> None:
        self.key = np.zeros((lanes, heads, 8, width), _F)
        self.value = np.zeros_like(self.key)

    def put(self, position: int, key: np.ndarray, value: np.ndarray) -> None:
        n = len(key)
        if position >= self.key.shape[2]:
            self.key, self.value = (
                np.concatenate([old[:n], np.zeros_like(old[:n])], 2) for old in (self.key, self.value)
            )
        self.key[:n, :, position], self.value[:n, :, position] = key, value


class Block:
    """Pre-norm attention and squared-ReLU MLP."""

    def __init__(self, weights: Weights, config: StackConfig | EncoderConfig, *, causal: bool) -> None:
        self._heads, self._causal = config.heads, causal
        self._qkv = Linear(weights.under("qkv"), norm=True)
        self._out = Linear(weights.under("out"))
        self._up = Linear(weights.under("up"), norm=True)
        self._down = Linear(weights.under("down"))
        self._temperature = (weights["temperature"] * TEMPERATURE_UNIT)[:, None]
        self._slopes = alibi_slopes(config.heads)[:, None]
        self._penalty = self._slopes[:, :0]  # by distance, the nearest last

    def _project(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[N, D] -> integer queries, keys, values [N, H, W]."""
        qkv = self._qkv(x).reshape(len(x), 3, self._heads, -1)
        both, _ = quantize_rows(qkv[:, :2])
        value = np.rint(np.maximum(np.minimum(qkv[:, 2] * _F(VALUE_STEPS), _GRID), -_GRID))
        return both[:, 0], both[:, 1], value

    def _finish(self, x: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        x = x + self._out(mixed)
        return x + self._down(_square(self._up(x)))

    def step(self, x: np.ndarray, position: int, cache: Cache) -> np.ndarray:
        """One position of the first n lanes: [n, D] -> [n, D]."""
        q, k, v = self._project(x)
        cache.put(position, k, v)
        n = len(x)
        keys, values = cache.key[:n, :, : position + 1], cache.value[:n, :, : position + 1]
        if position >= self._penalty.shape[1]:
            self._penalty = self._slopes * np.arange(2 * position + 8, -1, -1, dtype=_F)
        scores = (keys @ q[..., None])[..., 0] * self._temperature - self._penalty[:, -1 - position :]
        weights, total = integer_softmax(scores)
        mixed = (weights[:, :, None] @ values)[:, :, 0] / (total * _F(VALUE_STEPS))
        return self._finish(x, mixed.reshape(x.shape))

    def forward(self, x: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """All positions of one lane or of several: [..., P, D] -> [..., P, D]. valid: bool [..., P], keys
        that exist; None is all."""
        lanes, flat = x.shape[:-1], x.reshape(-1, x.shape[-1])
        q, k, v = (part.reshape(*lanes, self._heads, -1).swapaxes(-3, -2) for part in self._project(flat))
        at = np.arange(lanes[-1])
        distance = np.abs(at[:, None] - at[None]).astype(_F)
        scores = (q @ k.swapaxes(-1, -2)) * self._temperature[..., None] - self._slopes[..., None] * distance
        if self._causal:
            scores = np.where(at[None] > at[:, None], _F(-np.inf), scores)
        if valid is not None:
            scores = np.where(valid[..., None, None, :], scores, _F(-np.inf))
        weights, total = integer_softmax(scores)
        mixed = (weights @ v) / (total * _F(VALUE_STEPS))
        return self._finish(flat, mixed.swapaxes(-3, -2).reshape(flat.shape)).reshape(x.shape)


class Stack:
    """Blocks of one width."""

    def __init__(self, weights: Weights, config: StackConfig, *, causal: bool) -> None:
        self._shape = config.heads, config.width // config.heads
        self._blocks = [
            Block(weights.under(f"blocks.{i}"), config, causal=causal) for i in range(config.layers)
        ]

    def caches(self, lanes: int) -> list[Cache]:
        return [Cache(lanes, *self._shape) for _ in self._blocks]

    def step(self, x: np.ndarray, position: int, caches: list[Cache]) -> np.ndarray:
        for block, cache in zip(self._blocks, caches, strict=True):
            x = block.step(x, position, cache)
        return x

    def forward(self, x: np.ndarray) -> np.ndarray:
        """One lane, [P, D] -> [P, D]."""
        for block in self._blocks:
            x = block.forward(x)
        return x


class ContextEncoder:
    """`colazip.nn.context.ContextEncoder` in NumPy."""

    def __init__(self, config: EncoderConfig, weights: Weights) -> None:
        self._enter = Linear(weights.under("enter"), norm=True)
        self._blocks = [
            Block(weights.under(f"blocks.{i}"), config, causal=False) for i in range(config.layers)
        ]
        self._leave = Linear(weights.under("leave"), norm=True)

    def __call__(self, units: np.ndarray, valid: np.ndarray) -> np.ndarray:
        lanes, count = units.shape[:2]
        entered = self._enter(units.reshape(lanes * count, -1)).reshape(lanes, count, 3, -1)
        x = entered[:, :, 0].copy()
        x[:, 1:] += entered[:, :-1, 1]
        x[:, :-1] += entered[:, 1:, 2]
        for block in self._blocks:
            x = block.forward(x, valid)
        left = self._leave(x.reshape(lanes * count, -1)).reshape(units.shape)
        return left * valid[..., None].astype(_F)


class Readout(TokenNames):
    """Token states -> slot logits of a class."""

    def __init__(self, tensors: Mapping[str, np.ndarray], weights: Weights) -> None:
        super().__init__(tensors, "vae.readout.")
        slots = weights.under("slots")
        self._slots, self._slot_scale = slots["q"], slots["scale"][..., 0]

    def slots(self, states: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """[N, L], class int64 [N] -> [N, slots]."""
        q, _ = quantize_rows(states)
        products = (self._slots[classes].astype(_F) @ q[..., None])[..., 0]
        return products * _inverse_rms(q) * self._slot_scale[classes]

    def gist_logits(self, logits: np.ndarray, classes: np.ndarray, detail: int) -> np.ndarray:
        """Slot logits [N, slots] without those that a gist can't say."""
        slot = np.arange(logits.shape[1])
        return np.where(slot > self.last(detail)[classes][:, None], _F(CLOSED), logits)

    def rare_logits(
        self, states: np.ndarray, classes: np.ndarray, detail: int, lift: np.ndarray | None = None
    ) -> np.ndarray:
        """Slots that a gist can't say. lift: [N, slots], what a search code adds."""
        slot = np.arange(self.token_of.shape[1])
        logits = self.slots(states, classes)
        if lift is not None:
            logits = logits + lift
        return np.where(slot < self.limits[detail][classes][:, None], _F(CLOSED), logits)


class Likeness:
    """`colazip.nn.likeness.Likeness` in NumPy."""

    def __init__(self, weights: Weights, rows: np.ndarray, token_of: np.ndarray) -> None:
        """rows: int8 [V, D], of the search head."""
        self.rows = rows[token_of]  # [classes, slots, D]
        self.scale, self.shift = weights["scale"], weights["shift"]
        self._product = weights.product(self.rows.reshape(-1, rows.shape[1]))

    def tokens(self, q: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Vectors on the grid [C, D], their scales [C, 1] -> how like each token is, [C, classes, slots]."""
        raw = self._product(q) * scale
        return raw.reshape(-1, *self.scale.shape) * self.scale


class Alike:
    """What vectors float32 [C, D] say of tokens. classes: float32 [C, classes]."""

    def __init__(self, likeness: Likeness, vectors: np.ndarray) -> None:
        self._likeness = likeness
        self._q, scale = quantize_rows(vectors)
        self._scale = np.broadcast_to(np.asarray(scale, _F), (len(vectors), 1))
        self.classes = np.empty((len(vectors), len(likeness.scale)), _F)
        kept = []
        for lo in range(0, len(vectors), _VECTORS):
            like = likeness.tokens(self._q[lo : lo + _VECTORS], self._scale[lo : lo + _VECTORS])
            self.classes[lo : lo + _VECTORS] = (like + likeness.shift).max(-1)
            if len(vectors) <= LOOKED_UP:
                kept.append(like)
        self._slots = np.concatenate(kept) if kept else None

    def slots(self, which: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """How like the tokens of a class are: vector int64 [N], class int64 [N] -> [N, slots]."""
        if self._slots is not None:
            return self._slots[which, classes]
        products = (self._likeness.rows[classes].astype(_F) @ self._q[which][..., None])[..., 0]
        return products * self._scale[which] * self._likeness.scale[classes]


class Decoder:
    """Gist tokens -> features of their patches -> states of tokens."""

    def __init__(self, config: ModelConfig, root: Weights) -> None:
        weights = root.under("decoder")
        self._patch = config.patch
        self._embed = Embedding(root.under("embed"))
        self._details = Embedding(weights.under("details"))
        self._enter = Linear(weights.under("enter"))
        self._stack = Stack(weights.under("stack"), config.decoder, causal=False)
        self._slots = Linear(weights.under("slots"), norm=True)
        self._near = Linear(weights.under("near"))
        self._up = Linear(weights.under("up"), norm=True)
        self._down = Linear(weights.under("down"))
        if config.conditional:
            self.about = Linear(weights.under("about"), norm=True)
            self.heed = Linear(weights.under("heed"), norm=True)

    def features(
        self, tokens: np.ndarray, detail: int, about: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gist of one lane int64 [T] -> (features [P, W], embedded tokens [P * K, E], zeros behind the
        end). about: what a search code says of each patch, [P, W]."""
        length = -(-len(tokens) // self._patch) * self._patch
        embedded = np.zeros((length, self._embed.width), _F)
        embedded[: len(tokens)] = self._embed(tokens)
        x = self._enter(embedded.reshape(length // self._patch, -1)) + self._details(np.array(detail))
        return self._stack.forward(x if about is None else x + about), embedded

    def states(
        self, tokens: np.ndarray, where: np.ndarray, detail: int, about: np.ndarray | None = None
    ) -> np.ndarray:
        """Gist of one lane int64 [T], where bool [T] -> states [N, L]. about: as `features` takes it."""
        features, embedded = self.features(tokens, detail, about)
        at = np.flatnonzero(where)
        slots = self._slots(features).reshape(len(embedded), -1)
        flat = np.pad(embedded, ((1, 1), (0, 0)))
        around = np.concatenate([flat[at], flat[at + 1], flat[at + 2]], -1)
        h = slots[at] + self._near(around)
        return h + self._down(_square(self._up(h)))


class Pointer:
    """`colazip.nn.pointer` in NumPy, over lanes that advance together."""

    def __init__(self, weights: Weights, width: int) -> None:
        self.width = width
        self.factor = (weights["temperature"] * TEMPERATURE_UNIT) * _STEPS
        self.offset = weights["offset"]

    def start(self, lanes: int) -> None:
        self._keys = np.zeros((lanes, _ROOM, self.width), np.int8)
        self._labels = np.zeros((2, lanes, _ROOM), np.int32)

    def tell(self, position: int, lanes: np.ndarray, classes: np.ndarray, slots: np.ndarray) -> None:
        """What came at a position, int64 [n] each."""
        self._labels[0][lanes, position], self._labels[1][lanes, position] = classes, slots

    def aim(self, judged: np.ndarray, position: int, lanes: np.ndarray, classes: int) -> Mix:
        """The mixture of the class of lanes int64 [n], given what is read off their states,
        [n, 1 + 2 * W]."""
        if position >= self._labels.shape[2]:
            self._keys, self._labels = doubled(self._keys, 1), doubled(self._labels, 2)
        reserve = (judged[:, 0] + self.offset) * _STEPS
        both = level_rows(judged[:, 1:].reshape(-1, self.width)).reshape(-1, 2, self.width)
        self._keys[lanes, position] = both[:, 1]
        self._at, self._lanes = position, lanes
        self._own, self._by_class, self._weights = self._point(both[:, 0], reserve, classes)
        return Mix(self._own, self._by_class)

    def _point(
        self, query: np.ndarray, reserve: np.ndarray, classes: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keys = self._keys[self._lanes, : self._at].astype(_F)
        scores = (keys @ query[..., None])[..., 0] * self.factor
        weights, _ = integer_softmax_of_steps(np.concatenate([scores, reserve[:, None]], -1))
        pointed = weights[:, :-1].astype(np.int32)
        return (
            np.maximum(weights[:, -1], _ONE).astype(np.int32),
            _tally(pointed, self._labels[0][self._lanes, : self._at], classes),
            pointed,
        )

    def given_class(self, cdf: np.ndarray, classes: np.ndarray, slots: int) -> Mix:
        """The mixture of the slot. cdf: int32 [n, C + 1], the tables that the classes int64 [n] came by."""
        at = np.arange(len(classes))
        pointed = self._by_class[at, classes]
        total = (self._own + self._by_class.sum(-1)) * (cdf[at, classes + 1] - cdf[at, classes]).astype(
            np.float64
        )
        share = np.minimum(np.rint(pointed * float(SHARES << PRECISION) / total), SHARES - 1).astype(np.int32)
        labels, slot_of = self._labels[:, self._lanes, : self._at]
        by_slot = _tally(np.where(labels == classes[:, None], self._weights, 0), slot_of, slots)
        return Mix(np.maximum((SHARES - share) * pointed, 1), by_slot * share[:, None])

    def follow(self, lane: int) -> None:
        follow(lane, self._keys, *self._labels)


def level_rows(x: np.ndarray) -> np.ndarray:
    """Rows [n, W] as integers of one root mean square."""
    q = quantize_rows(x)[0]
    return np.maximum(np.minimum(np.rint(q * (_inverse_rms(q) * _F(POINTER_RMS))), _GRID), -_GRID)


def _tally(weights: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Sums of weights int32 [n, K] by their labels int32 [n, K]: int32 [n, count]."""
    row = np.arange(len(weights))[:, None] * count
    sums = np.bincount((labels + row).ravel(), weights.ravel(), len(weights) * count)  # of small integers
    return sums.reshape(len(weights), count).astype(np.int32)


def doubled(kept: np.ndarray, axis: int) -> np.ndarray:
    """With room for as much again."""
    return np.concatenate([kept, np.zeros_like(kept)], axis)


def follow(lane: int, *states: np.ndarray) -> None:
    """Make the states [lanes, ...] of all lanes that of `lane`."""
    for state in states:
        state[:] = state[lane].copy()


class PortableNetworks:
    """`colazip.nn.steps.Networks` in NumPy. product: as `Weights` takes it."""

    on_gpu = None

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, np.ndarray],
        product: Callable[[np.ndarray], Product] = float_product,
    ) -> None:
        root = Weights(tensors, "vae.", product)
        self._config, self._patch = config, config.patch
        self._embed = Embedding(root.under("embed"))
        self._decoder = Decoder(config, root)
        coder = root.under("coder")
        self._details = Embedding(coder.under("details"))
        self._enter = Linear(coder.under("enter"))
        self._stack = Stack(coder.under("stack"), config.coder, causal=True)
        self._patch_slots = Linear(coder.under("slots"), norm=True)
        self._bigrams = Embedding(coder.under("bigrams"))
        self._trigrams = Embedding(coder.under("trigrams"))
        self._kinds = Embedding(coder.under("kinds"))
        self._recent = Linear(coder.under("recent"))
        self._ups = [Linear(coder.under(f"ups.{i}"), norm=True) for i in range(2)]
        self._downs = [Linear(coder.under(f"downs.{i}")) for i in range(2)]
        judges = [coder.under("trust"), root.under("readout").under("classes")]
        if config.conditional:
            judges.append(coder.under("heed"))
            self._about = Linear(coder.under("about"), norm=True)
        self._pointer = None
        if config.pointer is not None:
            judges += [coder.under(f"pointer.{name}") for name in ("sentinel", "both")]
            self._pointer = Pointer(coder.under("pointer"), config.pointer)
        self._judge = Linear(*judges, norm=True)
        self._readout = Readout(tensors, root.under("readout"))
        self._tensors, self._product = tensors, product
        self._side: Side | None = None

    @cached_property
    def _likeness(self) -> Likeness:
        rows = unpack_nibbles(self._tensors["search.tokens.q"][: self._config.vocabulary])
        weights = Weights(self._tensors, "vae.likeness.", self._product)
        return Likeness(weights, rows, self._readout.token_of)

    def streams(self, streams: Sequence[bytes]) -> StreamDecoder:
        return StreamDecoder(streams)

    def memory(self, blocks: int) -> BlockMemory:
        return BlockMemory(blocks)

    def start(self, lanes: int, detail: int, side: Side | None = None) -> None:
        self._caches, self._detail = self._stack.caches(lanes), detail
        if self._pointer is not None:
            self._pointer.start(lanes)
        self._side = side
        if side is not None:
            self._alike = Alike(self._likeness, side.vectors)
            self._leaning = self._about(side.vectors)

    def context(self, position: int, previous: np.ndarray) -> None:
        self._first = position * self._patch
        if position:
            before = self._embed(previous).reshape(len(previous), -1)
        else:
            before = np.zeros((len(previous), self._patch * self._config.embedding), _F)
        x = self._enter(before) + self._details(np.array(self._detail))
        if self._side is not None:
            self._which = self._side.of[: len(previous), position]
            x = x + self._leaning[self._which]
        x = self._step(x, position)
        self._slots = self._patch_slots(x).reshape(len(x), self._patch, -1)

    def _step(self, x: np.ndarray, position: int) -> np.ndarray:
        return self._stack.step(x, position, self._caches)

    def follow(self, lane: int) -> None:
        """Make the state of all lanes that of `lane`."""
        for cache in self._caches:
            follow(lane, cache.key, cache.value)
        follow(lane, self._slots)
        if self._pointer is not None:
            self._pointer.follow(lane)

    def class_table(
        self, token: int, lanes: np.ndarray, history: np.ndarray, guess: np.ndarray, kind: np.ndarray
    ) -> np.ndarray:
        known = (kind > 0)[:, None].astype(_F)
        h, judged = self._token_states(self._recall(history, guess, kind), self._slots[lanes, token])
        self._states, self._guess = h, guess
        classes = self._config.classes
        self._bonus, logits = judged[:, :2] * known, judged[:, 2 : 2 + classes]
        logits[np.arange(len(h)), self._readout.class_of[guess]] += self._bonus[:, 0]
        if self._side is not None:
            self._gates, self._asked = judged[:, 2 + classes : 4 + classes], self._which[lanes]
            logits = logits + self._gates[:, :1] * self._alike.classes[self._asked]
        mix = None
        if self._pointer is not None:
            position = self._first + token
            if position:
                came = history[:, 0]
                classes_came, slots_came = self._readout.class_of[came], self._readout.slot_of[came]
                self._pointer.tell(position - 1, lanes, classes_came, slots_came)
            judged = judged[:, -1 - 2 * self._pointer.width :]
            mix = self._pointer.aim(judged, position, lanes, classes)
        self._cdf = self._table(logits, mix)
        return self._cdf

    def _recall(self, history: np.ndarray, guess: np.ndarray, kind: np.ndarray) -> np.ndarray:
        """Rows of the tokens before, of their n-grams, and of the memory's guess and its kind, [m, R]."""
        bigram, trigram = ngram_rows(history, self._config.ngram_rows)
        known = (kind > 0)[:, None].astype(_F)
        return np.concatenate(
            [
                self._embed(history).reshape(len(history), -1),
                self._bigrams(bigram),
                self._trigrams(trigram),
                self._embed(guess) * known,
                self._kinds(kind),
            ],
            -1,
        )

    def _token_states(self, recent: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the tokens before say, [m, R], and the patch's states [m, L] -> states of the tokens [m, L]
        and what is read off them at once."""
        h = slots + self._recent(recent)
        for up, down in zip(self._ups, self._downs, strict=True):
            h = h + down(_square(up(h)))
        return h, self._judge(h)

    def _slot_logits_of(self, classes: np.ndarray) -> np.ndarray:
        return self._readout.slots(self._states, classes)

    def _table(self, logits: np.ndarray, mix: Mix | None) -> np.ndarray:
        return cumulative(logits, mix)

    def slot_table(self, classes: np.ndarray) -> np.ndarray:
        logits = self._slot_logits_of(classes)
        same = (self._readout.class_of[self._guess] == classes).astype(_F)
        logits[np.arange(len(classes)), self._readout.slot_of[self._guess]] += self._bonus[:, 1] * same
        if self._side is not None:
            logits = logits + self._gates[:, 1:2] * self._alike.slots(self._asked, classes)
        mix = None
        if self._pointer is not None:
            mix = self._pointer.given_class(self._cdf, classes, self._config.slots)
        return self._table(self._readout.gist_logits(logits, classes, self._detail), mix)

    def tokens(self, classes: np.ndarray, slots: np.ndarray) -> np.ndarray:
        return self._readout.token_of[classes, slots]

    def has_slots(self, classes: np.ndarray, detail: int) -> np.ndarray:
        return self._readout.limits[detail][classes] > 0

    def is_open(self, tokens: np.ndarray, detail: int) -> np.ndarray:
        return self._readout.is_open(tokens, detail)

    def rarer(self, tokens: np.ndarray, slots: np.ndarray) -> np.ndarray:
        return self._readout.token_of[self._readout.class_of[tokens], slots]

    def rare_table(
        self,
        tokens: np.ndarray,
        counts: np.ndarray,
        where: np.ndarray,
        detail: int,
        side: Side | None = None,
    ) -> np.ndarray:
        return cumulative(self._rare(tokens, counts, where, detail, side))

    def rare_best(
        self,
        tokens: np.ndarray,
        counts: np.ndarray,
        where: np.ndarray,
        detail: int,
        side: Side | None = None,
    ) -> np.ndarray:
        return self._rare(tokens, counts, where, detail, side).argmax(-1)

    def _rare(
        self, tokens: np.ndarray, counts: np.ndarray, where: np.ndarray, detail: int, side: Side | None
    ) -> np.ndarray:
        rows = [np.zeros((0, self._config.slots), _F)]
        if side is not None:
            leaning = self._decoder.about(side.vectors)
            alike = Alike(self._likeness, side.vectors)
        for lane, count in enumerate(counts.tolist()):
            here, at = tokens[lane, :count], where[lane, :count]
            if at.any():
                about = lift = None
                classes = self._readout.class_of[here[at]]
                if side is not None:
                    of = side.of[lane, : -(-count // self._patch)]
                    about, which = leaning[of], np.repeat(of, self._patch)[:count][at]
                states = self._decoder.states(here, at, detail, about)
                if side is not None:
                    lift = self._decoder.heed(states) * alike.slots(which, classes)
                rows.append(self._readout.rare_logits(states, classes, detail, lift))
        return np.concatenate(rows)
