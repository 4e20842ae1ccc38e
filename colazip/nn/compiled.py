"""The networks that read an archive, for a few lanes, in loops that Numba compiles. No torch.

What `colazip.nn.portable` says, bit for bit. There a lane waits for some hundred operations of NumPy at each
token; here a step of the coder is one call, and so are a token's classes and its slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from colazip.config import ModelConfig
from colazip.entropy import StreamDecoder
from colazip.memory import BlockMemory
from colazip.nn import portable
from colazip.nn.exact_loops import (
    activate,
    attend_step,
    cumulative,
    multiply,
    pick_rows,
    project,
    quantize_rows,
    scale_rows,
)
from colazip.nn.grid import ATTENTION_TABLE, FREQUENCY_TABLE, TABLE_STEPS, alibi_slopes
from colazip.nn.loops import LoopMemory, LoopStreams, loop
from colazip.side import Side

_F = np.float32
_ROOM = 32  # positions that caches begin with


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


@loop
def _linear(x, weight, scale, norm, y):  # type: ignore[no-untyped-def]
    """y = W x, or W (x / rms(x)): [n, K] -> [n, M]."""
    q, factor = np.empty(x.shape, np.int8), np.empty(len(x), np.float32)
    product = np.empty(y.shape, np.int32)
    quantize_rows(x, q, factor, norm)
    multiply(q, weight, product)
    scale_rows(product, factor, scale, y)


@loop
def _add_mlp(x, up, up_scale, down, down_scale):  # type: ignore[no-untyped-def]
    """x + down(relu(up(x)) ** 2), in place: [n, D]."""
    q, factor, inner_scale = (
        np.empty(x.shape, np.int8),
        np.empty(len(x), np.float32),
        np.empty(len(x), np.float32),
    )
    product, back = np.empty((len(x), len(up)), np.int32), np.empty(x.shape, np.int32)
    inner, added = np.empty(product.shape, np.int8), np.empty(x.shape, np.float32)
    quantize_rows(x, q, factor, True)
    multiply(q, up, product)
    activate(product, factor, up_scale, inner, inner_scale)
    multiply(inner, down, back)
    scale_rows(back, inner_scale, down_scale, added)
    x += added


@loop
def _advance(x, position, keys, values, qkv, out, up, down, scales, factor, slopes, table):  # type: ignore[no-untyped-def]
    """A position of all blocks of a stack: x [n, D], in place. keys, values: int8 [blocks, lanes, H, room,
    W]; matrices of all blocks [blocks, ...], and their scales in the same order."""
    lanes, width = x.shape
    heads, size = keys.shape[2], keys.shape[4]
    qkv_scale, out_scale, up_scale, down_scale = scales
    q, by = np.empty(x.shape, np.int8), np.empty(lanes, np.float32)
    product, query = np.empty((lanes, 3 * width), np.int32), np.empty((lanes, heads, size), np.int8)
    mixed, added = np.empty(x.shape, np.float32), np.empty(x.shape, np.float32)
    own = query.reshape(lanes, heads, 1, size)
    for i in range(len(keys)):
        quantize_rows(x, q, by, True)
        multiply(q, qkv[i], product)
        here = slice(position, position + 1)
        project(product, by, qkv_scale[i], 0, own, keys[i, :lanes, :, here], values[i, :lanes, :, here])
        attend_step(query, keys[i], values[i], position + 1, factor[i], slopes, table, mixed)
        _linear(mixed, out[i], out_scale[i], False, added)
        x += added
        _add_mlp(x, up[i], up_scale[i], down[i], down_scale[i])


@loop
def _row(table, scale, index, y):  # type: ignore[no-untyped-def]
    for j in range(table.shape[1]):
        y[j] = np.float32(table[index, j]) * scale[index]


@loop
def _recall(history, guess, kind, tables, scales, recent):  # type: ignore[no-untyped-def]
    """As `PortableNetworks._recall`; tables and scales: of tokens, bigrams, trigrams, kinds."""
    width, narrow, count = tables[0].shape[1], tables[1].shape[1], len(tables[1])
    for i in range(len(history)):
        out = recent[i]
        for k in range(3):
            _row(tables[0], scales[0], history[i, k], out[k * width :])
        one, two, three = history[i, 0], history[i, 1], history[i, 2]
        bigram = (one * 40503 + two * 30011 + 7) % count  # as `grid.ngram_rows`
        trigram = (one * 40503 + two * 30011 + three * 52711 + 11) % count
        _row(tables[1], scales[1], bigram, out[3 * width :])
        _row(tables[2], scales[2], trigram, out[3 * width + narrow :])
        at = 3 * width + 2 * narrow
        if kind[i] > 0:
            _row(tables[0], scales[0], guess[i], out[at:])
        else:
            out[at : at + width] = 0.0
        _row(tables[3], scales[3], kind[i], out[at + width :])


@loop
def _judge(recent, slots, enter, enter_scale, ups, downs, scales, judge, judge_scale, states, judged):  # type: ignore[no-untyped-def]
    """What the tokens before say, [n, R], and the patch's states [n, L] -> states of the tokens [n, L] and
    what `judge` makes of them [n, J]."""
    _linear(recent, enter, enter_scale, False, states)
    states += slots
    for i in range(len(ups)):
        _add_mlp(states, ups[i], scales[0][i], downs[i], scales[1][i])
    _linear(states, judge, judge_scale, True, judged)


@loop
def _slot_logits(states, weights, scale, classes, logits):  # type: ignore[no-untyped-def]
    q, factor = np.empty(states.shape, np.int8), np.empty(len(states), np.float32)
    quantize_rows(states, q, factor, True)
    pick_rows(q, weights, factor, classes, scale, True, logits)


def table(logits: np.ndarray) -> np.ndarray:
    """Cumulative integer frequencies of logits [N, A]: int32 [N, A + 1]."""
    cdf = np.empty((len(logits), logits.shape[1] + 1), np.int32)
    cumulative(logits, FREQUENCY_TABLE, cdf)
    return cdf


class _Matrices:
    """The matrices of a name in all blocks of a stack: q int8 [blocks, M, K], scale float32 [blocks, M]."""

    def __init__(self, tensors: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
        self.q = np.stack([tensors[f"{name}.q"] for name in names])
        self.scale = np.stack([tensors[f"{name}.scale"][:, 0] for name in names])


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
        self._factor = temperature * _F(1e-4) * _F(TABLE_STEPS)
        self._slopes = alibi_slopes(shape.heads)
        ups, downs = (_Matrices(tensors, [f"{coder}.{n}.{i}" for i in range(2)]) for n in ("ups", "downs"))
        judges = [f"{coder}.trust", "vae.readout.classes"] + [f"{coder}.heed"] * bool(config.conditional)
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
            self._keys, self._values = (
                np.concatenate([old, np.zeros_like(old)], 3) for old in (self._keys, self._values)
            )
        _advance(
            x, position, self._keys, self._values, *self._stacked, self._factor, self._slopes, ATTENTION_TABLE
        )
        return x

    def follow(self, lane: int) -> None:
        for cache in (self._keys, self._values):
            cache[:] = cache[:, lane : lane + 1].copy()
        self._slots[:] = self._slots[lane].copy()

    def _recall(self, history: np.ndarray, guess: np.ndarray, kind: np.ndarray) -> np.ndarray:
        recent = np.empty((len(guess), self._token_nets[0].shape[1]), _F)
        _recall(history, guess, kind, *self._tables, recent)
        return recent

    def _token_states(self, recent: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        states = np.empty(slots.shape, _F)
        judged = np.empty((len(slots), len(self._token_nets[-1])), _F)
        _judge(recent, slots, *self._token_nets, states, judged)
        return states, judged

    def _slot_logits_of(self, classes: np.ndarray) -> np.ndarray:
        logits = np.empty((len(classes), self._config.slots), _F)
        _slot_logits(self._states, *self._slot_matrices, classes, logits)
        return logits

    def _table(self, logits: np.ndarray) -> np.ndarray:
        return table(logits)


def agrees() -> bool:
    """Whether the loops give what NumPy's operations give, for numbers of all sizes."""
    random = np.random.default_rng(0)
    x = (random.standard_normal((9, 192)) * 10.0 ** random.uniform(-3, 3, (9, 1))).astype(_F)
    x[3] = 0.0
    up, down = random.integers(-127, 128, (2, 192, 192)).astype(np.int8)
    scale = random.uniform(0.001, 0.01, (192, 1)).astype(_F)
    weights = portable.Weights({"up.q": up, "up.scale": scale, "down.q": down, "down.scale": scale}, "")
    outer, inner = portable.Linear(weights.under("up"), norm=True), portable.Linear(weights.under("down"))
    mine = x.copy()
    _add_mlp(mine, up, scale[:, 0].copy(), down, scale[:, 0].copy())
    theirs = x + inner(np.square(np.maximum(outer(x), _F(0.0))))
    logits = x[:, :128].copy()
    return np.array_equal(mine, theirs) and np.array_equal(table(logits), portable.cumulative(logits))
