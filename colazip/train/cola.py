"""Both training stages of the full float model (arXiv 2605.06548), on one to many devices.

Stage 1 trains the Text VAE, stage 2 VAE and prior together from there. A step's batch consists of a fixed
number of micro-batches in a fixed order, each with its own seed; N processes take every N-th. So the losses
do not depend on how many processes there are, nor on where a run was interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from colazip.nn.cola import ColaConfig, Layer
from colazip.tokenizer import Tokenizer
from colazip.train.cola_folder import read_tensors, save_cola, write_tensors
from colazip.train.cola_losses import ColaWeights, Stage1, Stage2
from colazip.train.data import Batch, TokenStore, batches, check_start, gather, read_texts
from colazip.train.distributed import (
    Average,
    Parallel,
    Place,
    Spread,
    clip,
    has_checkpoint,
    joined,
    one_after_another,
    restore,
    save,
    share_of,
    total,
    wait,
    whole,
)
from colazip.train.loop import Schedule
from colazip.train.optimize import Metrics, check_finite, fitting, learning_rate, to_tensors
from colazip.train.tensorboard import EventFile
from colazip.train.vocabulary import make_tokenizer

_LN2 = 0.6931471805599453
_HELD_OUT_SEED = 1 << 62  # apart from those of training steps


@dataclass(frozen=True)
class StageSchedule(Schedule):
    """One stage. tokens: of a micro-batch, padding included; average: decay of the averaged weights."""

    micro_batches: int = 8
    save_every: int = 500
    tokens: int = 8192
    lr: float = 3e-4
    weight_decay: float = 0.1
    average: float = 0.999


@dataclass(frozen=True)
class ColaRecipe:
    """Everything that decides a full float model but the data."""

    model: ColaConfig
    stage1: StageSchedule
    stage2: StageSchedule
    weights: ColaWeights = field(default_factory=ColaWeights)
    parallel: Parallel = field(default_factory=Parallel)
    tokenizer_megabytes: int = 45  # of training text, evenly spread, that the tokenizer is trained on


def run_cola(
    recipe: ColaRecipe,
    *,
    data: Sequence[Path],
    validation: Sequence[Path],
    out: Path,
    text_column: str = "text",
    skip_sources: Sequence[str] = (),
    device: str = "cpu",
    resume: bool = False,
    tensorboard: bool = False,
) -> Path:
    """Train both stages and write `out/model`; returns that folder.

    tensorboard: write the metrics as event files, too. Started by torchrun, all processes call this. Raises
    InputError when there is nothing to read, or when `out` holds a run and `resume` is not given; UsageError
    when the processes can't share a batch.
    """
    check_start(out, (*data, *validation), resume=resume)
    with joined(device) as place:
        wait()  # every process has looked whether there is a run before the first one starts it
        for schedule in (recipe.stage1, recipe.stage2):
            share_of(schedule.micro_batches, place)  # raises before anything is written
        with one_after_another(place):
            tokenizer, train, held_out = _prepare(recipe, data, validation, out, text_column, skip_sources)
        vae_file = out / "stage1" / "vae.safetensors"
        if not (resume and vae_file.exists()):
            with place.device:  # networks of this size are slow to make on a CPU first
                stage1 = Stage1(recipe.model, recipe.weights)
            stage1_average = _Run("stage1", stage1, recipe, recipe.stage1, place, out, tensorboard).fit(
                train, held_out, resume=resume, prepare=stage1.initialize
            )
            tensors = whole(_averaged(stage1, stage1_average))
            if place.first:
                write_tensors(vae_file, {n.removeprefix("vae."): t for n, t in tensors.items()})
            wait()
            del stage1, stage1_average, tensors
        with place.device:
            stage2 = Stage2(recipe.model, recipe.weights)

        def start() -> None:
            stage2.initialize()
            with fitting(vae_file):
                stage2.start_from(read_tensors(vae_file))
            _normalize(stage2, train, recipe, place.device)

        average = _Run("stage2", stage2, recipe, recipe.stage2, place, out, tensorboard).fit(
            train, held_out, resume=resume, prepare=start
        )
        tensors = whole(_averaged(stage2, average))
        if place.first:
            kept = {n: t for n, t in tensors.items() if not n.startswith("reference.")}
            save_cola(out / "model", recipe.model, kept, tokenizer)
        wait()
    return out / "model"


def _prepare(
    recipe: ColaRecipe,
    data: Sequence[Path],
    validation: Sequence[Path],
    out: Path,
    text_column: str,
    skip_sources: Sequence[str],
) -> tuple[Tokenizer, TokenStore, TokenStore]:
    """Tokenizer and tokens, made by the process that comes first and read by the others."""

    def texts(paths: Sequence[Path]) -> Iterator[str]:
        return read_texts(paths, text_column, skip_sources)

    out.mkdir(parents=True, exist_ok=True)
    if not (out / "recipe.json").exists():
        (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    tokenizer = make_tokenizer(
        recipe.model.vocabulary, recipe.tokenizer_megabytes, texts, data, out / "tokenizer.json"
    )
    held_out = TokenStore.build(out / "validation", texts(validation), tokenizer)
    return tokenizer, TokenStore.build(out / "train", texts(data), tokenizer), held_out


@torch.no_grad()
def _normalize(stage2: Stage2, train: TokenStore, recipe: ColaRecipe, device: torch.device) -> None:
    """Measure mean and deviation of each latent channel over a sample of the training text."""
    segments = train.segments(recipe.model.context)
    sample = segments[np.random.default_rng(recipe.stage2.seed).permutation(len(segments))[:32]]
    tokens, counts = to_tensors(gather(train, sample, recipe.model.patch), device)
    mean, log_variance = stage2.vae.encoder(tokens)
    real = torch.arange(tokens.shape[1], device=device)[None] < counts[:, None]
    valid = real.unflatten(1, (-1, recipe.model.patch))[..., 0]
    stage2.vae.shift.copy_(mean[valid].mean(0))
    stage2.vae.scale.copy_((mean[valid].var(0) + log_variance[valid].exp().mean(0)).sqrt().clamp_min(1e-3))


def _averaged(module: nn.Module, average: Average) -> dict[str, Tensor]:
    """The averaged weights, and buffers as they are."""
    return {**module.state_dict(), **average.weights}


class _Run:
    """One stage under way."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        recipe: ColaRecipe,
        schedule: StageSchedule,
        place: Place,
        out: Path,
        tensorboard: bool,
    ) -> None:
        self.tensorboard = tensorboard and place.first
        self.name, self.module, self.recipe, self.schedule = name, module, recipe, schedule
        self.place, self.folder = place, out / name
        self.own_parts = share_of(schedule.micro_batches, place)
        self.patches = schedule.tokens // recipe.model.patch

    def fit(
        self, train: TokenStore, held_out: TokenStore, *, resume: bool, prepare: Callable[[], None]
    ) -> Average:
        """Train, or go on from the newest checkpoint. prepare: sets the weights of a run that starts."""
        schedule, module, place = self.schedule, self.module, self.place
        self.folder.mkdir(parents=True, exist_ok=True)
        resume = resume and has_checkpoint(self.folder)
        torch.manual_seed(schedule.seed)  # the same weights in every process
        module.to(place.device)
        if not resume:
            prepare()
        layers = [m for m in module.modules() if isinstance(m, Layer)]
        for layer in layers:
            layer.recompute = self.recipe.parallel.recompute
        spread = Spread(module, layers, self.recipe.parallel, place)
        optimizer = make_optimizer(module, schedule)
        average = Average(module, schedule.average)
        step = restore(self.folder, module, optimizer, average) if resume else 0
        metrics = Metrics(self.folder / "metrics.jsonl", step=step) if place.first else None
        events = EventFile(self.folder) if self.tensorboard else None

        def write(entry: dict[str, Any]) -> None:
            for file in (metrics, events):
                if file is not None:
                    file.write(entry)

        if not resume:
            write({"stage": self.name, "schedule": asdict(schedule), "processes": place.world})
        model = self.recipe.model
        stream = batches(
            train,
            train.segments(model.context),
            patch=model.patch,
            patches=self.patches,
            seed=schedule.seed,
            skip=step * schedule.micro_batches,
            rank=place.rank,
            world=place.world,
        )
        window: dict[str, float] = {}
        seconds = 0.0  # of training alone
        while step < schedule.steps:
            started = time.monotonic()
            parts = [next(stream) for _ in range(self.own_parts)]
            sums = take_step(spread, optimizer, parts, schedule, step, self.folder)
            seconds += time.monotonic() - started
            step += 1
            average.update(module, step)
            window = {n: window.get(n, 0.0) + v for n, v in sums.items()}
            last = step == schedule.steps
            if step % schedule.log_every == 0 or last:
                write({"step": step, **figures(window), **self._speed(window, seconds)})
                window, seconds = {}, 0.0
            if step % schedule.evaluate_every == 0 or last:
                with average.swapped_in(module):
                    found = figures(self._evaluate(spread, held_out))
                write({"step": step, "validation": "figures", **found})
            if step % schedule.save_every == 0 or last:
                save(self.folder, step, module, optimizer, average, place)
        return average

    @torch.no_grad()
    def _evaluate(self, spread: Spread, held_out: TokenStore) -> dict[str, float]:
        """Sums over a fixed sample of held-out text, with the same noise every time."""
        model, place = self.recipe.model, self.place
        segments = held_out.segments(model.context)
        segments = segments[np.random.default_rng(0).permutation(len(segments))[:128]]
        segments = segments[np.argsort(segments[:, 1] - segments[:, 0], kind="stable")]
        rows = max(1, self.schedule.tokens // model.context)
        starts = list(range(0, len(segments), rows))
        sums: dict[str, float] = {}
        for first in range(0, len(starts), place.world):
            # Sharded weights are put together by all processes at once: the idle ones read nothing, too.
            index = min(first + place.rank, len(starts) - 1)
            batch = gather(held_out, segments[starts[index] : starts[index] + rows], model.patch)
            tokens, counts = to_tensors(batch, place.device)
            if first + place.rank >= len(starts):
                counts = torch.zeros_like(counts)
            for name, value in spread(tokens, counts, _HELD_OUT_SEED + index).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return total(sums, place)

    def _speed(self, window: dict[str, float], seconds: float) -> dict[str, float]:
        speed = {"tokens_a_second": window["tokens"] / seconds}
        if self.place.device.type == "cuda":
            speed["peak_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
        return speed


def make_optimizer(module: nn.Module, schedule: StageSchedule) -> torch.optim.Optimizer:
    """AdamW; only matrices decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=schedule.lr,
        betas=(0.9, 0.95),
        # One pass over the weights, and none of the temporaries, which are as large as all of them.
        fused=True if trained[0].is_cuda else None,
    )


def take_step(
    spread: Spread,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Batch],
    schedule: StageSchedule,
    step: int,
    folder: Path,
) -> dict[str, float]:
    """One step over this process's micro-batches; returns the sums over all processes'.

    folder: keeps a batch whose loss is not finite. Raises ColazipError then.
    """
    place = spread.place
    tokens = total({"tokens": float(sum(int(p.counts.sum()) for p in parts))}, place)["tokens"]
    found: list[dict[str, Tensor]] = []
    for i, part in enumerate(parts):
        index = step * schedule.micro_batches + i * place.world + place.rank
        with spread.accumulating(last=i + 1 == len(parts)):
            sums = spread(*to_tensors(part, place.device), schedule.part_seed(index))
            # Gradients are averaged over processes; the loss is a mean over all tokens of the step.
            (sums["loss"] * (place.world / tokens)).backward()
        found.append({n: v.detach() for n, v in sums.items()})
    norm = clip(spread.module, 1.0)
    for part, sums in zip(parts, found, strict=True):
        name = "bad_batch" if place.world == 1 else f"bad_batch-{place.rank}"
        # The norm is common to all processes, so all of them stop; the batch that is to blame is kept.
        finite = bool(torch.isfinite(sums["loss"]))
        if not finite or part is parts[-1]:
            check_finite(float(sums["loss"]), norm, step, part, folder, name)
    factor = learning_rate(step, schedule.steps, warmup=schedule.warmup, decay_from=schedule.decay_from)
    for group in optimizer.param_groups:
        group["lr"] = schedule.lr * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total({n: sum(float(f[n]) for f in found) for n in found[0]}, place)


def figures(sums: dict[str, float]) -> dict[str, float]:
    """What the sums of a stage mean, in bits where they are information."""
    tokens, latents = sums["tokens"], sums["latents"]
    shown = {
        "loss": sums["loss"] / tokens,
        "reconstruction_bits_a_token": sums["reconstruction"] / tokens / _LN2,
        "masked_bits_a_token": sums["masked"] / max(sums["hidden"], 1.0) / _LN2,
        "log_snr": sums["signal"] / latents,
    }
    for name in ("kl", "reference_kl"):
        if name in sums:
            shown[f"{name}_bits_a_latent"] = sums[name] / latents / _LN2
    if "flow" in sums:
        shown["flow_loss"] = sums["flow"] / latents
    return shown
