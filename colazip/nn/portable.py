"""The networks that read an archive, in NumPy alone: the second implementation of the exact layers.

What is stored comes back through this module exactly as through `colazip.nn.exact`, and without loading
torch. For a few lanes it is also the faster one: an operation of NumPy costs less to start than one of torch.
Products run in float32 through NumPy's BLAS; operands are integers, so every sum is exact in any order.
Every step below repeats the operations of its counterpart one by one: see `colazip.nn.exact` for why.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from colazip.config import ModelConfig, StackConfig
from colazip.nn.grid import (
    ATTENTION_TABLE,
    FREQUENCY_TABLE,
    GRID,
    LEVEL,
    PLANE,
    PRECISION,
    VALUE_STEPS,
    alibi_slopes,
    cell_index,
    ngram_rows,
)
from colazip.vectors import RowSums

_F = np.float32
_TINY = _F(2.0**-121)
_ONE = _F(1.0)
_TEMPERATURE_UNIT = _F(1e-4)
_STEPS = _F(32.0)
_LN2 = 0.6931472


def quantize_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[..., K] -> (integers in float32 [..., K], scale [..., 1])."""
    top = np.abs(x).max(-1, keepdims=True)
    top = np.where(top >= _TINY, top, _ONE)
    return np.rint(x * ((_ONE / top) * _F(GRID))), top / _F(GRID)


def _inverse_rms(q: np.ndarray) -> np.ndarray:
    squares = np.maximum((q * q).sum(-1, keepdims=True), _ONE)
    return _ONE / np.sqrt((squares / _F(q.shape[-1])).astype(np.float64)).astype(_F)


