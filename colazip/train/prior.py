"""Training of the DiT prior by flow matching on the latents of a finished Text VAE."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colazip.nn.dit import DiT
from colazip.nn.vae import TextVAE, real_tokens
from colazip.train.data import Batch, TokenStore, batches, gather
from colazip.train.optimize import (
    Descent,
    Metrics,
    check_finite,
    fitting,
    learning_rate,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_atomic,
    to_tensors,
)


@dataclass(frozen=True)
class PriorSchedule:
    """One run. Times are logit-normal with mean `shift` (arXiv 2403.03206); history is hidden in a share
    `unconditional`."""

    steps: int
    patches: int = 1024
    lr: float = 2e-3
    warmup: int = 100
    decay_from: float = 0.5
    weight_decay: float = 0.01
    shift: float = 0.0
    unconditional: float = 0.1
    evaluate_every: int = 500
    save_every: int = 250
    seed: int = 1


def flow_loss(prior: DiT, levels: Tensor, valid: Tensor, schedule: PriorSchedule) -> Tensor:
    """Mean squared error of the velocity over real latents. levels [B, P, C], valid bool [B, P]."""
    data = levels / prior.deviation
    blocks = -(-data.shape[1] // prior.block)
    t = torch.sigmoid(torch.randn(len(data), blocks, device=data.device) + schedule.shift)
    t = t.repeat_interleave(prior.block, 1)[:, : data.shape[1]]
    noise = torch.randn_like(data)
    noisy = (1 - t[..., None]) * noise + t[..., None] * data
    history = torch.rand(len(data), device=data.device) >= schedule.unconditional
    velocity = prior(noisy, t, data, valid, history)
    return (velocity - (data - noise)).square()[valid].mean()


@torch.no_grad()
def _latents(vae: TextVAE, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    tokens, counts = to_tensors(batch, device)
    patches = tokens.unflatten(1, (-1, vae.config.patch))
    real = real_tokens(counts, patches)
    return vae.encode(patches, real).levels, real[..., 0]


@torch.no_grad()
def _evaluate(
    prior: DiT, vae: TextVAE, held_out: list[Batch], schedule: PriorSchedule, device: torch.device
) -> float:
    state = torch.get_rng_state()
    torch.manual_seed(0)  # the same noise every time, so that figures compare
    losses = [float(flow_loss(prior, *_latents(vae, b, device), schedule)) for b in held_out]
    torch.set_rng_state(state)
    return float(np.mean(losses))


def train_prior(
    vae: TextVAE,
    schedule: PriorSchedule,
    *,
    train: TokenStore,
    validation: TokenStore,
    folder: Path,
    device: torch.device,
    resume: bool,
) -> tuple[DiT, dict[str, float]]:
    """Train, or go on from `folder/checkpoint.pt`; returns the prior and its validation figures."""
    vae.eval()
    torch.manual_seed(schedule.seed)
    config = vae.config
    prior = DiT(config).to(device).train()
    length = config.segment * config.patch
    segments = train.segments(length)
    descent = Descent(
        prior,
        [
            torch.optim.AdamW(
                prior.parameters(), lr=schedule.lr, betas=(0.9, 0.95), weight_decay=schedule.weight_decay
            )
        ],
    )
    step, checkpoint = 0, folder / "checkpoint.pt"
    if resume:
        state = load_checkpoint(checkpoint, device)
        with fitting(checkpoint):
            prior.load_state_dict(state["model"])
            descent.load(state["optimizers"])
            restore_random_state(state["rng"], device)
            step = state["step"]
    metrics = Metrics(folder / "metrics.jsonl", step=step)
    if not resume:
        metrics.write({"stage": "prior", "schedule": asdict(schedule)})
        sample = gather(
            train,
            segments[np.random.default_rng(schedule.seed).permutation(len(segments))[:64]],
            config.patch,
        )
        levels, valid = _latents(vae, sample, device)
        prior.deviation.copy_(levels[valid].std(0).clamp_min(0.1))
    own = validation.segments(length)
    own = own[np.random.default_rng(0).permutation(len(own))[:128]]
    own = own[np.argsort(own[:, 1] - own[:, 0], kind="stable")]
    held_out = [gather(validation, own[lo : lo + 16], config.patch) for lo in range(0, len(own), 16)]
    stream = batches(
        train, segments, patch=config.patch, patches=schedule.patches, seed=schedule.seed, skip=step
    )
    window: list[float] = []
    figures: dict[str, float] = {}
    started = time.monotonic()
    first = step
    while step < schedule.steps:
        batch = next(stream)
        loss = flow_loss(prior, *_latents(vae, batch, device), schedule)
        window.append(check_finite(loss, descent.backward(loss), step, batch, folder))
        factor = learning_rate(step, schedule.steps, warmup=schedule.warmup, decay_from=schedule.decay_from)
        descent.step(factor)
        step += 1
        if step % 50 == 0:
            speed = (step - first) / (time.monotonic() - started)
            metrics.write({"step": step, "flow_loss": float(np.mean(window)), "steps_a_second": speed})
            window.clear()
        if step % schedule.evaluate_every == 0 or step == schedule.steps:
            figures = {"flow_loss": _evaluate(prior, vae, held_out, schedule, device)}
            metrics.write({"step": step, "validation": "figures", **figures})
        if step % schedule.save_every == 0 or step == schedule.steps:
            state = {"model": prior.state_dict(), "optimizers": descent.state()}
            save_atomic({**state, "rng": random_state(device), "step": step}, checkpoint)
    if not figures:
        figures = {"flow_loss": _evaluate(prior, vae, held_out, schedule, device)}
    return prior, figures
