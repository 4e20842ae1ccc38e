"""Last stage of the search head: encoder states beside the trained rows, then the quantizer of its codes."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from colazip.nn.layers import straight_through
from colazip.nn.search_head import SearchHead
from colazip.nn.vae import TextVAE, real_tokens
from colazip.tokenizer import Tokenizer
from colazip.train.data import Batch
from colazip.train.optimize import (
    Descent,
    Metrics,
    check_finite,
    fitting,
    learning_rate,
    load_checkpoint,
    save_atomic,
    to_tensors,
)
from colazip.train.quantizer import balanced_rotation, decode, fit_codebook, nearest
from colazip.train.search_rows import Bags, choose, contrast, distillation, ranks
from colazip.train.teacher import Pairs
from colazip.vectors import assign_codes, pack_rows, unpack_rows

_LARGEST = 100.0  # of a row's values once shipped: the grid of their sums is 1/256 and ends at 127
_AT_ONCE = 512  # pairs embedded together outside of training


@dataclass(frozen=True)
class SearchSchedule:
    """joint_steps: steps in which the encoder's states join the rows; at 0 search vectors need no network.

    quantizer_sample: passages that the codes' centroids are fitted to. code_steps: steps after that, in which
    rows and centroids learn together, passages seen through their codes (compare JPQ, arXiv 2108.00644).
    code_pull: weight of the squared distance between a vector and its code.
    """

    joint_steps: int = 0
    joint_pairs: int = 256
    joint_lr: float = 1e-3
    temperature: float = 0.05
    distil: float = 1.0
    warmup: int = 50
    decay_from: float = 0.4
    evaluate_every: int = 250
    save_every: int = 250
    quantizer_sample: int = 32768
    code_steps: int = 300
    code_pairs: int = 512
    code_lr: float = 1e-3
    centroid_lr: float = 3e-4
    code_pull: float = 1.0
    held_out: int = 2048
    seed: int = 2


class _Side:
    """Queries, or passages, as the head reads them."""

    def __init__(self, texts: list[np.ndarray], tokenizer: Tokenizer, vae: TextVAE, states: bool) -> None:
        self.texts, self.vae, self.states = texts, vae, states
        self.bags = Bags(texts, tokenizer, vae.config.word_rows)
        self.longest = vae.config.segment * vae.config.patch

    def batch(self, which: np.ndarray) -> Batch:
        patch = self.vae.config.patch
        rows = [self.texts[i][: self.longest] for i in which]
        counts = np.array([len(r) for r in rows], np.int64)
        tokens = np.zeros((len(rows), -(-int(counts.max()) // patch) * patch), np.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        return Batch(tokens, counts, np.zeros((2, *tokens.shape), np.int64))

    def vectors(self, head: SearchHead, which: np.ndarray) -> Tensor:
        """Unit vectors [B, D]."""
        sums = self.bags.sums(head.trainable, which)
        if self.states:
            tokens, counts = to_tensors(self.batch(which), sums.device)
            patches = tokens.unflatten(1, (-1, self.vae.config.patch))
            real = real_tokens(counts, patches)
            with torch.no_grad():
                hidden = self.vae.encode(patches, real).hidden
            sums = sums + head(hidden, real[..., 0])
        return functional.normalize(sums, dim=-1)

    @torch.no_grad()
    def all(self, head: SearchHead, count: int) -> Tensor:
        """Unit vectors of the first `count` texts [N, D], on the CPU."""
        count = min(count, len(self.texts))
        spans = (np.arange(lo, min(lo + _AT_ONCE, count)) for lo in range(0, count, _AT_ONCE))
        return torch.cat([self.vectors(head, span).cpu() for span in spans])


def train_search_head(
    vae: TextVAE,
    schedule: SearchSchedule,
    *,
    rows: Tensor,
    tokenizer: Tokenizer,
    train: Pairs,
    validation: Pairs,
    folder: Path,
    device: torch.device,
    resume: bool,
) -> tuple[SearchHead, dict[str, float]]:
    """Train from the rows [V + W, D], or go on from `folder/checkpoint.pt`; returns the head with its
    codebook, and validation figures."""
    vae.eval()
    torch.manual_seed(schedule.seed)
    head = SearchHead(vae.config).to(device).train()
    with torch.no_grad():
        head.trainable.copy_(rows)
    descent = Descent(head, [torch.optim.AdamW(head.parameters(), lr=schedule.joint_lr, weight_decay=1e-4)])
    step, checkpoint = 0, folder / "checkpoint.pt"
    if resume:
        state = load_checkpoint(checkpoint, device)
        with fitting(checkpoint):
            head.load_state_dict(state["model"])
            descent.load(state["optimizer"])
            step = state["step"]
    metrics = Metrics(folder / "metrics.jsonl", step=step)
    if not resume:
        metrics.write({"stage": "search head", "schedule": asdict(schedule)})
    states = schedule.joint_steps > 0
    queries, passages = (_Side(texts, tokenizer, vae, states) for texts in (train.queries, train.passages))
    held_out = [_Side(texts, tokenizer, vae, states) for texts in (validation.queries, validation.passages)]
    window: list[float] = []
    started, first = time.monotonic(), step
    while step < schedule.joint_steps:
        chosen, taught = choose(train, step, schedule.joint_pairs, schedule.seed)
        a, b = queries.vectors(head, chosen), passages.vectors(head, chosen)
        loss = contrast(a, b, schedule.temperature)
        if taught:
            loss = loss + schedule.distil * distillation(a, b, train, chosen[:taught], schedule.temperature)
        window.append(check_finite(loss, descent.backward(loss), step, queries.batch(chosen), folder))
        descent.step(
            learning_rate(step, schedule.joint_steps, warmup=schedule.warmup, decay_from=schedule.decay_from)
        )
        step += 1
        if step % 25 == 0:
            speed = (step - first) / (time.monotonic() - started)
            metrics.write({"step": step, "loss_nats": float(np.mean(window)), "steps_a_second": speed})
            window.clear()
        if step % schedule.evaluate_every == 0:
            a, b = (side.all(head, schedule.held_out) for side in held_out)
            metrics.write({"step": step, "validation": "figures", **ranks(a @ b.t())})
        if step % schedule.save_every == 0 or step == schedule.joint_steps:
            save_atomic({"model": head.state_dict(), "optimizer": descent.state(), "step": step}, checkpoint)
    fit_quantizer(head, passages, schedule)
    _learn_codes(head, queries, passages, train, schedule, folder)
    ship_rows(head)
    a, b = (side.all(head, schedule.held_out) for side in held_out)
    codebook = head.codebook.cpu().numpy()
    read = torch.from_numpy(decode(assign_codes(b.numpy(), codebook), codebook))
    figures = {
        **ranks(a @ b.t()),
        **{f"code_{name}": value for name, value in ranks(a @ read.t()).items()},
        "quantizer_cosine": float((b * read).sum(1).mean()),
    }
    metrics.write({"step": step, "validation": "figures", **figures})
    return head, figures


@torch.no_grad()
def fit_quantizer(head: SearchHead, passages: _Side, schedule: SearchSchedule) -> None:
    """Rotate the head so that every slice of its vectors carries a like share of the variance, then cluster
    each slice."""
    slices = head.codebook.shape[0]
    sample = passages.all(head, schedule.quantizer_sample)
    rotation = balanced_rotation(sample, slices)
    turn = rotation.to(head.trainable.device)
    head.trainable.copy_(head.trainable @ turn.t())
    head.states.trainable.copy_(turn @ head.states.trainable)
    head.codebook.copy_(fit_codebook(sample @ rotation.t(), slices, schedule.seed))


def _learn_codes(
    head: SearchHead, queries: _Side, passages: _Side, train: Pairs, schedule: SearchSchedule, folder: Path
) -> None:
    """Contrast and distillation between queries and the codes of passages: short, so it has no checkpoint."""
    centroids = torch.nn.Parameter(head.codebook.clone())
    groups = [
        {"params": list(head.parameters()), "lr": schedule.code_lr},
        {"params": [centroids], "lr": schedule.centroid_lr},
    ]
    both = torch.nn.ModuleList([head, torch.nn.ParameterList([centroids])])
    descent = Descent(both, [torch.optim.Adam(groups, betas=(0.9, 0.99))])
    for step in range(schedule.code_steps):
        chosen, taught = choose(train, step, schedule.code_pairs, schedule.seed)
        a, b = queries.vectors(head, chosen), passages.vectors(head, chosen)
        read = nearest(b.detach(), centroids)
        seen = functional.normalize(straight_through(b, read.detach()) + read - read.detach(), dim=-1)
        loss = contrast(a, seen, schedule.temperature)
        if taught:
            loss = loss + schedule.distil * distillation(
                a, seen, train, chosen[:taught], schedule.temperature
            )
        loss = loss + schedule.code_pull * (b - read).square().sum(-1).mean()
        check_finite(loss, descent.backward(loss), step, queries.batch(chosen), folder)
        descent.step(
            learning_rate(step, schedule.code_steps, warmup=min(20, schedule.warmup), decay_from=0.4)
        )
        if (step + 1) % 50 == 0:
            print(
                f"search codes {step + 1} of {schedule.code_steps}  loss {float(loss.detach()):.3f}",
                file=sys.stderr,
            )
    with torch.no_grad():
        head.codebook.copy_(centroids)


@torch.no_grad()
def ship_rows(head: SearchHead) -> None:
    """Put the head on the grid that it ships on: 4 bits a row's value if there are rows of words."""
    rows = head.trainable
    scale = _LARGEST / rows.abs().max().clamp_min(1e-9)
    rows.mul_(scale)
    head.states.trainable.mul_(scale)
    if len(rows) > head.vocabulary:
        packed, steps = pack_rows(rows.cpu().numpy())
        rows.copy_(torch.from_numpy(unpack_rows(packed, rows.shape[1]).astype(np.float32) * steps))
