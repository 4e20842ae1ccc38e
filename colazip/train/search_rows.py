"""First stage of the search head: the rows of tokens and words, which need no encoder.

Where they begin: at the teacher's vectors of the tokens and words themselves, on the main axes of its
vectors of text, common ones short (as in model2vec, Minish Lab 2024; weights of SIF, Arora et al. 2017).
Then contrast within the batch, and the teacher's own table of similarities as a soft target. Without a
teacher: random directions and contrast alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from colazip.config import ModelConfig
from colazip.tokenizer import PAD, Tokenizer
from colazip.train.distributed import Place
from colazip.train.loop import Loop, Part, Schedule
from colazip.train.teacher import PART, Lexicon, Pairs
from colazip.words import WordHash

_CHUNK = 4096  # texts cut into words at once


@dataclass(frozen=True)
class RowSchedule(Schedule):
    """One run over the rows. A batch is `batch` pairs; `temperature` is that of contrast and distillation
    both.

    pairs, taught: drawn from the text, and how many of them the teacher sees; half of a batch is of those.
    distil: weight of the teacher's similarities beside contrast at weight 1; without a teacher it is not
    used. rarity: share of the tokens at which a token's first row has half its length. Contrast is among the
    pairs of one batch, so a step is one micro-batch.
    """

    warmup: int = 20
    decay_from: float = 0.4
    evaluate_every: int = 250
    seed: int = 7
    pairs: int = 76 * PART
    taught: int = 12 * PART
    words: int = 40000
    batch: int = 512
    lr: float = 3e-3
    temperature: float = 0.05
    distil: float = 1.0
    rarity: float = 1e-4
    held_out: int = 2048


class Bags:
    """Texts as the rows they sum: token ids, then vocabulary + bucket of each word of several tokens."""

    def __init__(self, texts: Sequence[np.ndarray], tokenizer: Tokenizer, word_rows: int) -> None:
        words = WordHash(tokenizer.table) if word_rows else None
        self._rows: list[np.ndarray] = []
        for lo in range(0, len(texts), _CHUNK):
            self._rows.extend(bags_of(texts[lo : lo + _CHUNK], words, tokenizer.size, word_rows))

    def __len__(self) -> int:
        return len(self._rows)

    def sums(self, table: Tensor, which: Sequence[int] | np.ndarray) -> Tensor:
        """Sums of rows of the table [R, D] over the chosen texts [B, D]."""
        chosen = [self._rows[i] for i in which]
        index = torch.from_numpy(np.concatenate(chosen).astype(np.int64)).to(table.device)
        offsets = torch.from_numpy(np.cumsum([0, *(len(r) for r in chosen[:-1])])).to(table.device)
        return functional.embedding_bag(index, table, offsets, mode="sum")

    def vectors(self, table: Tensor, which: Sequence[int] | np.ndarray) -> Tensor:
        return functional.normalize(self.sums(table, which), dim=-1)


def bags_of(
    texts: Sequence[np.ndarray], words: WordHash | None, size: int, word_rows: int
) -> list[np.ndarray]:
    """Rows of each text, int32 [N]; `RowSums` sums the same."""
    tokens = [np.asarray(t).astype(np.int32) for t in texts]
    if words is None:
        return tokens
    # Side by side with padding between them, which no word runs across.
    apart = np.full(sum(len(t) + 1 for t in tokens), PAD, np.int64)
    starts = np.cumsum([0, *(len(t) + 1 for t in tokens[:-1])])
    for start, t in zip(starts, tokens, strict=True):
        apart[start : start + len(t)] = t
    hashes, first, _ = words.words(apart)
    rows = np.split(
        (size + hashes % np.uint32(word_rows)).astype(np.int32), np.searchsorted(first, starts[1:])
    )
    return [np.concatenate(both) for both in zip(tokens, rows, strict=True)]


def principal_axes(vectors: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [T] and the `width` axes of most variance [T, width] of the teacher's vectors [N, T].

    Zero columns stand for axes beyond T.
    """
    mean = vectors.mean(0, dtype=np.float64)
    centred = vectors.astype(np.float32) - mean.astype(np.float32)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :width]
    return mean.astype(np.float32), np.pad(axes, ((0, 0), (0, width - axes.shape[1]))).astype(np.float32)


def first_rows(config: ModelConfig, lexicon: Lexicon, pairs: Pairs, schedule: RowSchedule) -> Tensor:
    """Rows to begin with, float32 [V + W, D]."""
    rng = np.random.default_rng(schedule.seed)
    count = config.vocabulary + config.word_rows
    rows = _directions(rng.standard_normal((count, config.vector)).astype(np.float32))
    if pairs.passage_vectors is not None and pairs.query_vectors is not None:
        assert lexicon.token_vectors is not None and lexicon.word_vectors is not None
        _, axes = principal_axes(np.concatenate([pairs.query_vectors, pairs.passage_vectors]), config.vector)
        centre = lexicon.token_vectors.mean(0, dtype=np.float32)
        rows[: config.vocabulary] = _directions((lexicon.token_vectors - centre) @ axes)
        if config.word_rows and len(lexicon.word_hash):
            bucket = lexicon.word_hash % np.uint32(config.word_rows)
            # Words that share a bucket weigh by the root of their count: the common ones set the direction.
            weight = np.sqrt(lexicon.word_count).astype(np.float32)[:, None]
            total = np.zeros((config.word_rows, config.vector), np.float32)
            np.add.at(total, bucket, _directions((lexicon.word_vectors - centre) @ axes) * weight)
            taken = np.unique(bucket)
            rows[config.vocabulary + taken] = _directions(total[taken])
    length = schedule.rarity / (schedule.rarity + lexicon.frequency)
    rows[: config.vocabulary] *= length[:, None].astype(np.float32)
    return torch.from_numpy(rows)


