"""Last stage of the search head: the quantizer of its codes, and the rows on the grid they ship on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from colazip.config import ModelConfig
from colazip.tokenizer import Tokenizer
from colazip.train.optimize import Metrics
from colazip.train.quantizer import balanced_rotation, decode, fit_codebook
from colazip.train.search_rows import Bags, ranks
from colazip.train.teacher import Pairs
from colazip.vectors import SearchRows, assign_codes, pack_rows, unpack_rows

_LARGEST = 100.0  # of a row's values once shipped: the grid of their sums is 1/256 and ends at 127
_AT_ONCE = 512  # texts embedded together


@dataclass(frozen=True)
class SearchSchedule:
    """sample: passages that the codes' centroids are fitted to; held_out: pairs that the figures are of."""

    sample: int = 32768
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
    the variance, put them on their grid, then cluster each slice. Returns what ships, and validation
    figures."""
    metrics = Metrics(folder / "metrics.jsonl", step=0)
    metrics.write({"stage": "search head", "schedule": asdict(schedule)})
    passages = Bags(train.passages[: schedule.sample], tokenizer, config.word_rows)
    rotation = balanced_rotation(_vectors(passages, rows.cpu()), config.code_bytes)
    turned = rows.cpu() @ rotation.t()
    turned = turned * (_LARGEST / turned.abs().max().clamp_min(1e-9))
    packed, steps = pack_rows(turned.numpy())
    shipped = unpack_rows(packed).astype(np.float32) * steps
    table = torch.from_numpy(shipped)
    codebook = fit_codebook(_vectors(passages, table), config.code_bytes, schedule.seed).numpy()
    a, b = (
        _vectors(Bags(texts[: schedule.held_out], tokenizer, config.word_rows), table)
        for texts in (validation.queries, validation.passages)
    )
    read = torch.from_numpy(decode(assign_codes(b.numpy(), codebook), codebook))
    figures = {
        **ranks(a @ b.t()),
        **{f"code_{name}": value for name, value in ranks(a @ read.t()).items()},
        "quantizer_cosine": float((b * read).sum(1).mean()),
    }
    metrics.write({"step": 0, "validation": "figures", **figures})
    return SearchRows(shipped, codebook), figures


@torch.no_grad()
def _vectors(bags: Bags, table: torch.Tensor) -> torch.Tensor:
    """Unit vectors of all texts, [N, D]."""
    spans = range(0, len(bags), _AT_ONCE)
    return torch.cat([bags.vectors(table, range(lo, min(lo + _AT_ONCE, len(bags)))) for lo in spans])
