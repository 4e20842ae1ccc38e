"""Last stage of the search head: the quantizer of its codes, the rows on the grid they ship on, and the axes
of shorter vectors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from colazip.config import ModelConfig
from colazip.errors import ColazipError
from colazip.nn.context import ContextEncoder
from colazip.nn.layers import straight_through
from colazip.tokenizer import Tokenizer
from colazip.train.optimize import Descent, Metrics, fitting, learning_rate, load_checkpoint, save_atomic
from colazip.train.quantizer import balanced_rotation, decode, fit_codebook, nearest, principal_axes
from colazip.train.search_encoder import GAIN, InContext, Units
from colazip.train.search_rows import Bags, choose, contrast, distillation, ranks
from colazip.train.teacher import Pairs
from colazip.vectors import SearchRows, assign_codes, pack_rows, unpack_nibbles

_LARGEST = 100.0  # of a row's values once shipped: the grid of their sums is 1/256 and ends at 127
_AT_ONCE = 512  # texts embedded together
_AXES_TEXTS = 8192  # queries, and as many passages, that the axes of shorter vectors are fitted to
Texts = Bags | InContext


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
    encoder_lr: float = 5e-4
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
    encoder: ContextEncoder | None = None,
) -> tuple[SearchRows, dict[str, float]]:
    """From trained rows [V + W, D]: rotate them so that every slice of their vectors carries a like share of
    the variance (which rows that came with an encoder are already), cluster each slice, let rows, encoder and
    centroids of all sizes learn together, and put them on the grids that they ship on. Returns what ships,
    and validation figures, those of codes for the model's own size."""
    metrics = Metrics(folder / "metrics.jsonl", step=0)
    metrics.write({"stage": "search head", "schedule": asdict(schedule)})

    def sides(pairs: Pairs, gain: float = GAIN) -> list[Texts]:
        both = (pairs.queries, pairs.passages)
        if encoder is None:
            return [Bags(texts, tokenizer, config.word_rows) for texts in both]
        return [InContext(Units(texts, tokenizer, config.word_rows), encoder, gain) for texts in both]

    queries, passages = sides(train)
    if encoder is None:
        rows = rows.cpu()
        sample = _vectors(passages, rows, schedule.sample)
        rows = rows @ balanced_rotation(sample, math.lcm(*config.codes)).t()
    sample = _vectors(passages, rows, schedule.sample)
    table = nn.Parameter(rows)
    books = {m: nn.Parameter(fit_codebook(sample, m, schedule.seed)) for m in config.codes}
    learned = [*books.values()], [] if encoder is None else [*encoder.parameters()]
    _learn(table, *learned, queries, passages, train, schedule, metrics)
    spread = _LARGEST / table.detach().abs().max().clamp_min(1e-9)
    if encoder is not None and encoder.leave.weight is not None:
        encoder.leave.weight.data *= GAIN * spread
    packed, steps = pack_rows((table.detach() * spread).cpu().numpy())
    shipped = unpack_nibbles(packed).astype(np.float32) * steps
    rounded = np.float32 if config.code_sizes is None else np.float16
    codebooks = {
        m: book.detach().cpu().numpy().astype(rounded).astype(np.float32) for m, book in books.items()
    }
    final = torch.from_numpy(shipped).to(table.device)
    a, b = (_vectors(side, final, schedule.held_out).cpu() for side in sides(validation, 1.0))
    axes = principal_axes(torch.cat([_vectors(side, final, _AXES_TEXTS) for side in sides(train, 1.0)]))
    codebook = codebooks[config.code_bytes]
    read = torch.from_numpy(decode(assign_codes(b.numpy(), codebook), codebook))
    figures = {
        **ranks(a @ b.t()),
        **{f"code_{name}": value for name, value in ranks(a @ read.t()).items()},
        "quantizer_cosine": float((b * read).sum(1).mean()),
    }
    metrics.write({"step": schedule.steps, "validation": "figures", **figures})
    return SearchRows(shipped, codebooks, None if encoder is None else encoder.cpu(), axes), figures


def save_search_head(path: Path, search: SearchRows, figures: dict[str, float]) -> None:
    """Keep what `fit_search_head` gave."""
    arrays = {"rows": search.rows, **{f"codes.{m}": book for m, book in search.codebooks.items()}}
    if search.axes is not None:
        arrays["axes"] = search.axes
    encoder = None if search.encoder is None else search.encoder.state_dict()
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    save_atomic({"arrays": state, "encoder": encoder, "figures": figures}, path)


def load_search_head(path: Path, config: ModelConfig) -> tuple[SearchRows, dict[str, float]]:
    """What was kept. Raises InputError if there is none or it is of another model."""
    state = load_checkpoint(path, torch.device("cpu"))
    with fitting(path):
        arrays = {name: value.numpy() for name, value in state["arrays"].items()}
        encoder = None
        if config.search_encoder is not None:
            encoder = ContextEncoder.for_text(config)
            encoder.load_state_dict(state["encoder"])
        books = {m: arrays[f"codes.{m}"] for m in config.codes}
        return SearchRows(arrays["rows"], books, encoder, arrays.get("axes")), state["figures"]


def _learn(
    table: nn.Parameter,
    books: list[nn.Parameter],
    encoder: list[nn.Parameter],
    queries: Texts,
    passages: Texts,
    train: Pairs,
    schedule: SearchSchedule,
    metrics: Metrics,
) -> None:
    """Contrast and distillation between queries and the codes of passages: short, so it has no checkpoint."""
    groups = [
        {"params": [table], "lr": schedule.lr},
        {"params": books, "lr": schedule.centroid_lr},
        *([{"params": encoder, "lr": schedule.encoder_lr}] if encoder else []),
    ]
    holder = nn.ParameterList([table, *books, *encoder])
    descent = Descent(holder, [torch.optim.Adam(groups, betas=(0.9, 0.99))])
    for step in range(schedule.steps):
        chosen, taught = choose(train, step, schedule.batch, schedule.seed)
        a, b = queries.vectors(table, chosen), passages.vectors(table, chosen)
        loss = a.new_zeros(())
        for book in books:
            read = nearest(b.detach(), book)
            seen = functional.normalize(straight_through(b, read.detach()) + read - read.detach(), dim=-1)
            loss = loss + contrast(a, seen, schedule.temperature) / len(books)
            if taught:
                soft = distillation(a, seen, train, chosen[:taught], schedule.temperature)
                loss = loss + schedule.distil * soft / len(books)
            loss = loss + schedule.pull * (b - read).square().sum(-1).mean() / len(books)
        norm = descent.backward(loss)
        if not np.isfinite([float(loss.detach()), norm]).all():
            raise ColazipError(f"the loss of the search codes is not finite at step {step}")
        descent.step(learning_rate(step, schedule.steps, warmup=20, decay_from=0.4))
        if (step + 1) % 50 == 0:
            metrics.write({"step": step + 1, "loss_nats": float(loss.detach())})


@torch.no_grad()
def _vectors(texts: Texts, table: torch.Tensor, count: int) -> torch.Tensor:
    """Unit vectors of the first `count` of the texts, [N, D]."""
    count = min(count, len(texts))
    spans = range(0, count, _AT_ONCE)
    return torch.cat([texts.vectors(table, range(lo, min(lo + _AT_ONCE, count))) for lo in spans])
