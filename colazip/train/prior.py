"""Training of the DiT prior by flow matching on the latents of a finished Text VAE."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colazip.cells import TokenCells
from colazip.nn.dit import DiT, knowledge
from colazip.nn.vae import TextVAE
from colazip.pretrained import token_cells
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
)

Cells = tuple[Tensor, Tensor]  # centre and reach, [B, P, C] both: a value lies within reach of its centre


@dataclass(frozen=True)
class PriorSchedule:
    """One run. Times are logit-normal with mean `shift` (arXiv 2403.03206), and uniform in a share `uniform`,
    as sampling begins at time 0, which the former hardly ever draws. History is hidden in a share
    `unconditional` of the sequences, and something is told in a share `informed` (see `draw_knowledge`)."""

    steps: int
    patches: int = 1024
    lr: float = 2e-3
    warmup: int = 100
    decay_from: float = 0.5
    weight_decay: float = 0.01
    shift: float = 0.0
    uniform: float = 0.1
    unconditional: float = 0.1
    informed: float = 0.5
    evaluate_every: int = 500
    save_every: int = 250
    seed: int = 1


def flow_loss(
    prior: DiT, vectors: Tensor, valid: Tensor, schedule: PriorSchedule, cells: Sequence[Cells] = ()
) -> Tensor:
    """Mean squared error of the velocity over what is there and not known already.

    vectors [B, P, C]; valid bool [B, P]; cells: those that the vectors may be known by, in each way.
    """
    data = vectors / prior.deviation
    blocks = -(-data.shape[1] // prior.block)
    shape = len(data), blocks
    t = torch.sigmoid(torch.randn(shape, device=data.device) + schedule.shift)
    evenly = torch.rand(shape, device=data.device) < schedule.uniform
    t = torch.where(evenly, torch.rand(shape, device=data.device), t)
    t = t.repeat_interleave(prior.block, 1)[:, : data.shape[1]]
    noise = torch.randn_like(data)
    noisy = (1 - t[..., None]) * noise + t[..., None] * data
    history = torch.rand(len(data), device=data.device) >= schedule.unconditional
    known, open_ = None, valid[..., None].expand_as(data)
    if schedule.informed:
        centre, reach = draw_knowledge(vectors, schedule.informed, cells)
        known = knowledge(centre / prior.deviation, reach / prior.deviation)
        open_ = open_ & (reach > 0)
    velocity = prior(noisy, t, data, valid, history, known)
    error = (velocity - (data - noise)).square()
    return (error * open_).sum() / open_.sum().clamp_min(1)


def draw_knowledge(vectors: Tensor, share: float, cells: Sequence[Cells]) -> tuple[Tensor, Tensor]:
    """What training tells of vectors [B, P, C]: (centre, reach), both [B, P, C].

    Of a share of the sequences, some vectors are known: all of these exactly, or all by one way of knowing
    their cells. Then the network fills in what is missing, or what is coarse.
    """
    count, device = len(vectors), vectors.device
    kind = torch.randint(len(cells) + 1, (count,), device=device)
    # Exactly known vectors leave something open. Cells are known of everything half of the time.
    told = torch.rand(count, device=device)
    told = torch.where(kind > 0, 2 * told, told) * (torch.rand(count, device=device) < share)
    row = torch.arange(count, device=device)
    centre = torch.stack([vectors, *(c for c, _ in cells)])[kind, row]
    reach = torch.stack([torch.zeros_like(vectors), *(r for _, r in cells)])[kind, row]
    is_told = torch.rand(vectors.shape[:2], device=device) < told[:, None]
    return centre, torch.where(is_told[..., None], reach, torch.inf)


def _latents(
    cells: TokenCells, batch: Batch, patch: int, device: torch.device
) -> tuple[Tensor, Tensor, list[Cells]]:
    """Latents [B, P, K * C] of the tokens of a batch, valid bool [B, P], and the cells that gists of each
    detail know them by."""
    shape = len(batch.tokens), -1, patch * cells.places.shape[1]
    real = (np.arange(batch.tokens.shape[1])[None] < batch.counts[:, None])[..., None]

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy((values * real).astype(np.float32).reshape(shape)).to(device)

    known: list[Cells] = []
    for detail in range(cells.details):
        centre, reach = cells.boxes(cells.named(batch.tokens, detail), detail)
        known.append((tensor(centre), tensor(reach)))
    valid = torch.from_numpy(real[:, ::patch, 0].copy()).to(device)
    return tensor(cells.places[batch.tokens]), valid, known


@torch.no_grad()
def _evaluate(
    prior: DiT, cells: TokenCells, held_out: list[Batch], schedule: PriorSchedule, patch: int
) -> dict[str, float]:
    state = torch.get_rng_state()
    torch.manual_seed(0)  # the same noise every time, so that figures compare
    latents = [_latents(cells, b, patch, prior.deviation.device) for b in held_out]
    free, told = replace(schedule, informed=0.0), replace(schedule, informed=1.0)
    figures = {
        "flow_loss": [float(flow_loss(prior, z, valid, free)) for z, valid, _ in latents],
        "informed_flow_loss": [float(flow_loss(prior, z, valid, told, known)) for z, valid, known in latents],
    }
    torch.set_rng_state(state)
    return {name: float(np.mean(losses)) for name, losses in figures.items()}


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
    torch.manual_seed(schedule.seed)
    config, cells = vae.config, token_cells(vae)
    prior = DiT.for_text(config).to(device).train()
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
        latents, valid, _ = _latents(cells, sample, config.patch, device)
        prior.deviation.copy_(latents[valid].std(0).clamp_min(1e-3))
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
        latents, valid, known = _latents(cells, batch, config.patch, device)
        loss = flow_loss(prior, latents, valid, schedule, known)
        window.append(check_finite(loss, descent.backward(loss), step, batch, folder))
        factor = learning_rate(step, schedule.steps, warmup=schedule.warmup, decay_from=schedule.decay_from)
        descent.step(factor)
        step += 1
        if step % 50 == 0:
            speed = (step - first) / (time.monotonic() - started)
            metrics.write({"step": step, "flow_loss": float(np.mean(window)), "steps_a_second": speed})
            window.clear()
        if step % schedule.evaluate_every == 0 or step == schedule.steps:
            figures = _evaluate(prior, cells, held_out, schedule, config.patch)
            metrics.write({"step": step, "validation": "figures", **figures})
        if step % schedule.save_every == 0 or step == schedule.steps:
            state = {"model": prior.state_dict(), "optimizers": descent.state()}
            save_atomic({**state, "rng": random_state(device), "step": step}, checkpoint)
    if not figures:
        figures = _evaluate(prior, cells, held_out, schedule, config.patch)
    return prior, figures
