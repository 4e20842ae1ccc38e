"""Training of the DiT prior by flow matching on the latents of a finished Text VAE."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colazip.cells import TokenCells
from colazip.nn.dit import DiT, knowledge
from colazip.nn.entries import EntryDiT
from colazip.nn.vae import TextVAE, real_tokens
from colazip.pretrained import token_cells
from colazip.train.data import Batch, TokenStore, gather
from colazip.train.distributed import Place
from colazip.train.entries import Telling, entry_error
from colazip.train.loop import Loop, Part, Schedule
from colazip.train.optimize import muon, to_tensors

Cells = tuple[Tensor, Tensor]  # centre and reach, [B, P, C] both: a value lies within reach of its centre


@dataclass(frozen=True)
class PriorSchedule(Schedule):
    """One run. patches: of a micro-batch. Times are logit-normal with mean `shift` (arXiv 2403.03206), and
    uniform in a share `uniform`, as sampling begins at time 0, which the former hardly ever draws. History is
    hidden in a share `unconditional` of the sequences, and something is told in a share `informed` (see
    `draw_knowledge`)."""

    seed: int = 1
    patches: int = 1024
    lr: float = 2e-3
    weight_decay: float = 0.01
    shift: float = 0.0
    uniform: float = 0.1
    unconditional: float = 0.1
    informed: float = 0.5
    muon_lr: float = 3e-3  # of the matrices inside a network over entries


def flow_loss(
    prior: DiT | EntryDiT,
    vectors: Tensor,
    valid: Tensor,
    schedule: PriorSchedule,
    cells: Sequence[Cells] = (),
) -> Tensor:
    """Mean squared error of the velocity over what is there and not known already.

    vectors [B, P, C]; valid bool [B, P]; cells: those that the vectors may be known by, in each way.
    """
    error, count = flow_error(prior, vectors, valid, schedule, cells)
    return error / count.clamp_min(1)


def flow_error(
    prior: DiT | EntryDiT,
    vectors: Tensor,
    valid: Tensor,
    schedule: PriorSchedule,
    cells: Sequence[Cells] = (),
) -> tuple[Tensor, Tensor]:
    """The sum that `flow_loss` is the mean of, and over how many values."""
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
    return (error * open_).sum(), open_.sum()


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
def evaluate_prior(
    prior: DiT | EntryDiT,
    cells: TokenCells,
    held_out: Sequence[Batch],
    schedule: PriorSchedule,
    patch: int,
    telling: Telling | None,
) -> dict[str, float]:
    """Figures on batches that were held out. told_nats: of a token that `draw_known` leaves open, with
    `telling`, of a prior over entries."""
    torch.manual_seed(0)  # the same noise every time, so that figures compare
    latents = [_latents(cells, b, patch, prior.deviation.device) for b in held_out]
    free, told = replace(schedule, informed=0.0), replace(schedule, informed=1.0)
    losses = {
        "flow_loss": [float(flow_loss(prior, z, valid, free)) for z, valid, _ in latents],
        "informed_flow_loss": [float(flow_loss(prior, z, valid, told, known)) for z, valid, known in latents],
    }
    figures = {name: float(np.mean(found)) for name, found in losses.items()}
    if isinstance(prior, EntryDiT) and telling is not None:
        parts = [_told(prior, batch, patch, telling) for batch in held_out]
        figures["told_nats"] = float(sum(e for e, _ in parts)) / max(1.0, float(sum(n for _, n in parts)))
    return figures


def _told(prior: EntryDiT, batch: Batch, patch: int, telling: Telling) -> tuple[Tensor, Tensor]:
    tokens, counts = to_tensors(batch, prior.deviation.device)
    tokens = tokens.unflatten(1, (-1, patch))
    return entry_error(prior, tokens, real_tokens(counts, tokens), telling)


def held_out_batches(validation: TokenStore, length: int, patch: int, whole: bool) -> list[Batch]:
    """A sample of the segments of `length` tokens. whole: of a prior that sees whole texts."""
    own = validation.segments(length)
    own = own[np.random.default_rng(0).permutation(len(own))[:128]]
    own = own[np.argsort(own[:, 1] - own[:, 0], kind="stable")]
    each = 2 if whole else 16  # beliefs over a codebook take some thousand floats a token
    return [gather(validation, own[lo : lo + each], patch) for lo in range(0, len(own), each)]


def telling_of(cells: TokenCells, device: torch.device) -> Telling:
    """What training tells of a text's tokens: what gists of each detail say."""
    everything = np.arange(len(cells.class_of))
    said = np.stack([cells.known(cells.named(everything, d), d) for d in range(cells.details)])
    return Telling(torch.from_numpy(said).to(device), torch.from_numpy(cells.sets()).to(device))