def _directions(rows: np.ndarray) -> np.ndarray:
    return (rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)).astype(np.float32)


def train_rows(
    config: ModelConfig,
    schedule: RowSchedule,
    *,
    tokenizer: Tokenizer,
    lexicon: Lexicon,
    train: Pairs,
    validation: Pairs,
    folder: Path,
    device: torch.device,
    resume: bool,
) -> tuple[Tensor, dict[str, float]]:
    """Train, or go on from `folder/checkpoint.pt`: rows float32 [V + W, D] and validation figures."""
    table = nn.Parameter(first_rows(config, lexicon, train, schedule).to(device))
    queries, passages = (Bags(t, tokenizer, config.word_rows) for t in (train.queries, train.passages))
    held_out = _HeldOut(validation, tokenizer, config.word_rows, schedule.held_out)
    loop = Loop(
        nn.ParameterList([table]),
        [torch.optim.Adam([table], lr=schedule.lr, betas=(0.9, 0.99))],
        schedule,
        folder=folder,
        place=Place.alone(str(device)),
        resume=resume,
        about={"stage": "search rows"},
    )

    def part(index: int) -> Part:
        chosen, taught = choose(train, index, schedule.batch, schedule.seed)
        a, b = queries.vectors(table, chosen), passages.vectors(table, chosen)
        loss = contrast(a, b, schedule.temperature)
        if taught:
            loss = loss + schedule.distil * distillation(a, b, train, chosen[:taught], schedule.temperature)
        return {"loss": loss, "count": 1.0}, None

    def figures(sums: dict[str, float], seconds: float) -> dict[str, float]:
        return {"loss_nats": sums["loss"] / sums["count"], "steps_a_second": sums["count"] / seconds}

    def validate() -> dict[str, float]:
        return held_out.figures(table.detach())

    return table.detach(), loop.run(part, figures, validate) or validate()


def contrast(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Each query's own passage among those of the batch, and the other way round; unit vectors [B, D],
    nats."""
    scores = a @ b.t() / temperature
    target = torch.arange(len(a), device=a.device)
    return (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.t(), target)) / 2


def distillation(a: Tensor, b: Tensor, pairs: Pairs, taught: np.ndarray, temperature: float) -> Tensor:
    """Divergence of similarities from the teacher's, in nats, over the first pairs of a batch.

    a, b: unit vectors [B, D] of queries and passages, of which the first are the pairs numbered `taught`.
    """
    assert pairs.query_vectors is not None and pairs.passage_vectors is not None
    known = len(taught)
    query, passage = (
        torch.from_numpy(v[taught].astype(np.float32)).to(a.device)
        for v in (pairs.query_vectors, pairs.passage_vectors)
    )
    scores, target = a[:known] @ b[:known].t() / temperature, query @ passage.t() / temperature
    return (divergence(scores, target) + divergence(scores.t(), target.t())) / 2


def divergence(scores: Tensor, target: Tensor) -> Tensor:
    """Of each row's softmax from that of the target, in nats."""
    return functional.kl_div(
        functional.log_softmax(scores, -1),
        functional.log_softmax(target, -1),
        reduction="batchmean",
        log_target=True,
    )


def choose(pairs: Pairs, step: int, batch: int, seed: int) -> tuple[np.ndarray, int]:
    """Numbers of the pairs of a step, and how many of them, the first ones, the teacher has seen.

    Half of a batch is of those, if there are any; each half goes through its pairs in turn, by seed and step.
    """
    known = 0 if pairs.query_vectors is None else len(pairs.query_vectors)
    fresh = len(pairs.queries) - known
    if not known or not fresh:
        chosen = _in_turn(len(pairs.queries), step, batch, seed)
        return chosen, len(chosen) if known else 0
    taught = _in_turn(known, step, batch // 2, seed)
    return np.concatenate([taught, known + _in_turn(fresh, step, batch // 2, seed + 1)]), len(taught)


def _in_turn(count: int, step: int, batch: int, seed: int) -> np.ndarray:
    """Numbers below `count` of a step: each once an epoch, in an order of its own."""
    size = min(batch, count)
    epoch, at = divmod(step, count // size)
    return _order(count, seed, epoch)[at * size : (at + 1) * size]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


class _HeldOut:
    """Pairs that nothing is trained on, and how well rows find them."""

    def __init__(self, pairs: Pairs, tokenizer: Tokenizer, word_rows: int, count: int) -> None:
        self._queries = Bags(pairs.queries[:count], tokenizer, word_rows)
        self._passages = Bags(pairs.passages[:count], tokenizer, word_rows)
        self._target: Tensor | None = None
        if pairs.query_vectors is not None and pairs.passage_vectors is not None:
            a, b = (
                torch.from_numpy(v[:count].astype(np.float32))
                for v in (pairs.query_vectors, pairs.passage_vectors)
            )
            self._target = a @ b.t()

    def figures(self, table: Tensor) -> dict[str, float]:
        """Share of queries whose own passage comes first, mean reciprocal rank, and the correlation of all
        similarities with the teacher's."""
        every = range(len(self._queries))
        scores = (self._queries.vectors(table, every) @ self._passages.vectors(table, every).t()).cpu()
        figures = ranks(scores)
        if self._target is not None:
            both = torch.stack([scores.flatten(), self._target.flatten()])
            figures["agreement"] = float(torch.corrcoef(both)[0, 1])
        return figures


def ranks(scores: Tensor) -> dict[str, float]:
    """Of queries' scores [N, N], where the diagonal is right."""
    rank = (scores > scores.diagonal()[:, None]).sum(1) + 1
    return {"hit_at_1": float((rank == 1).float().mean()), "mrr": float((1.0 / rank).mean())}
