"""Training of the Text VAE: schedule, optimizers, validation figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from colazip.config import ModelConfig
from colazip.nn.vae import TextVAE
from colazip.train.captured import CapturedSteps
from colazip.train.data import TokenStore, Vocabulary, gather
from colazip.train.distributed import Place
from colazip.train.loop import Loop, Part, Schedule
from colazip.train.losses import compute
from colazip.train.optimize import fitting, guesses, load_checkpoint, muon, split_parameters, to_tensors
from colazip.train.resident import BYTES_A_TOKEN, Resident, Segments
from colazip.train.side import Teller


@dataclass(frozen=True)
class VAESchedule(Schedule):
    """One training run.

    named: for each detail of a gist, how many of the commonest tokens it names; drawn: how often a batch is
    coded at each. untold: of a model whose gists can be coded given search codes, the share of batches that
    are coded without; told: how often codes of each of its sizes are given. patches: of a micro-batch. From
    the share `exact_from` of the steps on attention is the integer one.
    """

    decay_from: float = 0.4
    named: tuple[int, ...] = (2000,)
    drawn: tuple[float, ...] = (1.0,)
    untold: float = 0.3
    told: tuple[float, ...] = (0.7, 0.3)
    patches: int = 1536
    lr: float = 3e-3
    muon_lr: float = 3e-3
    weight_decay: float = 0.05
    exact_from: float = 0.88

    def detail(self, index: int) -> int:
        """Which gist a micro-batch is coded as; a function of the seed alone."""
        return _choose(self.drawn, np.random.default_rng((self.seed, 5, index)))

    def code_bytes(self, index: int, sizes: Sequence[int]) -> int | None:
        """Of which size the search codes are that a micro-batch is coded given; None: without."""
        rng = np.random.default_rng((self.seed, 6, index))
        return None if rng.random() < self.untold else sizes[_choose(self.told[: len(sizes)], rng)]


def _choose(shares: Sequence[float], rng: np.random.Generator) -> int:
    return min(int(np.searchsorted(np.cumsum(shares), rng.random() * sum(shares), "right")), len(shares) - 1)


def optimizers(model: nn.Module, schedule: VAESchedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformers, AdamW for everything else."""
    inner, outer = split_parameters(model)
    return [
        muon(inner, schedule.muon_lr, schedule.weight_decay),
        torch.optim.AdamW(outer, lr=schedule.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _start_from(model: TextVAE, tensors: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    fitting = {n: v for n, v in tensors.items() if n in own and own[n].shape == v.shape}
    model.load_state_dict(fitting, strict=False)


def held_out_sample(validation: TokenStore, length: int) -> np.ndarray:
    """Segments of `length` tokens at most that figures are of, the same every time: int64 [S, 2]."""
    segments = validation.segments(length)
    return segments[np.random.default_rng(0).permutation(len(segments))[:256]]


@torch.no_grad()
def evaluate(
    model: TextVAE,
    store: TokenStore,
    lengths: np.ndarray,
    segments: np.ndarray,
    device: torch.device,
    teller: Teller | None = None,
) -> dict[str, float]:
    """Exact-mode figures over `segments`: bits a byte of the gist, of the exact layer, of both, and the share
    of tokens that the gist reads right; for the most detailed gist, and for the others by their number. With
    a teller also what they are given search codes of the model's own size.

    lengths: bytes of each token, int64 [V].
    """
    figures = _evaluate(model, store, lengths, segments, device, None)
    if teller is not None:
        told = _evaluate(model, store, lengths, segments, device, teller)
        figures |= {f"told_{name}": value for name, value in told.items()}
    return figures


def _evaluate(
    model: TextVAE,
    store: TokenStore,
    lengths: np.ndarray,
    segments: np.ndarray,
    device: torch.device,
    teller: Teller | None,
) -> dict[str, float]:
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
            about = None if teller is None else teller.about(batch, config.code_bytes, device)
            terms = compute(model, x, counts, guesses(batch, device), detail, fast=False, about=about)
            gist, exact = gist + float(terms.gist), exact + float(terms.exact)
            right += terms.tokens - terms.open + int(terms.guessed)
            tokens += terms.tokens
            text += float(lengths[batch.tokens][np.arange(x.shape[1])[None] < batch.counts[:, None]].sum())
        mark = f"_{detail}" if detail else ""
        figures[f"total_bpb{mark}"] = (gist + exact) / text
        figures[f"gist_bpb{mark}"] = gist / text
        figures[f"exact_bpb{mark}"] = exact / text
        figures[f"gist_accuracy{mark}"] = right / tokens
    model.train()
    return figures


def _has_room(device: torch.device, tokens: int) -> bool:
    """Whether a GPU can hold that text beside what training needs."""
    if device.type != "cuda":
        return False
    return tokens * BYTES_A_TOKEN < torch.cuda.get_device_properties(device).total_memory // 4


def captured_steps(
    model: TextVAE,
    schedule: VAESchedule,
    train: TokenStore,
    teller: Teller | None,
    folder: Path,
) -> CapturedSteps:
    """Steps over a text that goes to the model's device. folder: of the run."""
    device = model.readout.token_of.device
    segments = Segments.cut(train, model.config, teller, device, folder / "codes.npz")
    books = {} if teller is None else teller.codebooks
    data = Resident(train, segments, model.config, books, device)
    return CapturedSteps(model, schedule, data, tuple(books), folder)


def new_vae(
    config: ModelConfig,
    schedule: VAESchedule,
    vocabulary: Vocabulary,
    teller: Teller | None = None,
    initial: Path | None = None,
) -> TextVAE:
    """Networks as training starts with them, the same in every process.

    teller: makes the search codes that a conditional model is given. initial: checkpoint of another run,
    whose tensors are the starting point wherever their shapes fit.
    """
    torch.manual_seed(schedule.seed)
    model = TextVAE(config)
    model.readout.set_classes(
        torch.from_numpy(vocabulary.token_of), torch.from_numpy(vocabulary.limits(schedule.named))
    )
    with torch.no_grad():
        model.places.trainable.copy_(torch.from_numpy(vocabulary.places))
    if model.likeness is not None:
        assert teller is not None
        model.likeness.set_rows(teller.rows(), model.readout.token_of)
        model.likeness.begin(torch.from_numpy(vocabulary.rank)[model.readout.token_of])
    if initial is not None:
        state = load_checkpoint(initial, torch.device("cpu"))
        with fitting(initial):
            _start_from(model, state["model"])
    return model


def train_vae(
    model: TextVAE,
    schedule: VAESchedule,
    *,
    train: TokenStore,
    validation: TokenStore,
    lengths: np.ndarray,
    folder: Path,
    place: Place,
    resume: bool,
    teller: Teller | None = None,
    resident: bool | None = None,
) -> None:
    """Train a model, or go on from `folder/checkpoint.pt`; all processes of `place` call it.

    lengths: bytes of each token, int64 [V]. teller: makes the search codes that a conditional model is
    given. resident: whether the text goes to the device and steps are captured; None: where one GPU has room.
    Raises ColazipError when the loss stops being finite.
    """
    config, device = model.config, place.device
    model.places.requires_grad_(False)
    model.to(device).train()
    if resident is None:
        resident = place.world == 1 and _has_room(device, len(train.tokens))
    captured = captured_steps(model, schedule, train, teller, folder) if resident else None
    loop = Loop(
        model,
        captured or optimizers(model, schedule),
        schedule,
        folder=folder,
        place=place,
        resume=resume,
        about={"config": asdict(config), "tokens": len(train.tokens)},
    )
    length = config.segment * config.patch
    sample = held_out_sample(validation, length)
    stream = None
    if not resident:  # captured steps draw their own batches
        stream = loop.stream(train, train.segments(length), patch=config.patch, patches=schedule.patches)

    def part(index: int) -> Part:
        assert stream is not None
        batch = next(stream)
        x, counts = to_tensors(batch, device)
        fast = loop.step / schedule.steps < schedule.exact_from
        size = None if teller is None else schedule.code_bytes(index, tuple(teller.codebooks))
        about = None if teller is None or size is None else teller.about(batch, size, device)
        detail = schedule.detail(index)
        terms = compute(model, x, counts, guesses(batch, device), detail, fast=fast, about=about)
        return {"loss": terms.loss, "count": terms.tokens, "gist": terms.gist, "exact": terms.exact}, batch

    def figures(sums: dict[str, float], seconds: float) -> dict[str, float]:
        tokens = sums["count"]
        return {
            "gist_bits_a_token": sums["gist"] / tokens,
            "exact_bits_a_token": sums["exact"] / tokens,
            "tokens_a_second": tokens / seconds,
        }

    loop.run(
        None if resident else part,
        figures,
        lambda: evaluate(model, validation, lengths, sample, device, teller),
    )
