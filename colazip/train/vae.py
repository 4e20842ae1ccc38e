"""The training loop of the Text VAE: schedule, optimizer, checkpoints, metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from colazip.config import ModelConfig
from colazip.nn.vae import TextVAE
from colazip.train.data import Batch, TokenStore, Vocabulary, batches, gather
from colazip.train.losses import Terms, compute
from colazip.train.optimize import (
    Descent,
    Metrics,
    check_finite,
    fitting,
    guesses,
    learning_rate,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_atomic,
    to_tensors,
)


@dataclass(frozen=True)
class VAESchedule:
    """One training run. Fractions are of `steps`.

    named: for each detail of a gist, how many of the commonest tokens it names; drawn: how often a batch is
    coded at each. From `exact_from` on attention is the integer one.
    """

    steps: int
    named: tuple[int, ...] = (2000,)
    drawn: tuple[float, ...] = (1.0,)
    patches: int = 1536  # of a batch
    lr: float = 3e-3
    muon_lr: float = 3e-3
    warmup: int = 100
    decay_from: float = 0.4
    weight_decay: float = 0.05
    exact_from: float = 0.88
    evaluate_every: int = 500
    save_every: int = 250
    seed: int = 0

    def detail(self, step: int) -> int:
        """Which gist the batch of a step is coded as; a function of the seed alone."""
        draw = np.random.default_rng((self.seed, 5, step)).random() * sum(self.drawn)
        return min(int(np.searchsorted(np.cumsum(self.drawn), draw, side="right")), len(self.drawn) - 1)


def optimizers(model: nn.Module, schedule: VAESchedule) -> list[torch.optim.Optimizer]:
    """Muon (arXiv 2502.16982) for the matrices inside the transformers, AdamW for everything else."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (inner if parameter.ndim == 2 and ".stack." in name else outer).append(parameter)
    return [
        torch.optim.Muon(
            inner, lr=schedule.muon_lr, weight_decay=schedule.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(outer, lr=schedule.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _start_from(model: TextVAE, tensors: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    fitting = {n: v for n, v in tensors.items() if n in own and own[n].shape == v.shape}
    model.load_state_dict(fitting, strict=False)


@torch.no_grad()
def evaluate(
    model: TextVAE, store: TokenStore, lengths: np.ndarray, segments: np.ndarray, device: torch.device
) -> dict[str, float]:
    """Exact-mode figures over `segments`: bits a byte of the gist, of the exact layer, of both, and the share
    of tokens that the gist reads right; for the most detailed gist, and for the others by their number.

    lengths: bytes of each token, int64 [V].
    """
    model.eval()
    config = model.config
    order = np.argsort(segments[:, 1] - segments[:, 0], kind="stable")
    figures: dict[str, float] = {}
    for detail in range(config.details):
        gist = exact = text = 0.0
        right = tokens = 0
        for at in range(0, len(order), 16):
            batch = gather(store, segments[order[at : at + 16]], config.patch)
            x, counts = to_tensors(batch, device)
            terms = compute(model, x, counts, guesses(batch, device), detail, fast=False)
            gist, exact = gist + float(terms.gist), exact + float(terms.exact)
            right += terms.tokens - terms.open + terms.guessed
            tokens += terms.tokens
            text += float(lengths[batch.tokens][np.arange(x.shape[1])[None] < batch.counts[:, None]].sum())
        mark = f"_{detail}" if detail else ""
        figures[f"total_bpb{mark}"] = (gist + exact) / text
        figures[f"gist_bpb{mark}"] = gist / text
        figures[f"exact_bpb{mark}"] = exact / text
        figures[f"gist_accuracy{mark}"] = right / tokens
    model.train()
    return figures


def train_vae(
    config: ModelConfig,
    schedule: VAESchedule,
    *,
    train: TokenStore,
    validation: TokenStore,
    vocabulary: Vocabulary,
    lengths: np.ndarray,
    folder: Path,
    device: torch.device,
    resume: bool,
    initial: Path | None = None,
) -> TextVAE:
    """Train, or go on from `folder/checkpoint.pt`. Writes metrics.jsonl and the checkpoint into `folder`.

    initial: checkpoint of another run, whose tensors are the starting point wherever their shapes fit.

    Raises ColazipError, with the batch saved as `bad_batch.npz`, when the loss stops being finite.
    """
    torch.manual_seed(schedule.seed)
    model = TextVAE(config)
    model.readout.set_classes(
        torch.from_numpy(vocabulary.token_of), torch.from_numpy(vocabulary.limits(schedule.named))
    )
    with torch.no_grad():
        model.places.trainable.copy_(torch.from_numpy(vocabulary.places))
    model.places.requires_grad_(False)
    if initial is not None and not resume:
        state = load_checkpoint(initial, device)
        with fitting(initial):
            _start_from(model, state["model"])
    model.to(device).train()
    descent = Descent(model, optimizers(model, schedule))
    step = 0
    checkpoint = folder / "checkpoint.pt"
    if resume:
        state = load_checkpoint(checkpoint, device)
        with fitting(checkpoint):
            model.load_state_dict(state["model"])
            descent.load(state["optimizers"])
            restore_random_state(state["rng"], device)
            step = state["step"]
    metrics = Metrics(folder / "metrics.jsonl", step=step)
    if not resume:
        metrics.write({"config": asdict(config), "schedule": asdict(schedule), "tokens": len(train.tokens)})
    length = config.segment * config.patch
    sample = validation.segments(length)
    sample = sample[np.random.default_rng(0).permutation(len(sample))[:256]]
    stream: Iterator[Batch] = batches(
        train,
        train.segments(length),
        patch=config.patch,
        patches=schedule.patches,
        seed=schedule.seed,
        skip=step,
    )
    window: list[Terms] = []
    started, seen = time.monotonic(), 0
    while step < schedule.steps:
        batch = next(stream)
        x, counts = to_tensors(batch, device)
        fast = step / schedule.steps < schedule.exact_from
        detail = schedule.detail(step)
        terms = compute(model, x, counts, guesses(batch, device), detail, fast=fast)
        check_finite(terms.loss, descent.backward(terms.loss), step, batch, folder)
        factor = learning_rate(step, schedule.steps, warmup=schedule.warmup, decay_from=schedule.decay_from)
        descent.step(factor)
        window.append(terms)
        seen += terms.tokens
        step += 1
        if step % 50 == 0:
            tokens = sum(t.tokens for t in window)
            metrics.write(
                {
                    "step": step,
                    "gist_bits_a_token": sum(float(t.gist) for t in window) / tokens,
                    "exact_bits_a_token": sum(float(t.exact) for t in window) / tokens,
                    "lr": factor,
                    "tokens_a_second": seen / (time.monotonic() - started),
                }
            )
            window.clear()
        if step % schedule.evaluate_every == 0 or step == schedule.steps:
            metrics.write(
                {
                    "step": step,
                    "validation": "figures",
                    **evaluate(model, validation, lengths, sample, device),
                }
            )
        if step % schedule.save_every == 0 or step == schedule.steps:
            save_atomic(
                {
                    "model": model.state_dict(),
                    "optimizers": descent.state(),
                    "rng": random_state(device),
                    "step": step,
                },
                checkpoint,
            )
    return model
