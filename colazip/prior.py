"""What a diffusion prior does with sequences of vectors: denoise, fill in, continue, vary, score.

Nothing here knows of text: vectors are rows of float arrays [P, C]. `colazip.variations` reads the results as
text. A call takes many sequences and gives results in their order; the result of one depends on its place in
the call (which picks its noise), on the seed and the options, not on what else is in the call, up to the
rounding of float sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from colazip.errors import UsageError
from colazip.nn.dit import DiT, History, knowledge
from colazip.nn.entries import NOWHERE, EntryDiT
from colazip.sampling import Sampling

if TYPE_CHECKING:
    from colazip.codec import Codec

Vectors = np.ndarray  # float32 [P, C]
_CODEBOOK_BATCH = 4
_ROUNDS = 4  # in which missing entries of a codebook are named
_LAST_TIME = 0.98  # behind it the noise is far below the grain of any data worth a score


class Prior:
    """A trained DiT at work.

    grid: what the vectors hold: whole numbers within +-grid, to which results are rounded, or None for any
    numbers. batch_size: sequences that pass through the network together. Arrays that come back are float32.
    Methods raise UsageError on sequences that are not [P, C] for the network's C.
    """

    def __init__(self, network: DiT | EntryDiT, *, grid: int | None = None, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size}: must be at least 1")
        self.network, self.grid, self.batch_size = network.eval(), grid, batch_size

    @classmethod
    def from_codec(cls, codec: Codec) -> Prior:
        """The prior of a model, over latents of patches of tokens (`colazip.variations`). Raises
        ModelError."""
        network = codec.model.prior.to(codec.device)
        # Beliefs over a codebook take some thousand floats a part.
        at_once = min(codec.batch_size, _CODEBOOK_BATCH) if network.whole else codec.batch_size
        return cls(network, batch_size=at_once)

    def denoise(
        self,
        sequences: Sequence[Vectors],
        reach: float | Sequence[Vectors],
        options: Sampling | None = None,
    ) -> list[Vectors]:
        """Sequences drawn from what is possible: every value within `reach` of the one given.

        reach: half the width of the cell that a value is known by, one for all or an array a sequence; inf
        where nothing is known, 0 where the value is. The sample is held inside the cells at every step, by
        clamping the clean vectors that the network foresees.
        """
        reaches = [np.full(s.shape, reach, np.float32) for s in sequences] if np.isscalar(reach) else reach
        return self._sample(sequences, reaches, options or Sampling())  # type: ignore[arg-type]

    def infill(
        self, sequences: Sequence[Vectors], missing: Sequence[np.ndarray], options: Sampling | None = None
    ) -> list[Vectors]:
        """Sequences with the missing vectors (bool [P] each) drawn anew; the others come back as they are.

        Within a block the network sees what is known on both sides; of other blocks, those before. A network
        over entries of a codebook sees the whole sequence and draws nothing: it names the likeliest entries
        (`name`), whatever the options.
        """
        if isinstance(self.network, EntryDiT):
            return self._filled(self.network, sequences, missing)
        return self._sample(sequences, self._reaches(sequences, missing), options or Sampling())

    def generate(
        self, beginnings: Sequence[Vectors], count: int, options: Sampling | None = None
    ) -> list[Vectors]:
        """`count` vectors [count, C] that go on from each beginning ([0, C]: from nothing). A network over
        entries of a codebook draws those (`draw`)."""
        if count < 1:
            raise UsageError(f"{count} vectors: at least 1 can be generated")
        if isinstance(self.network, EntryDiT):
            return self._drawn_on(self.network, beginnings, count, options or Sampling())
        longer = [np.pad(b, ((0, count), (0, 0))) for b in beginnings]
        missing = [np.arange(len(s)) >= len(s) - count for s in longer]
        drawn = self._sample(longer, self._reaches(longer, missing), options or Sampling())
        return [s[len(s) - count :] for s in drawn]

    def variants(
        self, sequences: Sequence[Vectors], strength: float, options: Sampling | None = None
    ) -> list[Vectors]:
        """Sequences noised back to time 1 - strength of the flow and carried forward again, block by block.

        strength: 0 gives the sequences themselves, 1 starts from noise alone.
        """
        if not 0.0 <= strength <= 1.0:
            raise UsageError(f"strength {strength}: must lie between 0 and 1")
        if strength == 0.0:
            return [np.array(s, np.float32) for s in sequences]
        reaches = [np.full(s.shape, np.inf, np.float32) for s in sequences]
        return self._sample(sequences, reaches, options or Sampling(), start=1.0 - strength)

    @torch.inference_mode()
    def score(self, sequences: Sequence[Vectors], *, draws: int = 16, seed: int = 0) -> np.ndarray:
        """How likely each sequence is, float64 [N]: minus the bits a value that a variational bound gives, up
        to a constant of the data. Higher is likelier; compare scores of one prior only. A prior over entries
        gives `told_by_the_rest` of the nearest ones, with `draws` passes.

        The bound is the integral over time of the flow's squared error, t / (1 - t) of it at time t, which is
        the error of the noise over the log signal-to-noise ratio (arXiv 2107.00630). draws: times, evenly
        spread; the noise is the same for all sequences.
        """
        if draws < 1:
            raise UsageError(f"draws {draws}: must be at least 1")
        self._check(sequences)
        if isinstance(self.network, EntryDiT):
            entries = [self._nearest(self.network, s) for s in sequences]
            return self.told_by_the_rest(entries, draws) * (self.network.parts / self.network.channels)
        result = np.zeros(len(sequences))
        times = _LAST_TIME * (np.arange(draws) + 0.5) / draws
        for rows, data, valid in self._batches(sequences):
            network, total = self.network, torch.zeros(len(rows), device=data.device)
            history = torch.ones(len(rows), dtype=torch.bool, device=data.device)
            for draw, time in enumerate(times.tolist()):
                noise = self._noise([(seed, draw)], data).expand_as(data)
                noisy = (1 - time) * noise + time * data
                t = torch.full(valid.shape, time, device=data.device)
                error = (network(noisy, t, data, valid, history) - (data - noise)).square().mean(-1)
                total += (error * valid).sum(1) / valid.sum(1).clamp_min(1) * (time / (1 - time))
            result[rows] = -(total * (_LAST_TIME / draws)).cpu().numpy() / np.log(2.0)
        return result

    @torch.inference_mode()
    def chances(self, known: Sequence[np.ndarray], members: np.ndarray) -> Iterator[np.ndarray]:
        """What a prior over entries of a codebook says of each sequence: log2 of the probability of each
        entry, float32 [n, V], for all n parts that are not named.

        known: int64 [P, K], see `EntryDiT`; members: bool [S, V], the entries that each set holds. Raises
        UsageError if the prior is one over values.
        """
        network = self._over_entries()
        device = network.deviation.device
        sets = torch.from_numpy(members).to(device)
        for one in known:
            logs = network.chances(torch.from_numpy(np.asarray(one, np.int64)).to(device)[None], sets)
            yield (logs / np.log(2.0)).cpu().numpy()

    def name(
        self, known: Sequence[np.ndarray], members: np.ndarray, *, least: float = 0.0
    ) -> list[np.ndarray]:
        """Sequences with the likeliest entry in place of every part of which nothing is known: set 0, which
        has to hold all entries. Named in a few rounds, those that the prior is surest of first, so that the
        others can heed them.

        known, members: as of `chances`. least: where no entry has this probability in the end, the commonest
        one of all stands. Returns int64 [P, K] each. Raises UsageError.
        """
        everything, commonest = members.shape[1], int(self._over_entries().common.argmax())
        result = [np.array(one, np.int64) for one in known]
        for one in result:
            for left in range(_ROUNDS, 0, -1):
                missing = np.flatnonzero(one == everything)
                if not len(missing):
                    break
                (logs,) = self.chances([one], members)
                likely = logs[one[one >= everything] == everything]
                unsure = np.exp2(likely.max(1)) < least
                chosen = np.argsort(-likely.max(1), kind="stable")[: -(-len(missing) // left)]
                if left > 1:
                    chosen = chosen[~unsure[chosen]]
                named = np.where(unsure, commonest, likely.argmax(1))
                one.flat[missing[chosen]] = named[chosen]
        return result

    @torch.inference_mode()
    def draw(
        self, known: Sequence[np.ndarray], members: np.ndarray, options: Sampling | None = None
    ) -> list[np.ndarray]:
        """Sequences with an entry drawn for every part that is not named, by a prior over entries.

        Block after block, each given the finished ones before it (as in block diffusion, arXiv 2503.09573),
        in as many rounds as the options have steps, fewer where little of a block is open. Each round draws
        the parts that the prior is surest of, and the next is told them (as in arXiv 2202.04200). known,
        members: as of `chances`. Returns int64 [P, K] each. Raises UsageError.
        """
        network, chosen = self._over_entries(), options or Sampling()
        device = network.deviation.device
        sets, result = torch.from_numpy(members).to(device), [np.array(one, np.int64) for one in known]
        for i, one in enumerate(result):
            rng, past = np.random.default_rng((chosen.seed, i)), History(network.layers)
            for lo in range(0, len(one), network.block):
                block = one[lo : lo + network.block]
                rounds = math.ceil(chosen.steps * (block >= members.shape[1]).sum() / block.size)
                for left in range(rounds, 0, -1):
                    logs = self._block_chances(torch.from_numpy(block).to(device)[None], sets, past, chosen)
                    open_ = np.flatnonzero(block >= members.shape[1])
                    unsure = -(np.exp(logs) * logs).sum(1)
                    stay = np.argsort(unsure, kind="stable")[: -(-len(open_) // left)]
                    block.flat[open_[stay]] = _draw(logs[stay], chosen.temperature, rng)
                if lo + len(block) < len(one):
                    network.finish_entries(torch.from_numpy(block).to(device)[None], past)
        return result

    def _block_chances(self, block: Tensor, sets: Tensor, past: History, options: Sampling) -> np.ndarray:
        """Log probabilities of the entries of one block's open parts, float32 [n, V], by guidance."""
        network = self._over_entries()
        logs = network.block_chances(block, sets, past)
        if options.guidance != 1.0 and past.length:
            free = network.block_chances(block, sets, History(network.layers))
            logs = torch.log_softmax(free + options.guidance * (logs - free), -1)
        return logs.cpu().numpy()

    def _drawn_on(
        self, network: EntryDiT, beginnings: Sequence[Vectors], count: int, options: Sampling
    ) -> list[Vectors]:
        self._check(beginnings)
        codebook = network.codebook.cpu().numpy()
        known = [
            np.pad(self._nearest(network, b), ((0, count), (0, 0)), constant_values=len(codebook))
            for b in beginnings
        ]
        drawn = self.draw(known, np.ones((1, len(codebook)), bool), options)
        return [codebook[entries[-count:]].reshape(count, -1).astype(np.float32) for entries in drawn]

    def _filled(
        self, network: EntryDiT, sequences: Sequence[Vectors], missing: Sequence[np.ndarray]
    ) -> list[Vectors]:
        self._check(sequences)
        self._reaches(sequences, missing)
        codebook = network.codebook.cpu().numpy()
        known = [
            np.where(holes[:, None], len(codebook), self._nearest(network, sequence))
            for sequence, holes in zip(sequences, missing, strict=True)
        ]
        named = self.name(known, np.ones((1, len(codebook)), bool))
        return [
            np.where(holes[:, None], codebook[entries].reshape(sequence.shape), sequence).astype(np.float32)
            for entries, holes, sequence in zip(named, missing, sequences, strict=True)
        ]

    @staticmethod
    def _nearest(network: EntryDiT, sequence: Vectors) -> np.ndarray:
        """The entry nearest to each part of vectors [P, K * C]: int64 [P, K]."""
        vectors = torch.from_numpy(np.asarray(sequence, np.float32)).to(network.deviation.device)
        return network.nearest(vectors / network.deviation).cpu().numpy()

    @torch.inference_mode()
    def told_by_the_rest(self, entries: Sequence[np.ndarray], passes: int = 16) -> np.ndarray:
        """How well the parts of each sequence of entries of a codebook, int64 [P, K], tell one another: the
        mean over the parts of log2 of the probability of each given the others (a pseudo-likelihood),
        float64 [N].

        NOWHERE at the end is no part. passes: in each, every so many-th part is hidden. Raises UsageError if
        the prior is one over values.
        """
        everything = len(self._over_entries().table)
        members, result = np.ones((1, everything), bool), np.zeros(len(entries))
        for i, one in enumerate(entries):
            flat = np.asarray(one, np.int64).reshape(-1)
            count, total = int((flat != NOWHERE).sum()), 0.0
            for first in range(min(passes, count)):
                known = flat.copy()
                known[first:count:passes] = everything
                (logs,) = self.chances([known.reshape(one.shape)], members)
                total += float(np.take_along_axis(logs, flat[first:count:passes, None], 1).sum())
            result[i] = total / max(1, count)
        return result

    def _over_entries(self) -> EntryDiT:
        if not isinstance(self.network, EntryDiT):
            raise UsageError("this prior is over values and knows no entries")
        return self.network

    # -- sampling

    @staticmethod
    def _reaches(sequences: Sequence[Vectors], missing: Sequence[np.ndarray]) -> list[np.ndarray]:
        reaches = []
        for s, m in zip(sequences, missing, strict=True):
            if m.shape != s.shape[:1]:
                raise UsageError(f"a mask of shape {m.shape} for {len(s)} vectors: must be ({len(s)},)")
            reaches.append(np.broadcast_to(np.where(m[:, None], np.inf, 0.0), s.shape))
        return reaches

    @torch.inference_mode()
    def _sample(
        self,
        sequences: Sequence[Vectors],
        reaches: Sequence[np.ndarray],
        options: Sampling,
        *,
        start: float = 0.0,
    ) -> list[Vectors]:
        self._check(sequences)
        whole = self.network.whole
        if whole and options.guidance != 1.0:
            raise UsageError(
                f"guidance {options.guidance:g}: this model's prior hears a whole text at once, so there is"
                " no history to heed more; leave it out"
            )
        for s, r in zip(sequences, reaches, strict=True):
            if np.shape(r) != s.shape or not (np.asarray(r) >= 0).all():
                raise UsageError("a reach must be 0 or more, one for every value of its sequence")
        result: list[Vectors] = [np.zeros(0, np.float32)] * len(sequences)
        deviation = self.network.deviation
        for rows, data, valid in self._batches(sequences):
            reach = self._padded([np.asarray(reaches[i], np.float32) for i in rows], data.shape) / deviation
            noise = self._noise([(options.seed, i) for i in rows], data)
            size = max(1, data.shape[1]) if whole else self.network.block
            done = self._blocks(data, reach, valid, noise, options, start, size)
            drawn = (done * deviation).cpu().numpy()
            for i, values in zip(rows, drawn, strict=True):
                values = values[: len(sequences[i])]
                # Scaling by the deviation and back is inexact: whole numbers and known values are put right.
                values = values if self.grid is None else np.round(values)
                result[i] = np.where(np.asarray(reaches[i]) > 0, values, sequences[i]).astype(np.float32)
        return result

    def _blocks(
        self,
        data: Tensor,
        reach: Tensor,
        valid: Tensor,
        noise: Tensor,
        options: Sampling,
        start: float,
        size: int,
    ) -> Tensor:
        """One batch, block of `size` after block: all [B, P, C] in units of the deviation but valid bool
        [B, P]."""
        network = self.network
        limit = torch.inf if self.grid is None else (self.grid + 0.5) / network.deviation
        low, high = (data - reach).clamp_min(-limit), (data + reach).clamp_max(limit)
        past = History(network.layers)
        done = []
        for lo in range(0, data.shape[1], size):
            at = slice(lo, lo + size)
            if not (reach[:, at] > 0).any():  # nothing to draw
                drawn = data[:, at]
            else:
                known = knowledge(data[:, at], reach[:, at])
                there = None if valid[:, at].all() else valid[:, at]
                foresee = _Foresight(network, past, known, there, low[:, at], high[:, at], options.guidance)
                x = start * data[:, at] + (1.0 - start) * noise[:, at]
                drawn = integrate(foresee, x, start=start, steps=options.steps, solver=options.solver)
                if self.grid is not None:
                    drawn = self._round(drawn, low[:, at], high[:, at])
            if lo + size < data.shape[1]:
                network.finish(drawn, past)
            done.append(drawn)
        return torch.cat(done, 1) if done else data

    def _round(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The nearest vectors of the grid that lie in the cells."""
        deviation = self.network.deviation
        # A thousandth: bounds are sums of floats, a grid point must not fall out of its own cell.
        least, most = torch.ceil(low * deviation - 1e-3), torch.floor(high * deviation + 1e-3)
        return torch.round(x * deviation).clamp(least, torch.maximum(least, most)) / deviation

    def _check(self, sequences: Sequence[Vectors]) -> None:
        for s in sequences:
            if s.ndim != 2 or s.shape[1] != self.network.channels:
                raise UsageError(f"vectors of shape {s.shape}: this prior takes (P, {self.network.channels})")
            if not np.isfinite(s).all():
                raise UsageError("vectors must be finite numbers")

    def _batches(self, sequences: Sequence[Vectors]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(which sequences, vectors [B, P, C] in units of the deviation, valid bool [B, P])."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for lo in range(0, len(order), self.batch_size):
            rows = order[lo : lo + self.batch_size]
            longest = len(sequences[rows[-1]])
            data = self._padded(
                [sequences[i] for i in rows], torch.Size((len(rows), longest, self.network.channels))
            )
            lengths = torch.tensor([len(sequences[i]) for i in rows], device=data.device)
            valid = torch.arange(longest, device=data.device) < lengths[:, None]
            yield rows, data / self.network.deviation, valid

    def _padded(self, arrays: Sequence[np.ndarray], shape: torch.Size) -> Tensor:
        table = np.zeros(shape, np.float32)
        for row, values in enumerate(arrays):
            table[row, : len(values)] = values
        return torch.from_numpy(table).to(self.network.deviation.device)

    def _noise(self, seeds: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
        """Gaussian noise of the shape of `like` [B, P, C], each row from its own seed."""
        rows = [np.random.default_rng(s).standard_normal(like.shape[1:], np.float32) for s in seeds]
        return torch.from_numpy(np.stack(rows)).to(like.device)


@dataclass(frozen=True)
class _Foresight:
    """The clean block that the network foresees from a noisy one, held inside the known cells."""

    network: DiT | EntryDiT
    past: History
    known: Tensor
    valid: Tensor | None
    low: Tensor
    high: Tensor
    guidance: float

    def __call__(self, x: Tensor, t: float) -> Tensor:
        velocity = self.network.velocity(x, t, self.past, self.known, self.valid)
        if self.guidance != 1.0:
            # Classifier-free guidance (arXiv 2207.12598): away from what a block is with nothing before.
            alone = History(self.network.layers)
            free = self.network.velocity(x, t, alone, self.known, self.valid)
            velocity = free + self.guidance * (velocity - free)
        return torch.minimum(torch.maximum(x + (1.0 - t) * velocity, self.low), self.high)


def integrate(
    foresee: Callable[[Tensor, float], Tensor], x: Tensor, *, start: float, steps: int, solver: str
) -> Tensor:
    """x at time `start` -> x at time 1, along the flow whose clean vectors `foresee(x, t)` gives.

    The velocity is (clean - x) / (1 - t), so with the clean vectors held still a step is exact, and lands on
    them at time 1: what is clamped in `foresee` stays clamped. euler: one evaluation a step, first order.
    midpoint: two, second order; no solver evaluates at time 1, where the velocity is not defined.
    """
    grid = [start + (1.0 - start) * i / steps for i in range(steps + 1)]
    for t, after in pairwise(grid):
        clean = foresee(x, t)
        if solver == "midpoint":
            middle = (t + after) / 2
            clean = foresee(_towards(x, clean, t, middle), middle)
        x = _towards(x, clean, t, after)
    return x


def _towards(x: Tensor, clean: Tensor, t: float, after: float) -> Tensor:
    kept = (1.0 - after) / (1.0 - t)
    return kept * x + (1.0 - kept) * clean


def _draw(logs: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """An entry by each row of log probabilities [n, V], raised to the inverse of the temperature: int64
    [n]."""
    if temperature == 0.0:
        return logs.argmax(1)
    chosen: np.ndarray = (logs / temperature + rng.gumbel(size=logs.shape)).argmax(1)  # the Gumbel-max trick
    return chosen
