"""Streams of blocks -> latents -> tokens, over whatever implementation of the networks is at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from colazip.config import ModelConfig
from colazip.entropy import StreamDecoder
from colazip.lanes import Lanes
from colazip.memory import ORDERS, BlockMemory
from colazip.nn.grid import cell_plane

if TYPE_CHECKING:
    from colazip.nn.steps import Networks


def decode_levels(
    net: Networks, config: ModelConfig, lanes: Lanes, streams: Sequence[bytes], batch: int
) -> np.ndarray:
    """Latent levels of all lanes, float32 [L, P, K * C], zero behind a lane's end.

    streams: the gist stream of each block. batch: lanes that pass the refiner together.
    """
    patch, channels = config.patch, config.channels
    decoder = StreamDecoder(streams)
    longest = int(lanes.patches.max(initial=0))
    coarse = np.zeros((len(lanes), longest, patch * channels), np.float32)
    net.start_coarse(len(lanes))
    for i in range(longest):
        n = lanes.active_patches(i)
        net.coarse_context(i, coarse[:n, max(0, i - 1)])
        for k in range(patch):
            m = lanes.active(i * patch + k)
            if not m:
                break
            order = lanes.by_block(m)
            table = net.coarse_table(k, coarse[:m, i, : k * channels])
            found = decoder.decode(lanes.block[order], table[order])
            coarse[order, i, k * channels : (k + 1) * channels] = cell_plane(found, channels)
    levels = np.zeros_like(coarse)
    for lo, hi, width in _batches(lanes, batch):
        counts = lanes.count[lo:hi]
        table = net.fine_table(coarse[lo:hi, :width], counts)
        starts = np.cumsum(counts) - counts
        order = np.argsort(lanes.block[lo:hi], kind="stable")
        rows = np.concatenate([np.arange(starts[j], starts[j] + counts[j]) for j in order])
        streams_of = np.repeat(lanes.block[lo:hi][order], counts[order])
        found = np.empty(len(rows), np.int64)
        found[rows] = decoder.decode(streams_of, table[rows])
        real = np.arange(width * patch)[None] < counts[:, None]
        fine = np.zeros((hi - lo, width * patch, channels), np.float32)
        fine[real] = cell_plane(found, channels)
        levels[lo:hi, :width] = coarse[lo:hi, :width] * 3.0 + fine.reshape(hi - lo, width, -1)
    decoder.finish()
    return levels


def decode_tokens(
    net: Networks, config: ModelConfig, lanes: Lanes, levels: np.ndarray, streams: Sequence[bytes], batch: int
) -> list[np.ndarray]:
    """Exact tokens of every lane, int64 [T] each. streams: the exact stream of each block."""
    patch = config.patch
    decoder = StreamDecoder(streams)
    longest = int(lanes.patches.max(initial=0))
    parts = [
        net.features(levels[lo:hi, :width], lanes.count[lo:hi]) for lo, hi, width in _batches(lanes, batch)
    ]
    # Padding in front: the tokens before the first.
    tokens = np.zeros((len(lanes), ORDERS + longest * patch), np.int64)
    memory = BlockMemory(len(streams))
    net.start_exact(len(lanes))
    for i in range(longest):
        n = lanes.active_patches(i)
        here = ORDERS + i * patch
        net.exact_context(i, _column(parts, n, i), tokens[:n, max(0, here - patch) : max(patch, here)])
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
            slots = decoder.decode(blocks, net.slot_table(classes))
            tokens[order, ORDERS + at] = net.tokens(classes, slots)
            memory.learn(tokens[:m, ORDERS + at])
    decoder.finish()
    return [tokens[i, ORDERS : ORDERS + lanes.count[i]] for i in range(len(lanes))]


def read_tokens(net: Networks, lanes: Lanes, levels: np.ndarray, batch: int) -> list[np.ndarray]:
    """Tokens of the gist reading of every lane, int64 [T] each."""
    result = []
    for lo, hi, width in _batches(lanes, batch):
        counts, patches = lanes.count[lo:hi], lanes.patches[lo:hi]
        features = net.features(levels[lo:hi, :width], counts)
        rows = np.repeat(np.arange(hi - lo), patches)
        columns = np.concatenate([np.arange(p) for p in patches])
        tokens = net.read(features[rows, columns])
        ends = np.cumsum(patches)
        for lane in range(hi - lo):
            mine = tokens[ends[lane] - patches[lane] : ends[lane]].reshape(-1)
            result.append(mine[: counts[lane]])
    return result


def _batches(lanes: Lanes, batch: int) -> Iterator[tuple[int, int, int]]:
    """(first lane, end, patches of the longest) of batches of lanes."""
    for lo in range(0, len(lanes), batch):
        yield lo, min(lo + batch, len(lanes)), int(lanes.patches[lo])


def _column(parts: Sequence[Any], n: int, position: int) -> Any:
    """Features [n, W] of the first n lanes at a patch, from batches of lanes [B, P, W]."""
    columns, left = [], n
    for features in parts:
        if left <= 0:
            break
        columns.append(features[: min(left, len(features)), position])
        left -= len(features)
    if len(columns) == 1:
        return columns[0]
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    import torch

    return torch.cat(columns)