def integer_softmax(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integer weights [..., N] of log2 scores and their sum [..., 1]."""
    top = scores.max(-1, keepdims=True)
    step = np.minimum(np.rint((top - scores) * _STEPS), _F(len(ATTENTION_TABLE) - 1))
    weights = ATTENTION_TABLE[step.astype(np.int32)]
    return weights, weights.sum(-1, keepdims=True)


def cumulative(logits: np.ndarray) -> np.ndarray:
    """Logits float32 [N, A] in log2 units -> cumulative integer frequencies int32 [N, A + 1] up to
    2**PRECISION."""
    count = logits.shape[-1]
    top = logits.max(-1, keepdims=True)
    step = np.minimum(np.rint((top - logits) * _STEPS), _F(len(FREQUENCY_TABLE) - 1))
    weights = FREQUENCY_TABLE[step.astype(np.int32)].astype(np.float64)
    share = (1.0 / weights.sum(-1, keepdims=True)) * float(2**PRECISION - count)
    table = np.zeros((len(logits), count + 1), np.int32)
    freq = np.floor(weights * share).astype(np.int32) + 1
    freq[:, 0] += 2**PRECISION - freq.sum(-1, dtype=np.int32)
    np.cumsum(freq, -1, dtype=np.int32, out=table[:, 1:])
    return table


def _square(x: np.ndarray) -> np.ndarray:
    x = np.maximum(x, _F(0.0))
    return x * x


class Weights:
    """Shipped tensors by name, as NumPy arrays."""

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix

    def under(self, name: str) -> Weights:
        return Weights(self._tensors, f"{self._prefix}{name}.")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._prefix + name]


class Linear:
    """y = W x, or W (x / rms(x)) with norm=True. [..., K] -> [..., M]."""

    def __init__(self, weights: Weights, *, norm: bool = False) -> None:
        self._matrix = np.ascontiguousarray(weights["q"].astype(_F).T)
        self._scale = np.ascontiguousarray(weights["scale"][:, 0])
        self._norm = norm

    def __call__(self, x: np.ndarray) -> np.ndarray:
        q, scale = quantize_rows(x)
        factor = _inverse_rms(q) if self._norm else scale
        return q @ self._matrix * factor * self._scale


class Embedding:
    """Index [...] -> [..., D]."""

    def __init__(self, weights: Weights) -> None:
        self._q, self._scale = weights["q"], weights["scale"]

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

    def __init__(self, weights: Weights, config: StackConfig, *, causal: bool) -> None:
        self._heads, self._causal = config.heads, causal
        self._qkv = Linear(weights.under("qkv"), norm=True)
        self._out = Linear(weights.under("out"))
        self._up = Linear(weights.under("up"), norm=True)
        self._down = Linear(weights.under("down"))
        self._temperature = (weights["temperature"] * _TEMPERATURE_UNIT)[:, None]
        self._slopes = alibi_slopes(config.heads)[:, None]

    def _project(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[N, D] -> integer queries, keys, values [N, H, W]."""
        qkv = self._qkv(x).reshape(len(x), 3, self._heads, -1)
        both, _ = quantize_rows(qkv[:, :2])
        value = np.rint(np.clip(qkv[:, 2] * _F(VALUE_STEPS), _F(-127.0), _F(127.0)))
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
        distance = np.arange(position, -1, -1, dtype=_F)[None]
        scores = (keys @ q[..., None])[..., 0] * self._temperature - self._slopes * distance
        weights, total = integer_softmax(scores)
        mixed = (weights[:, :, None] @ values)[:, :, 0] / (total * _F(VALUE_STEPS))
        return self._finish(x, mixed.reshape(x.shape))

    def forward(self, x: np.ndarray) -> np.ndarray:
        """All positions of one lane: [P, D] -> [P, D]."""
        q, k, v = (part.transpose(1, 0, 2) for part in self._project(x))
        at = np.arange(len(x))
        distance = np.abs(at[:, None] - at[None]).astype(_F)
        scores = (q @ k.transpose(0, 2, 1)) * self._temperature[..., None] - self._slopes[
            ..., None
        ] * distance
        if self._causal:
            scores = np.where(at[None] > at[:, None], _F(-np.inf), scores)
        weights, total = integer_softmax(scores)
        mixed = (weights @ v) / (total * _F(VALUE_STEPS))
        return self._finish(x, mixed.transpose(1, 0, 2).reshape(x.shape))


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


def _ternary(plane: np.ndarray) -> np.ndarray:
    return np.concatenate([plane, np.abs(plane), np.ones_like(plane[..., :1])], -1)


class Readout:
    """Token states -> class logits, then slot logits of a class."""

    def __init__(self, weights: Weights) -> None:
        self._classes = Linear(weights.under("classes"), norm=True)
        slots = weights.under("slots")
        self._slots, self._slot_scale = slots["q"], slots["scale"][..., 0]
        self.class_of, self.slot_of = weights["class_of"], weights["slot_of"]
        self.token_of = weights["token_of"].astype(np.int64)

    def classes(self, states: np.ndarray) -> np.ndarray:
        """[N, L] -> [N, classes]."""
        return self._classes(states)

    def slots(self, states: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """[N, L], class int64 [N] -> [N, slots]."""
        q, _ = quantize_rows(states)
        products = (self._slots[classes].astype(_F) @ q[..., None])[..., 0]
        return products * _inverse_rms(q) * self._slot_scale[classes]

    def best(self, states: np.ndarray, beam: int = 4) -> np.ndarray:
        """The likeliest token of each state [N, L] -> int64 [N], searched in the `beam` likeliest classes."""
        logits = self.classes(states)
        order = np.argsort(-logits, axis=-1, kind="stable")[:, :beam]
        score = np.full(len(states), -np.inf)
        token = np.zeros(len(states), np.int64)
        for j in range(order.shape[1]):
            classes = order[:, j]
            inner = self.slots(states, classes)
            slot = inner.argmax(-1)
            top = inner.max(-1)
            rest = np.log(np.exp((inner - top[:, None]) * _LN2).sum(-1)) / _LN2
            value = np.take_along_axis(logits, classes[:, None], 1)[:, 0] - rest
            token = np.where(value > score, self.token_of[classes, slot], token)
            score = np.maximum(value, score)
        return token


class PortableNetworks:
    """`colazip.nn.steps.Networks` in NumPy."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> None:
        root = Weights(tensors, "vae.")
        self._config, self._patch, self._channels = config, config.patch, config.channels
        self._embed = Embedding(root.under("embed"))
        context = root.under("context")
        self._context_enter = Linear(context.under("enter"))
        self._context_stack = Stack(context.under("stack"), config.context, causal=True)
        self._context_mix = [Linear(context.under(f"mix.{k}")) for k in range(1, config.patch)]
        self._context_heads = [
            [Linear(context.under(f"heads.{k}.{i}"), norm=i != 1) for i in range(3)]
            for k in range(config.patch)
        ]
        refiner = root.under("refiner")
        self._refiner_enter = Linear(refiner.under("enter"))
        self._refiner_stack = Stack(refiner.under("stack"), config.refiner, causal=False)
        self._refiner_leave = Linear(refiner.under("leave"), norm=True)
        decoder = root.under("decoder")
        self._thresholds = np.arange(-LEVEL, LEVEL, dtype=_F)
        self._decoder_enter = Linear(decoder.under("enter"))
        self._decoder_stack = Stack(decoder.under("stack"), config.decoder, causal=False)
        self._decoder_slots = Linear(decoder.under("slots"), norm=True)
        self._decoder_up = Linear(decoder.under("up"), norm=True)
        self._decoder_down = Linear(decoder.under("down"))
        exact = root.under("exact")
        self._exact_tokens = Linear(exact.under("enter_tokens"))
        self._exact_features = Linear(exact.under("enter_features"), norm=True)
        self._exact_stack = Stack(exact.under("stack"), config.exact, causal=True)
        self._exact_slots = Linear(exact.under("slots"), norm=True)
        self._bigrams = Embedding(exact.under("bigrams"))
        self._trigrams = Embedding(exact.under("trigrams"))
        self._kinds = Embedding(exact.under("kinds"))
        self._recent = Linear(exact.under("recent"))
        self._ups = [Linear(exact.under(f"ups.{i}"), norm=True) for i in range(2)]
        self._downs = [Linear(exact.under(f"downs.{i}")) for i in range(2)]
        self._trust = Linear(exact.under("trust"), norm=True)
        self._readout = Readout(root.under("readout"))

    def start_coarse(self, lanes: int) -> None:
        self._caches = self._context_stack.caches(lanes)

    def coarse_context(self, position: int, previous: np.ndarray) -> None:
        x = _ternary(previous) if position else np.zeros((len(previous), 2 * previous.shape[1] + 1), _F)
        self._context = self._context_stack.step(self._context_enter(x), position, self._caches)

    def coarse_table(self, token: int, known: np.ndarray) -> np.ndarray:
        x = self._context[: len(known)]
        up, down, last = self._context_heads[token]
        if token:
            x = x + self._context_mix[token - 1](_ternary(known))
        x = x + down(_square(up(x)))
        return cumulative(last(x))

    def fine_table(self, coarse: np.ndarray, counts: np.ndarray) -> np.ndarray:
        rows = []
        size = PLANE**self._channels
        cells = cell_index(coarse, self._channels).reshape(len(coarse), -1)
        for lane, count in enumerate(counts.tolist()):
            length = -(-count // self._patch)
            x = self._refiner_stack.forward(self._refiner_enter(_ternary(coarse[lane, :length])))
            table = self._refiner_leave(x).reshape(length * self._patch, size, size)[:count]
            rows.append(table[np.arange(count), cells[lane, :count]])
        return cumulative(np.concatenate(rows))

    def features(self, levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
        features = np.zeros((*levels.shape[:2], self._config.decoder.width), _F)
        for lane, count in enumerate(counts.tolist()):
            length = -(-count // self._patch)
            here = levels[lane, :length]
            hinges = np.maximum(here[..., None] - self._thresholds, _F(0.0)).reshape(length, -1)
            x = np.concatenate([hinges, np.ones_like(here[:, :1])], -1)
            features[lane, :length] = self._decoder_stack.forward(self._decoder_enter(x))
        return features

    def read(self, features: np.ndarray) -> np.ndarray:
        h = self._decoder_slots(features).reshape(len(features) * self._patch, -1)
        h = h + self._decoder_down(_square(self._decoder_up(h)))
        return self._readout.best(h).reshape(len(features), self._patch)

    def start_exact(self, lanes: int) -> None:
        self._caches = self._exact_stack.caches(lanes)

    def exact_context(self, position: int, features: np.ndarray, previous: np.ndarray) -> None:
        if position:
            before = self._embed(previous).reshape(len(previous), -1)
        else:
            before = np.zeros((len(previous), self._patch * self._config.embedding), _F)
        x = self._exact_tokens(before) + self._exact_features(features)
        x = self._exact_stack.step(x, position, self._caches)
        self._slots = self._exact_slots(x).reshape(len(x), self._patch, -1)

    def class_table(
        self, token: int, lanes: np.ndarray, history: np.ndarray, guess: np.ndarray, kind: np.ndarray
    ) -> np.ndarray:
        bigram, trigram = ngram_rows(history, self._config.ngram_rows)
        known = (kind > 0)[:, None].astype(_F)
        recent = np.concatenate(
            [
                self._embed(history).reshape(len(history), -1),
                self._bigrams(bigram),
                self._trigrams(trigram),
                self._embed(guess) * known,
                self._kinds(kind),
            ],
            -1,
        )
        h = self._slots[lanes, token] + self._recent(recent)
        for up, down in zip(self._ups, self._downs, strict=True):
            h = h + down(_square(up(h)))
        self._states, self._guess = h, guess
        self._bonus = self._trust(h) * known
        logits = self._readout.classes(h)
        logits[np.arange(len(h)), self._readout.class_of[guess]] += self._bonus[:, 0]
        return cumulative(logits)

    def slot_table(self, classes: np.ndarray) -> np.ndarray:
        logits = self._readout.slots(self._states, classes)
        same = (self._readout.class_of[self._guess] == classes).astype(_F)
        logits[np.arange(len(classes)), self._readout.slot_of[self._guess]] += self._bonus[:, 1] * same
        return cumulative(logits)

    def tokens(self, classes: np.ndarray, slots: np.ndarray) -> np.ndarray:
        return self._readout.token_of[classes, slots]


class PortableVectors:
    """Search sums of texts, as `TextVAE.encode`, `SearchHead` and `RowSums` compute them."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, np.ndarray], rows: RowSums) -> None:
        self._patch = config.patch
        encoder, search = Weights(tensors, "vae.").under("encoder"), Weights(tensors, "search.")
        self._embed = Embedding(Weights(tensors, "vae.").under("embed"))
        self._enter = Linear(encoder.under("patch"))
        self._stack = Stack(encoder.under("stack"), config.encoder, causal=False)
        self._states = Linear(search.under("states"), norm=True)
        self._rows = rows
        self.silent = not tensors["search.states.q"].any()  # the sums read no network

    def sums(self, tokens: np.ndarray) -> np.ndarray:
        """tokens int64 [T] of one segment -> float64 [D], a sum on the search head's grid."""
        rows = self._rows.sums(tokens)
        if self.silent:
            return rows
        padded = np.zeros(-(-len(tokens) // self._patch) * self._patch, np.int64)
        padded[: len(tokens)] = tokens
        x = self._embed(padded).reshape(len(padded) // self._patch, -1)
        states = _on_grid(self._states(self._stack.forward(self._enter(x))))
        return rows + states.astype(np.float64).sum(0)


def _on_grid(x: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(x, _F(-127.0), _F(127.0)) * _F(256.0)) / _F(256.0)
