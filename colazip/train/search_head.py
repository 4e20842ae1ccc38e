"""Last stage of the search head: the quantizer of its codes, and the rows on the grid they ship on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from colazip.config import ModelConfig
from colazip.errors import ColazipError
from colazip.nn.layers import straight_through
from colazip.tokenizer import Tokenizer
from colazip.train.optimize import Descent, Metrics, learning_rate
from colazip.train.quantizer import balanced_rotation, decode, fit_codebook, nearest
from colazip.train.search_rows import Bags, choose, contrast, distillation, ranks
from colazip.train.teacher import Pairs
from colazip.vectors import SearchRows, assign_codes, pack_rows, unpack_rows

_LARGEST = 100.0  # of a row's values once shipped: the grid of their sums is 1/256 and ends at 127
_AT_ONCE = 512  # texts embedded together


@dataclass(frozen=True)
class SearchSchedule:
    """sample: passages that the codes' centroids are first fitted to. steps: in which rows and centroids then
    learn together, passages seen through their codes (compare JPQ, arXiv 2108.00644), `batch` pairs each.
    pull: weight of the squared distance between a vector and its code. held_out: pairs that the figures are
    of."""

    sample: int = 32768
    steps: int = 1500
    batch: int = 512
    lr: float = 1e-3
    centroid_lr: float = 3e-4
    temperature: float = 0.05
    distil: float = 1.0
    pull: float = 1.0
    held_out: int = 2048
    seed: int = 2


def fit_search_head(
    config: ModelConfig,
    schedule: SearchSchedule,
    *,
    rows: torch.Tensor,
    tokenizer: Tokenizer,
    train: Pairs,
    validation: Pairs,
    folder: Path,
) -> tuple[SearchRows, dict[str, float]]:
    """From trained rows [V + W, D]: rotate them so that every slice of their vectors carries a like share of
    the variance, cluster each slice, let rows and centroids learn together, and put the rows on the grid that
    they ship on. Returns what ships, and validation figures."""
    metrics = Metrics(folder / "metrics.jsonl", step=0)
    metrics.write({"stage": "search head", "schedule": asdict(schedule)})
    queries, passages = (
        Bags(texts, tokenizer, config.word_rows) for texts in (train.queries, train.passages)
    )
    sample = _vectors(passages, rows.cpu(), schedule.sample)
    rotation = balanced_rotation(sample, config.code_bytes)
    table = nn.Parameter(rows.cpu() @ rotation.t())
    centroids = nn.Parameter(fit_codebook(sample @ rotation.t(), config.code_bytes, schedule.seed))
    _learn(table, centroids, queries, passages, train, schedule, metrics)
    grid = table.detach() * (_LARGEST / table.detach().abs().max().clamp_min(1e-9))
    packed, steps = pack_rows(grid.numpy())
    shipped = unpack_rows(packed).astype(np.float32) * steps
    codebook = centroids.detach().numpy()
    a, b = (
        _vectors(Bags(texts, tokenizer, config.word_rows), torch.from_numpy(shipped), schedule.held_out)
        for texts in (validation.queries, validation.passages)
    )
    read = torch.from_numpy(decode(assign_codes(b.numpy(), codebook), codebook))
    figures = {
        **ranks(a @ b.t()),
        **{f"code_{name}": value for name, value in ranks(a @ read.t()).items()},
        "quantizer_cosine": float((b * read).sum(1).mean()),
    }
    metrics.write({"step": schedule.steps, "validation": "figures", **figures})
    return SearchRows(shipped, codebook), figures


def _learn(
    table: nn.Parameter,
    centroids: nn.Parameter,
    queries: Bags,
    passages: Bags,
    train: Pairs,
    schedule: SearchSchedule,
    metrics: Metrics,
) -> None:
    """Contrast and distillation between queries and the codes of passages: short, so it has no checkpoint."""
    groups = [{"params": [table], "lr": schedule.lr}, {"params": [centroids], "lr": schedule.centroid_lr}]
    holder = nn.ParameterList([table, centroids])
    descent = Descent(holder, [torch.optim.Adam(groups, betas=(0.9, 0.99))])
    for step in range(schedule.steps):
        chosen, taught = choose(train, step, schedule.batch, schedule.seed)
        a, b = queries.vectors(table, chosen), passages.vectors(table, chosen)
        read = nearest(b.detach(), centroids)
        seen = functional.normalize(straight_through(b, read.detach()) + read - read.detach(), dim=-1)
        loss = contrast(a, seen, schedule.temperature)
        if taught:
            soft = distillation(a, seen, train, chosen[:taught], schedule.temperature)
            loss = loss + schedule.distil * soft
        loss = loss + schedule.pull * (b - read).square().sum(-1).mean()
        norm = descent.backward(loss)
        if not np.isfinite([float(loss.detach()), norm]).all():
            raise ColazipError(f"the loss of the search codes is not finite at step {step}")
        descent.step(learning_rate(step, schedule.steps, warmup=20, decay_from=0.4))
        if (step + 1) % 50 == 0:
            metrics.write({"step": step + 1, "loss_nats": float(loss.detach())})


@torch.no_grad()
def _vectors(bags: Bags, table: torch.Tensor, count: int) -> torch.Tensor:
    """Unit vectors of the first `count` texts, [N, D]."""
    count = min(count, len(bags))
    spans = range(0, count, _AT_ONCE)
    return torch.cat([bags.vectors(table, range(lo, min(lo + _AT_ONCE, count))) for lo in spans])
