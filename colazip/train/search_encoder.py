"""Second stage of the search head: the encoder that adds context to the rows, which learn on with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from colazip.config import ModelConfig
from colazip.context import WINDOW
from colazip.nn.context import ContextEncoder
from colazip.nn.layers import straight_through
from colazip.tokenizer import PAD, Tokenizer
from colazip.train.distributed import Place
from colazip.train.loop import Loop, Part, Schedule
from colazip.train.optimize import muon
from colazip.train.quantizer import balanced_rotation
from colazip.train.search_rows import Bags, choose, contrast, distillation, divergence, ranks
from colazip.train.teacher import Pairs
from colazip.words import WordHash

GAIN = 1.0 / 16  # what the encoder says is added so small while it trains; it ships in its last matrix
_CHUNK = 4096  # texts cut into units at once
_AT_ONCE = 512  # texts embedded together
_SHARES = (0.4, 0.75, 0.95)  # texts of like length are padded together: where a batch is cut


@dataclass(frozen=True)
class EncoderSchedule(Schedule):
    """One run over encoder and rows; `batch` pairs a step, half of them of those that the teacher has seen.

    Weights: of contrast, of the teacher's similarities between queries and passages (`distil`) and on each
    side (`among`), of a linear map from the vectors to the teacher's (`fit`), and of contrast and distil
    where passages are sums of rows alone (`static`), so that those are found as well. sample: texts that the
    axes are balanced by.
    """

    decay_from: float = 0.45
    evaluate_every: int = 250
    seed: int = 11
    batch: int = 512
    lr: float = 3e-3
    row_lr: float = 1e-3
    temperature: float = 0.05
    contrast: float = 0.8
    distil: float = 1.5
    among: float = 0.3
    fit: float = 2.0
    static: float = 0.15
    sample: int = 16384
    held_out: int = 2048


class Units:
    """Texts as the rows of each of their units, up to a window's length; `RowSums.units` sums the same."""

    def __init__(self, texts: Sequence[np.ndarray], tokenizer: Tokenizer, word_rows: int) -> None:
        words = WordHash(tokenizer.table)
        self._rows: list[np.ndarray] = []  # of each text, unit by unit
        self._sizes: list[np.ndarray] = []  # rows of each unit
        for lo in range(0, len(texts), _CHUNK):
            for text in texts[lo : lo + _CHUNK]:
                rows, sizes = _units_of(np.asarray(text[:WINDOW], np.int64), words, tokenizer.size, word_rows)
                self._rows.append(rows)
                self._sizes.append(sizes)

    def __len__(self) -> int:
        return len(self._rows)

    def lengths(self, which: Sequence[int] | np.ndarray) -> np.ndarray:
        """Units of each of the chosen texts, int64 [B]."""
        return np.array([len(self._sizes[i]) for i in which], np.int64)

    def sums(self, table: Tensor, which: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Sums of rows of each unit of the chosen texts [B, U, D], and which are there, bool [B, U]."""
        device, count = table.device, self.lengths(which)
        index = torch.from_numpy(np.concatenate([self._rows[i] for i in which]).astype(np.int64)).to(device)
        sizes = np.concatenate([self._sizes[i] for i in which])
        sums = functional.embedding_bag(
            index, table, torch.from_numpy(np.cumsum(sizes) - sizes).to(device), mode="sum"
        )
        text = np.repeat(np.arange(len(count)), count)
        place = np.arange(len(text)) - np.repeat(np.cumsum(count) - count, count)
        at = torch.from_numpy(text).to(device), torch.from_numpy(place).to(device)
        empty = table.new_zeros(len(count), int(count.max(initial=1)), table.shape[1])
        valid = torch.zeros(empty.shape[:2], dtype=torch.bool, device=device)
        valid[at] = True
        return empty.index_put(at, sums), valid


def _units_of(
    tokens: np.ndarray, words: WordHash, size: int, word_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a text, those of a unit together, int32 [N]; how many each unit has, int64 [U]."""
    tokens = tokens if len(tokens) else np.array([PAD], np.int64)
    first = words.units(tokens)
    hashes, at, _ = words.words(tokens)
    rows = np.concatenate([tokens, size + hashes.astype(np.int64) % word_rows])
    places = np.concatenate([np.arange(len(tokens)), at])
    unit = np.searchsorted(first, places, side="right") - 1
    order = np.argsort(unit, kind="stable")
    return rows[order].astype(np.int32), np.bincount(unit, minlength=len(first))


class InContext:
    """Texts as an encoder reads them: the same face as `Bags`.

    gain: of what the encoder adds. Rows are taken as they ship, on a grid of 4 bits. Attention runs in floats
    where a gradient is asked for, else exactly.
    """

    def __init__(self, units: Units, encoder: ContextEncoder, gain: float = GAIN) -> None:
        self._units, self._encoder, self._gain = units, encoder, gain

    def __len__(self) -> int:
        return len(self._units)

    def vectors(self, table: Tensor, which: Sequence[int] | np.ndarray) -> Tensor:
        """Unit vectors of the chosen texts, [B, D]."""
        return self.both(table, which)[0]

    def both(self, table: Tensor, which: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Unit vectors in context and those without, [B, D] each."""
        rows, which = on_grid(table), np.asarray(which)
        order = np.argsort(self._units.lengths(which), kind="stable")
        cuts = [int(len(order) * share) for share in _SHARES]
        full, static = [], []
        for some in (s for s in np.split(order, cuts) if len(s)):
            units, valid = self._units.sums(rows, which[some])
            static.append(units.sum(1))
            added = self._encoder(units, valid, fast=torch.is_grad_enabled()).sum(1)
            full.append(static[-1] + self._gain * added)
        back = torch.from_numpy(np.argsort(order)).to(table.device)
        return (
            functional.normalize(torch.cat(full)[back], dim=-1),
            functional.normalize(torch.cat(static)[back], dim=-1),
        )


def on_grid(table: Tensor) -> Tensor:
    """Rows [R, D] as `colazip.vectors.pack_rows` keeps them; the gradient goes straight through."""
    scale = table.detach().abs().amax(-1, keepdim=True).clamp_min(1e-9) / 7.0
    return straight_through(table, torch.round(table.detach() / scale) * scale)


def train_encoder(
    config: ModelConfig,
    schedule: EncoderSchedule,
    *,
    rows: Tensor,
    tokenizer: Tokenizer,
    train: Pairs,
    validation: Pairs,
    folder: Path,
    device: torch.device,
    resume: bool,
) -> tuple[Tensor, ContextEncoder, dict[str, float]]:
    """Train from rows [V + W, D], or go on from `folder/checkpoint.pt`: rows on the axes that codes need,
    encoder, and validation figures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        encoder = ContextEncoder.for_text(config).to(device)
    table = nn.Parameter(_balanced(config, schedule, rows, tokenizer, train).to(device))
    width = 0 if train.passage_vectors is None else train.passage_vectors.shape[1]
    to_teacher = nn.Parameter(torch.zeros(width, config.vector, device=device))
    matrices = [p for p in encoder.parameters() if p.ndim == 2]
    groups = [
        {"params": [p for p in encoder.parameters() if p.ndim != 2], "lr": schedule.lr},
        {"params": [table], "lr": schedule.row_lr},
        {"params": [to_teacher], "lr": schedule.row_lr},
    ]
    loop = Loop(
        nn.ModuleDict({"encoder": encoder, "rows": nn.ParameterList([table, to_teacher])}),
        [
            torch.optim.Adam(groups, betas=(0.9, 0.98)),
            muon(matrices, schedule.lr, 0.01),
        ],
        schedule,
        folder=folder,
        place=Place.alone(str(device)),
        resume=resume,
        about={"stage": "search encoder"},
    )

    def texts(some: Sequence[np.ndarray]) -> InContext:
        return InContext(Units(some, tokenizer, config.word_rows), encoder)

    queries, passages = texts(train.queries), texts(train.passages)
    held_out = [texts(some[: schedule.held_out]) for some in (validation.queries, validation.passages)]

    def part(index: int) -> Part:
        chosen, taught = choose(train, index, schedule.batch, schedule.seed)
        a, _ = queries.both(table, chosen)
        b, without = passages.both(table, chosen)
        loss = _ranking(a, b, train, chosen[:taught], schedule)
        loss = loss + schedule.static * _ranking(a, without, train, chosen[:taught], schedule)
        if taught:
            loss = loss + _following(a, b, to_teacher, train, chosen[:taught], schedule)
        return {"loss": loss, "count": 1.0}, None

    def figures(sums: dict[str, float], seconds: float) -> dict[str, float]:
        return {"loss_nats": sums["loss"] / sums["count"], "steps_a_second": sums["count"] / seconds}

    @torch.no_grad()
    def validate() -> dict[str, float]:
        (a, _), (b, without) = (_all(side, table) for side in held_out)
        alone = {f"static_{name}": value for name, value in ranks(a @ without.t()).items()}
        return {**ranks(a @ b.t()), **alone}

    found = loop.run(part, figures, validate) or validate()
    return table.detach(), encoder, found


def _ranking(a: Tensor, b: Tensor, pairs: Pairs, taught: np.ndarray, schedule: EncoderSchedule) -> Tensor:
    loss = schedule.contrast * contrast(a, b, schedule.temperature)
    if len(taught):
        loss = loss + schedule.distil * distillation(a, b, pairs, taught, schedule.temperature)
    return loss


def _following(
    a: Tensor, b: Tensor, to_teacher: Tensor, pairs: Pairs, taught: np.ndarray, schedule: EncoderSchedule
) -> Tensor:
    """How far queries and passages [B, D], each on their own side, are from the teacher's."""
    total = a.new_zeros(())
    for own, vectors in ((a, pairs.query_vectors), (b, pairs.passage_vectors)):
        assert vectors is not None
        own, target = own[: len(taught)], torch.from_numpy(vectors[taught].astype(np.float32)).to(a.device)
        itself = torch.eye(len(own), dtype=torch.bool, device=a.device)
        scores, wanted = ((x @ x.t() / schedule.temperature).masked_fill(itself, -1e4) for x in (own, target))
        total = total + schedule.among * divergence(scores, wanted)
        away = 1 - functional.cosine_similarity(own @ to_teacher.t(), target, dim=-1)
        total = total + schedule.fit / 2 * away.mean()
    return total


def _balanced(
    config: ModelConfig, schedule: EncoderSchedule, rows: Tensor, tokenizer: Tokenizer, train: Pairs
) -> Tensor:
    """Rows turned so that slices of codes of every size carry a like share of the variance."""
    rows = rows.cpu()
    sample = Bags(train.passages[: schedule.sample], tokenizer, config.word_rows)
    rotation = balanced_rotation(sample.vectors(rows, range(len(sample))), math.lcm(*config.codes))
    return rows @ rotation.t()


def _all(side: InContext, table: Tensor) -> tuple[Tensor, Tensor]:
    """What `both` gives for all texts, on the CPU."""
    spans = [range(lo, min(lo + _AT_ONCE, len(side))) for lo in range(0, len(side), _AT_ONCE)]
    full, static = zip(*(side.both(table, span) for span in spans), strict=True)
    return torch.cat(full).cpu(), torch.cat(static).cpu()
