"""Training of the search head: contrast between spans of one passage, then the product quantizer of its
codes."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from colazip.nn.search_head import SearchHead
from colazip.nn.vae import TextVAE, real_tokens
from colazip.train.data import Batch, TokenStore
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
from colazip.vectors import assign_codes


@dataclass(frozen=True)
class SearchSchedule:
    """One run: first the token rows alone, which is cheap and takes many pairs, then rows and encoder states
    together.

    A query is a span of a passage (lengths in tokens); with probability `cut` the span is taken out of its
    passage (inverse cloze, arXiv 1906.00300), so that the passage must be found by what surrounds it; with
    probability `scatter` the query is a few tokens of a span instead of all, as in a question.
    """

    token_steps: int
    joint_steps: int
    token_pairs: int = 1024
    joint_pairs: int = 256
    passage: int = 256
    query: tuple[int, int] = (8, 32)
    cut: float = 0.5
    scatter: float = 0.5
    temperature: float = 0.05
    token_lr: float = 1e-2
    joint_lr: float = 1e-3
    warmup: int = 50
    decay_from: float = 0.4
    evaluate_every: int = 250
    save_every: int = 250
    quantizer_sample: int = 16384
    seed: int = 2


class Pairs:
    """Draws (query, passage) pairs from a token store, by seed and step alone."""

    def __init__(self, store: TokenStore, schedule: SearchSchedule, patch: int) -> None:
        starts = np.concatenate([[0], store.ends[:-1]])
        enough = store.ends - starts >= 2 * schedule.query[1]
        self.starts, self.ends = starts[enough], store.ends[enough]
        self.store, self.schedule, self.patch = store, schedule, patch

    def draw(self, step: int, count: int) -> tuple[Batch, Batch]:
        rng = np.random.default_rng((self.schedule.seed, step))
        queries, passages = [], []
        for r in rng.integers(len(self.starts), size=count):
            lo, hi = self.starts[r], self.ends[r]
            size = min(hi - lo, int(rng.integers(48, self.schedule.passage + 1)))
            lo += int(rng.integers(hi - lo - size + 1))
            passage = np.asarray(self.store.tokens[lo : lo + size]).astype(np.int64)
            width = min(int(rng.integers(*self.schedule.query)), size // 2)
            at = int(rng.integers(size - width + 1))
            span = passage[at : at + width]
            if rng.random() < self.schedule.cut:
                passage = np.concatenate([passage[:at], passage[at + width :]])
            if rng.random() < self.schedule.scatter:
                keep = rng.random(len(span)) < 0.4
                keep[int(rng.integers(len(span)))] = True
                span = span[keep]
            queries.append(span)
            passages.append(passage)
        return _pad(queries, self.patch), _pad(passages, self.patch)


def _pad(rows: list[np.ndarray], patch: int) -> Batch:
    counts = np.array([len(r) for r in rows], np.int64)
    tokens = np.zeros((len(rows), -(-int(counts.max()) // patch) * patch), np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return Batch(tokens, counts, np.zeros((2, *tokens.shape), np.int64))


def _vectors(
    vae: TextVAE, head: SearchHead, batch: Batch, device: torch.device, *, states: bool = True
) -> Tensor:
    """Unit vectors [B, D]; without `states` from the token rows alone, summed in float."""
    tokens, counts = to_tensors(batch, device)
    if not states:
        real = torch.arange(tokens.shape[1], device=device)[None] < counts[:, None]
        table, weights = head.tokens.trainable, real.float()
        sums = functional.embedding_bag(tokens, table, mode="sum", per_sample_weights=weights)
        return functional.normalize(sums, dim=-1)
    patches = tokens.unflatten(1, (-1, vae.config.patch))
    with torch.no_grad():
        hidden = vae.features(vae.readout.named(patches, 0), real_tokens(counts, patches), 0)
    return functional.normalize(head(hidden, patches, counts), dim=-1)


@torch.no_grad()
def _evaluate(vae: TextVAE, head: SearchHead, pairs: Pairs, device: torch.device) -> dict[str, float]:
    """Share of 512 held-out queries whose own passage comes first, and mean reciprocal rank."""
    queries, passages = pairs.draw(1 << 30, 512)
    scores = _vectors(vae, head, queries, device) @ _vectors(vae, head, passages, device).t()
    rank = (scores > scores.diagonal()[:, None]).sum(1) + 1
    return {"hit_at_1": float((rank == 1).float().mean()), "mrr": float((1.0 / rank).mean())}


def _informative_rows(store: TokenStore, head: SearchHead) -> Tensor:
    """Random directions, short for common tokens (weights of SIF, Arora et al. 2017)."""
    frequency = np.bincount(np.asarray(store.tokens[:20_000_000]), minlength=head.tokens.trainable.shape[0])
    share = torch.from_numpy(frequency / frequency.sum()).float()
    return torch.randn_like(head.tokens.trainable) * (1e-3 / (1e-3 + share))[:, None].to(
        head.tokens.trainable.device
    )


def train_search_head(
    vae: TextVAE,
    schedule: SearchSchedule,
    *,
    train: TokenStore,
    validation: TokenStore,
    folder: Path,
    device: torch.device,
    resume: bool,
) -> tuple[SearchHead, dict[str, float]]:
    """Train, or go on from `folder/checkpoint.pt`; returns the head with its codebook, and validation
    figures."""
    vae.eval()
    torch.manual_seed(schedule.seed)
    head = SearchHead(vae.config).to(device).train()
    with torch.no_grad():
        head.tokens.trainable.copy_(_informative_rows(train, head))
    stages = [
        Descent(head, [torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=1e-4)])
        for lr in (schedule.token_lr, schedule.joint_lr)
    ]
    step, checkpoint = 0, folder / "checkpoint.pt"
    if resume:
        state = load_checkpoint(checkpoint, device)
        with fitting(checkpoint):
            head.load_state_dict(state["model"])
            for descent, saved in zip(stages, state["optimizers"], strict=True):
                descent.load(saved)
            step = state["step"]
    metrics = Metrics(folder / "metrics.jsonl", step=step)
    if not resume:
        metrics.write({"stage": "search head", "schedule": asdict(schedule)})
    pairs, held_out = (
        Pairs(train, schedule, vae.config.patch),
        Pairs(validation, schedule, vae.config.patch),
    )
    window: list[float] = []
    started, first = time.monotonic(), step
    total = schedule.token_steps + schedule.joint_steps
    while step < total:
        joint = step >= schedule.token_steps
        at, steps = (
            (step - schedule.token_steps, schedule.joint_steps) if joint else (step, schedule.token_steps)
        )
        queries, passages = pairs.draw(step, schedule.joint_pairs if joint else schedule.token_pairs)
        a = _vectors(vae, head, queries, device, states=joint)
        b = _vectors(vae, head, passages, device, states=joint)
        scores = a @ b.t() / schedule.temperature
        target = torch.arange(len(a), device=device)
        loss = (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.t(), target)) / 2
        descent = stages[joint]
        window.append(check_finite(loss, descent.backward(loss), step, queries, folder))
        descent.step(learning_rate(at, steps, warmup=schedule.warmup, decay_from=schedule.decay_from))
        step += 1
        if step % 25 == 0:
            speed = (step - first) / (time.monotonic() - started)
            metrics.write({"step": step, "contrast_nats": float(np.mean(window)), "steps_a_second": speed})
            window.clear()
        if step % schedule.evaluate_every == 0 or step == total:
            metrics.write({"step": step, "validation": "figures", **_evaluate(vae, head, held_out, device)})
        if step % schedule.save_every == 0 or step == total:
            optimizers = [descent.state() for descent in stages]
            save_atomic({"model": head.state_dict(), "optimizers": optimizers, "step": step}, checkpoint)
    figures = _evaluate(vae, head, held_out, device)
    figures["quantizer_cosine"] = fit_quantizer(vae, head, pairs, schedule, device)
    metrics.write({"step": step, "validation": "figures", **figures})
    return head, figures


@torch.no_grad()
def fit_quantizer(
    vae: TextVAE, head: SearchHead, pairs: Pairs, schedule: SearchSchedule, device: torch.device
) -> float:
    """Rotate the head so that every slice carries a like share of the variance, then cluster each slice.

    The rotation is that of parametric optimized product quantization (Ge et al. 2013), folded into the head's
    weights. Returns the mean cosine between vectors and their codes.
    """
    chunks = [
        _vectors(vae, head, pairs.draw((1 << 29) + i, 512)[1], device).cpu()
        for i in range(max(1, schedule.quantizer_sample // 512))
    ]
    sample = torch.cat(chunks).double()
    slices, width = head.codebook.shape[0], head.codebook.shape[2]
    values, vectors = torch.linalg.eigh(sample.t() @ sample / len(sample))
    order = _balance(values.clamp_min(1e-9), slices, width)
    rotation = vectors[:, order].t().float().to(device)  # rows are the new axes
    head.states.trainable.copy_(rotation @ head.states.trainable)
    head.tokens.trainable.copy_(head.tokens.trainable @ rotation.t())
    rotated = (sample.float() @ rotation.cpu().t()).view(-1, slices, width)
    generator = torch.Generator().manual_seed(schedule.seed)
    for m in range(slices):
        head.codebook[m] = _k_means(rotated[:, m], 256, generator)
    flat = rotated.flatten(1).numpy().astype(np.float32)
    codebook = head.codebook.cpu().numpy()
    codes = assign_codes(flat, codebook)
    read = np.concatenate([codebook[m][codes[:, m]] for m in range(slices)], 1)
    return float((flat * read).sum(1).mean() / np.linalg.norm(read, axis=1).mean())


def _balance(variance: Tensor, slices: int, width: int) -> Tensor:
    """Deal axes, largest variance first, to the open slice with the least product of variances: int64 [D]."""
    total = [0.0] * slices
    members: list[list[int]] = [[] for _ in range(slices)]
    for axis in torch.argsort(variance, descending=True).tolist():
        m = min((i for i in range(slices) if len(members[i]) < width), key=lambda i: (total[i], i))
        members[m].append(axis)
        total[m] += float(torch.log(variance[axis] * len(variance) * 16 + 1.0))
    return torch.tensor([axis for group in members for axis in group])


def _k_means(points: Tensor, count: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """Lloyd's algorithm: points [N, W] -> centroids [count, W]; empty clusters restart at random points."""
    pick = torch.randint(len(points), (count,), generator=generator)
    centres = points[pick].clone()
    for _ in range(rounds):
        near = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, near, points)
        sizes = torch.bincount(near, minlength=count).float()[:, None]
        fresh = points[torch.randint(len(points), (count,), generator=generator)]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1.0), fresh)
    return centres