def _over_entries(vae: TextVAE, cells: TokenCells, train: TokenStore) -> EntryDiT:
    """A network over the tokens, its features those of the VAE as far as they go and its frequencies those of
    the training text."""
    prior = EntryDiT.for_text(vae.config, torch.from_numpy(cells.places))
    counts = np.bincount(np.asarray(train.tokens), minlength=vae.config.vocabulary) + 0.5
    logs = torch.from_numpy(np.log(counts))
    with torch.no_grad():
        prior.common.copy_(logs - logs.mean())
        embedded = (
            vae.embed(torch.arange(vae.config.vocabulary, device=next(vae.parameters()).device)).float().cpu()
        )
        embedded = embedded - embedded.mean(0)
        _, _, directions = torch.linalg.svd(embedded, full_matrices=False)
        main = embedded @ directions[: prior.table.shape[1]].T
        prior.table[:, : main.shape[1]].copy_(main / main.std().clamp_min(1e-6))
    return prior


def _optimizers(prior: DiT | EntryDiT, schedule: PriorSchedule) -> list[torch.optim.Optimizer]:
    """AdamW; of a network over entries, Muon for the matrices inside its stack."""
    inner = [p for p in prior.blocks.parameters() if p.ndim == 2] if prior.whole else []
    chosen = {id(p) for p in inner}
    outer = [p for p in prior.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(outer, lr=schedule.lr, betas=(0.9, 0.95), weight_decay=schedule.weight_decay)
    ]
    if inner:
        optimizers.append(muon(inner, schedule.muon_lr, schedule.weight_decay))
    return optimizers


def train_prior(
    vae: TextVAE,
    schedule: PriorSchedule,
    *,
    train: TokenStore,
    validation: TokenStore,
    folder: Path,
    place: Place,
    resume: bool,
    start: DiT | EntryDiT | None = None,
) -> tuple[DiT | EntryDiT, dict[str, float]]:
    """Train, or go on from `folder/checkpoint.pt`; returns the prior and its validation figures. All
    processes of `place` call it. start: a prior that goes on learning."""
    torch.manual_seed(schedule.seed)  # the same weights in every process
    config, cells = vae.config, token_cells(vae)
    if start is not None:
        prior: DiT | EntryDiT = copy.deepcopy(start).to(place.device).train().requires_grad_(True)
    elif config.prior_features:
        prior = _over_entries(vae, cells, train).to(place.device).train()
    else:
        prior = DiT.for_text(config).to(place.device).train()
    length = config.segment * config.patch
    segments = train.segments(length)
    loop = Loop(
        prior,
        _optimizers(prior, schedule),
        schedule,
        folder=folder,
        place=place,
        resume=resume,
        about={"stage": "prior"},
    )
    if not resume and start is None:
        order = np.random.default_rng(schedule.seed).permutation(len(segments))
        latents, valid, _ = _latents(
            cells, gather(train, segments[order[:64]], config.patch), config.patch, place.device
        )
        spread = latents[valid].std(0).clamp_min(1e-3)
        if isinstance(prior, EntryDiT):  # entries are alike wherever they stand
            values = latents[valid].unflatten(-1, (config.patch, -1)).flatten(0, 1)
            spread = values.std(0).clamp_min(1e-3).repeat(config.patch)
        prior.deviation.copy_(spread)
    held_out = held_out_batches(validation, length, config.patch, prior.whole)
    stream = loop.stream(train, segments, patch=config.patch, patches=schedule.patches)

    telling = telling_of(cells, place.device) if isinstance(prior, EntryDiT) else None

    def part(index: int) -> Part:
        torch.manual_seed(schedule.part_seed(index))
        batch = next(stream)
        if isinstance(prior, EntryDiT) and telling is not None:
            error, count = _told(prior, batch, config.patch, telling)
            return {"loss": error, "count": count, "tokens": float(batch.counts.sum())}, batch
        latents, valid, known = _latents(cells, batch, config.patch, place.device)
        error, count = flow_error(prior, latents, valid, schedule, known)
        return {"loss": error, "count": count, "tokens": float(batch.counts.sum())}, batch

    def figures(sums: dict[str, float], seconds: float) -> dict[str, float]:
        return {
            "loss" if prior.whole else "flow_loss": sums["loss"] / max(sums["count"], 1.0),
            "tokens_a_second": sums["tokens"] / seconds,
        }

    def validate() -> dict[str, float]:
        return evaluate_prior(prior, cells, held_out, schedule, config.patch, telling)

    return prior, loop.run(part, figures, validate) or validate()
