"""Streams of blocks -> gists -> exact tokens, over whatever implementation of the networks is at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from colazip.config import ModelConfig
from colazip.lanes import Lanes
from colazip.memory import ORDERS
from colazip.side import Side

if TYPE_CHECKING:
    from colazip.nn.steps import Networks


def decode_gist(
    net: Networks,
    config: ModelConfig,
    lanes: Lanes,
    streams: Sequence[bytes],
    detail: int,
    side: Side | None = None,
) -> np.ndarray:
    """Gist tokens of all lanes, int64 [L, P * K], zero behind a lane's end. streams: the gist stream of each
    block. side: what they were coded given, if anything."""
    if net.on_gpu is not None:
        return net.on_gpu.decode_gist(lanes, streams, detail, side)
    patch = config.patch
    decoder = net.streams(streams)
    longest = int(lanes.patches.max(initial=0))
    # Padding in front: the tokens before the first.
    tokens = np.zeros((len(lanes), ORDERS + longest * patch), np.int64)
    memory = net.memory(len(streams))
    net.start(len(lanes), detail, side)
    for i in range(longest):
        n = lanes.active_patches(i)
        here = ORDERS + i * patch
        net.context(i, tokens[:n, max(0, here - patch) : max(patch, here)])
        for k in range(patch):
            at = i * patch + k
            m = lanes.active(at)
            if not m:
                break
            history = tokens[:m, at : at + ORDERS][:, ::-1]
            guess, kind = memory.guess(lanes.block[:m], history)
            order = lanes.by_block(m)
            blocks = lanes.block[order]
            table = net.class_table(k, order, history[order], guess[order], kind[order])
            classes = decoder.decode(blocks, table)
            slots = np.zeros(m, np.int64)
            said = np.flatnonzero(net.has_slots(classes, detail))
            if len(said):
                slots[said] = decoder.decode(blocks[said], net.slot_table(classes)[said])
            tokens[order, ORDERS + at] = net.tokens(classes, slots)
            memory.learn(tokens[:m, ORDERS + at])
    decoder.finish()
    return tokens[:, ORDERS:]


def decode_exact(
    net: Networks,
    lanes: Lanes,
    gist: np.ndarray,
    streams: Sequence[bytes],
    detail: int,
    batch: int,
    side: Side | None = None,
) -> list[np.ndarray]:
    """Exact tokens of every lane, int64 [T] each. gist: what `decode_gist` gave. streams: the exact stream of
    each block. batch: lanes that pass the decoder together. side: as `decode_gist` takes it."""
    if net.on_gpu is not None:
        return net.on_gpu.decode_exact(lanes, gist, streams, detail, batch, side)
    decoder = net.streams(streams)
    tokens = gist.copy()
    for lo, hi, where, given in open_tokens(net, lanes, gist, detail, batch, side):
        here = gist[lo:hi, : where.shape[1]]
        table = net.rare_table(here, lanes.count[lo:hi], where, detail, given)
        rows, columns = np.nonzero(where)
        order = np.argsort(lanes.block[lo:hi][rows], kind="stable")
        slots = np.empty(len(rows), np.int64)
        slots[order] = decoder.decode(lanes.block[lo:hi][rows[order]], table[order])
        tokens[lo + rows, columns] = net.rarer(here[rows, columns], slots)
    decoder.finish()
    return [tokens[i, : lanes.count[i]] for i in range(len(lanes))]


def read_tokens(
    net: Networks,
    lanes: Lanes,
    gist: np.ndarray,
    detail: int,
    batch: int,
    side: Side | None = None,
) -> list[np.ndarray]:
    """The likeliest tokens behind the gist of every lane, int64 [T] each. side: what it was coded given, if
    anything."""
    tokens = gist.copy()
    for lo, hi, where, given in open_tokens(net, lanes, gist, detail, batch, side):
        here = gist[lo:hi, : where.shape[1]]
        rows, columns = np.nonzero(where)
        slots = net.rare_best(here, lanes.count[lo:hi], where, detail, given)
        tokens[lo + rows, columns] = net.rarer(here[rows, columns], slots)
    return [tokens[i, : lanes.count[i]] for i in range(len(lanes))]


def open_tokens(
    net: Networks, lanes: Lanes, gist: np.ndarray, detail: int, batch: int, side: Side | None
) -> Iterator[tuple[int, int, np.ndarray, Side | None]]:
    """(first lane, end, which of their tokens are open, bool [B, P * K], what they were coded given) of
    batches that have any."""
    patch = gist.shape[1] // max(1, int(lanes.patches.max(initial=0)))
    real = np.arange(gist.shape[1])[None] < lanes.count[:, None]
    where = net.is_open(gist, detail) & real
    for lo in range(0, len(lanes), batch):
        hi, patches = min(lo + batch, len(lanes)), int(lanes.patches[lo])
        if where[lo:hi].any():
            given = None if side is None else side.lanes(lo, hi, patches)
            yield lo, hi, where[lo:hi, : patches * patch], given
