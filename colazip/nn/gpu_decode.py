"""Streams of blocks -> gists -> exact tokens on a GPU, where nothing waits for the host: `colazip.decode`,
which explains it, in the networks' own tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from colazip.decode import open_tokens
from colazip.entropy import encode_streams
from colazip.lanes import Lanes
from colazip.memory import ORDERS
from colazip.nn.exact import cumulative
from colazip.nn.kernels import DeviceMemory, DeviceStreams, Rows
from colazip.nn.steps import TorchNetworks
from colazip.side import Side


class Decoding:
    """Decoding over networks on their device: arguments and results as in `colazip.decode`."""

    def __init__(self, net: TorchNetworks) -> None:
        self._net = net

    def decode_gist(
        self, lanes: Lanes, streams: Sequence[bytes], detail: int, side: Side | None = None
    ) -> np.ndarray:
        net, device = self._net, self._net.device
        readout, patch = net.vae.readout, net.vae.config.patch
        rows = Rows(lanes.block, len(streams), device)
        decoder = DeviceStreams(streams, device)
        memory = DeviceMemory(rows, torch.from_numpy(lanes.block).to(device))
        active = torch.from_numpy(_active(lanes, len(streams))).to(device)
        longest = int(lanes.patches.max(initial=0))
        tokens = torch.zeros(len(lanes), ORDERS + longest * patch, dtype=torch.int64, device=device)
        said = readout.limits[detail] > 0
        net.start(len(lanes), detail, side)
        for i in range(longest):
            n = lanes.active_patches(i)
            here = ORDERS + i * patch
            net.advance(i, tokens[:n, max(0, here - patch) : max(patch, here)])
            for k in range(patch):
                at = i * patch + k
                m = lanes.active(at)
                if not m:
                    break
                history = tokens[:m, at : at + ORDERS].flip(1)
                guess, kind = memory.guess(tokens, at, m)
                cdf = net.class_cdf(k, history, guess, kind)
                classes = decoder.decode_rows(cdf, rows, active[at])
                cdf = net.slot_cdf(classes)
                slots = decoder.decode_rows(cdf, rows, active[at], said[classes])
                came = readout.token_of[classes, slots]
                tokens[:m, ORDERS + at] = came
                memory.learn(came, active[at])
        found = tokens[:, ORDERS:].cpu().numpy()
        decoder.finish()
        return found

    def decode_exact(
        self,
        lanes: Lanes,
        gist: np.ndarray,
        streams: Sequence[bytes],
        detail: int,
        batch: int,
        side: Side | None = None,
    ) -> list[np.ndarray]:
        net, tokens = self._net, gist.copy()
        decoder = DeviceStreams(streams, net.device)
        for lo, hi, where, given in open_tokens(net, lanes, gist, detail, batch, side):
            here = gist[lo:hi, : where.shape[1]]
            lane, column = np.nonzero(where)
            rows = Rows(lanes.block[lo:hi][lane], len(streams), net.device)
            cdf = cumulative(net.rare_logits(here, lanes.count[lo:hi], where, detail, given))
            slots = decoder.decode_rows(cdf, rows, torch.from_numpy(rows.count).to(net.device))
            tokens[lo + lane, column] = net.rarer(here[lane, column], slots.cpu().numpy())
        decoder.finish()
        return [tokens[i, : lanes.count[i]] for i in range(len(lanes))]


def _active(lanes: Lanes, blocks: int) -> np.ndarray:
    """How many lanes of each block have more than t tokens: int32 [T, blocks]."""
    ends = np.zeros((int(lanes.count.max(initial=0)) + 1, blocks), np.int32)
    np.add.at(ends, (lanes.count, lanes.block), 1)
    return np.ascontiguousarray(ends[::-1].cumsum(0, dtype=np.int32)[::-1][1:])


def try_out(device: torch.device) -> None:
    """Runs all kernels once."""
    (stream,) = encode_streams([(np.zeros(1, np.int64), np.full(1, 1 << 19))])
    rows = Rows(np.zeros(1, np.int64), 1, device)
    one = torch.ones(1, dtype=torch.int32, device=device)
    decoder = DeviceStreams([stream], device)
    cdf = torch.tensor([[0, 1 << 19, 1 << 20]], dtype=torch.int32, device=device)
    came = decoder.decode_rows(cdf, rows, one, one > 0)
    decoder.finish()
    memory = DeviceMemory(rows, torch.zeros(1, dtype=torch.int64, device=device))
    memory.guess(torch.zeros(1, ORDERS + 1, dtype=torch.int64, device=device), 0, 1)
    memory.learn(came, one)
