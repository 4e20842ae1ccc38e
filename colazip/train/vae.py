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
from colazip.train.data import Batch, TokenStore, batches, gather
from colazip.train.losses import Terms, Weights, compute
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

    The latents are earned first: until `latents_until` the encoder learns from the gist reading alone, then a
    weight on the latents' bits is steered so that their rate meets `rate_bits` a patch, and only after
    `joint_from` does the exact coder's loss reach the encoder. From `exact_from` on attention is the integer
    one.
    """

    steps: int
    patches: int = 1536  # latents a batch
    lr: float = 3e-3
    muon_lr: float = 3e-3
    warmup: int = 100
    decay_from: float = 0.4
    weight_decay: float = 0.05
    gist: float = 0.5
    coarse: float = 0.2
    coarse_every: int = 4
    rate_bits: float = 16.0
    rate_floor: float = 0.8
    rate_cap: float = 1.0
    latents_until: float = 0.01
    joint_from: float = 0.01
    exact_from: float = 0.88
    token_dropout: float = 0.05
    evaluate_every: int = 500
    save_every: int = 250
    seed: int = 0


class RateControl:
    """Steers the weight of the latents' bits towards a target rate, between a floor and a cap.

    The weight climbs by 1 % a step until it has reached the floor; from there it climbs while the rate is
    above the target and falls by 2 % below. At a weight above 1 the latents collapse faster than any
    controller reacts; far below 1 they spend bits that save the exact coder less (docs/experiments.md).
    """

    def __init__(self, target: float, floor: float, cap: float) -> None:
        self.target, self.floor, self.cap = target, floor, cap
        self.weight, self.average = 0.02, 0.0

    def update(self, rate: float) -> None:
        """rate: bits a patch of the last batch."""
        self.average = 0.8 * self.average + 0.2 * rate if self.average else rate
        if self.weight < self.floor:
            self.weight = min(self.floor, self.weight * 1.01)
        else:
            factor = 1.01 if self.average > self.target else 0.98
            self.weight = min(self.cap, max(self.floor, self.weight * factor))


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
    """Exact-mode figures over `segments` in bits a byte; gist accuracy as the share of tokens read right.

    lengths: bytes of each token, int64 [V].
    """
    model.eval()
    exact = gist = rate = coarse = right = tokens = text = patches = 0.0
    config = model.config
    order = np.argsort(segments[:, 1] - segments[:, 0], kind="stable")
    for at in range(0, len(order), 16):
        batch = gather(store, segments[order[at : at + 16]], config.patch)
        x, counts = to_tensors(batch, device)
        terms = compute(model, x, counts, guesses(batch, device), Weights(1.0, 1.0, True), fast=False)
        exact, gist, rate = exact + float(terms.exact), gist + float(terms.gist), rate + float(terms.rate)
        coarse += float(terms.coarse_rate)
        right += _gist_hits(model, x, counts)
        tokens, patches = tokens + terms.tokens, patches + terms.patches
        text += float(lengths[batch.tokens][np.arange(x.shape[1])[None] < batch.counts[:, None]].sum())
    model.train()
    return {
        "exact_bpb": exact / text,
        "rate_bpb": rate / text,
        "coarse_bpb": coarse / text,
        "total_bpb": (exact + rate) / text,
        "gist_bpb": gist / text,
        "gist_accuracy": right / tokens,
        "rate_bits_a_patch": rate / patches,
    }


def _gist_hits(model: TextVAE, x: torch.Tensor, counts: torch.Tensor) -> int:
    real = torch.arange(x.shape[1], device=x.device)[None] < counts[:, None]
    patches = x.unflatten(1, (-1, model.config.patch))
    valid = real.view(patches.shape)[..., 0]
    levels, _ = model.encode(patches, real.view(patches.shape))
    states = model.decoder.read(model.decoder(levels, valid)[valid])
    keep = real.view(patches.shape)[valid]
    return int((model.readout.best(states[keep]) == patches[valid][keep]).sum())


def train_vae(
    config: ModelConfig,
    schedule: VAESchedule,
    *,
    train: TokenStore,
    validation: TokenStore,
    class_of: np.ndarray,
    places: np.ndarray,
    lengths: np.ndarray,
    folder: Path,
    device: torch.device,
    resume: bool,
    initial: Path | None = None,
) -> TextVAE:
    """Train, or go on from `folder/checkpoint.pt`. Writes metrics.jsonl and the checkpoint into `folder`.

    initial: checkpoint of another run, whose tensors are the starting point wherever their shapes fit; the
    weight of the latents' bits goes on from there.

    Raises ColazipError, with the batch saved as `bad_batch.npz`, when the loss stops being finite.
    """
    torch.manual_seed(schedule.seed)
    model = TextVAE(config)
    model.readout.set_classes(torch.from_numpy(class_of))
    model.encoder.set_places(torch.from_numpy(places))
    control = RateControl(schedule.rate_bits, schedule.rate_floor, schedule.rate_cap)
    if initial is not None and not resume:
        state = load_checkpoint(initial, device)
        with fitting(initial):
            _start_from(model, state["model"])
            # A run that has steered its rate already goes on from there.
            control.weight, control.average = state.get("control", (control.weight, control.average))
    model.to(device).train()
    descent = Descent(model, optimizers(model, schedule))
    step = 0
    checkpoint = folder / "checkpoint.pt"
    if resume:
        state = load_checkpoint(checkpoint, device)
        with fitting(checkpoint):
            model.load_state_dict(state["model"])
            descent.load(state["optimizers"])
            control.weight, control.average = state["control"]
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
        progress = step / schedule.steps
        steering = progress >= schedule.latents_until
        weights = Weights(
            gist=schedule.gist,
            rate=control.weight if steering else 0.0,
            exact_into_latents=progress >= schedule.joint_from,
            token_dropout=schedule.token_dropout if progress < schedule.exact_from else 0.0,
            coarse=schedule.coarse if step % schedule.coarse_every == 0 else 0.0,
        )
        terms = compute(
            model, x, counts, guesses(batch, device), weights, fast=progress < schedule.exact_from
        )
        check_finite(terms.loss, descent.backward(terms.loss), step, batch, folder)
        factor = learning_rate(step, schedule.steps, warmup=schedule.warmup, decay_from=schedule.decay_from)
        descent.step(factor)
        if steering:
            control.update(float(terms.rate) / terms.patches)
        window.append(terms)
        seen += terms.tokens
        step += 1
        if step % 50 == 0:
            tokens = sum(t.tokens for t in window)
            metrics.write(
                {
                    "step": step,
                    "exact_bits_a_token": sum(float(t.exact) for t in window) / tokens,
                    "gist_bits_a_token": sum(float(t.gist) for t in window) / tokens,
                    "rate_bits_a_patch": sum(float(t.rate) for t in window) / sum(t.patches for t in window),
                    "rate_weight": control.weight,
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
                    "control": (control.weight, control.average),
                    "rng": random_state(device),
                    "step": step,
                },
                checkpoint,
            )
    return model
