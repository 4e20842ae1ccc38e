"""Training throughput on one device: tokens a second, utilisation, and memory, of a recipe's own steps.

python -m benchmarks.training_speed CASE [CASE ...] [--device cuda] [--steps N] [--seconds S] [--json OUT]

A case is RECIPE:STAGE, then settings after commas, as in `paper_2b:stage2,layers=8,recompute=0,tokens=10240`.
The stages are `vae` of the compression recipes, `stage1` and `stage2` of the paper's. Settings: `layers` of
the prior, `recompute` (1 or 0), `tokens` of a micro-batch, `parts` (micro-batches of a step), `compile` (1:
torch.compile for each layer), `captured` (1: `vae` as one GPU trains it, a graph a step). The steps are
whole: forward and backward passes, clipping, optimizer, averaged weights. Texts fill the context; tokens are
drawn by Zipf's law.

FLOPs a token are those of `colazip train plan`: of products and attention, three times the forward pass,
without what is recomputed. Utilisation (MFU) is what the steps reach of the data sheet's dense bfloat16 peak.
A case that fails, for want of memory perhaps, is a line of its own.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.command import note, run_command
from colazip.errors import ColazipError, UsageError
from colazip.evaluate.table import markdown
from colazip.memory import KINDS
from colazip.nn.cola import Layer
from colazip.nn.vae import TextVAE
from colazip.train.captured import CapturedSteps
from colazip.train.cola import ColaRecipe, make_optimizer, take_step
from colazip.train.cola_losses import Stage1, Stage2
from colazip.train.data import Batch, TokenStore
from colazip.train.distributed import Average, Place, Spread
from colazip.train.losses import compute
from colazip.train.optimize import Descent, guesses, to_tensors
from colazip.train.plan import PEAK, flops_a_token
from colazip.train.recipes import RECIPES, Recipe
from colazip.train.vae import VAESchedule, captured_steps, optimizers

STAGES = ("vae", "stage1", "stage2")
SETTINGS = ("layers", "recompute", "tokens", "parts", "compile", "captured")
WARM_UP = 2  # steps, at least

Step = Callable[[int], None]


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    text: str
    recipe: str
    stage: str
    settings: dict[str, int]

    @classmethod
    def parse(cls, text: str) -> Case:
        """Raises UsageError."""
        head, *rest = text.split(",")
        recipe, _, stage = head.partition(":")
        known = RECIPES.get(recipe)
        if known is None or stage not in STAGES or (stage == "vae") == isinstance(known(), ColaRecipe):
            raise UsageError(
                f"{text}: no such recipe and stage; {', '.join(RECIPES)} with {', '.join(STAGES)}"
            )
        settings = dict(part.partition("=")[::2] for part in rest)
        if any(name not in SETTINGS or not value.isdecimal() for name, value in settings.items()):
            raise UsageError(f"{text}: settings are numbers, of {', '.join(SETTINGS)}")
        return cls(text, recipe, stage, {name: int(value) for name, value in settings.items()})


@dataclass(frozen=True)
class Speed:
    """What a case reached. peak_bytes: 0 where nobody counts them."""

    case: str
    parameters: int
    tokens_a_step: int
    steps: int
    seconds: float
    flops_a_token: float
    peak_bytes: int

    @property
    def tokens_a_second(self) -> float:
        return self.steps * self.tokens_a_step / self.seconds

    @property
    def flops_a_second(self) -> float:
        return self.tokens_a_second * self.flops_a_token


def zipf(rows: int, length: int, vocabulary: int, seed: int) -> np.ndarray:
    """Tokens int64 [rows, length], the commonest first in the vocabulary."""
    share = 1.0 / (np.arange(vocabulary) + 2.7)
    ends = np.cumsum(share / share.sum())
    drawn = np.searchsorted(ends, np.random.default_rng(seed).random((rows, length)))
    return np.minimum(drawn, vocabulary - 1).astype(np.int64)


def text_batch(rows: int, length: int, vocabulary: int, seed: int) -> Batch:
    """Full rows; the block memory guesses half of the tokens, and rightly."""
    tokens = zipf(rows, length, vocabulary, seed)
    kinds = np.random.default_rng(seed + 1).integers(0, KINDS, tokens.shape) * (tokens % 2)
    return Batch(tokens, np.full(rows, length, np.int64), np.stack([tokens * (kinds > 0), kinds]))


def cola_steps(case: Case, place: Place, folder: Path) -> tuple[Step, int, int, ColaRecipe]:
    """(takes a step, tokens of one, parameters, the recipe as run) of a stage of the paper's recipes."""
    recipe = RECIPES[case.recipe]()
    assert isinstance(recipe, ColaRecipe)
    get = case.settings.get
    model = dataclasses.replace(recipe.model, prior_layers=get("layers", recipe.model.prior_layers))
    own = recipe.stage1 if case.stage == "stage1" else recipe.stage2
    schedule = dataclasses.replace(own, tokens=get("tokens", own.tokens), micro_batches=get("parts", 1))
    recompute = bool(get("recompute", recipe.parallel.recompute))
    recipe = dataclasses.replace(
        recipe,
        model=model,
        stage1=schedule,
        stage2=schedule,
        parallel=dataclasses.replace(recipe.parallel, recompute=recompute),
    )
    with place.device:
        kind = Stage1 if case.stage == "stage1" else Stage2
        module = kind(model, recipe.weights)
        module.initialize()
    layers = [m for m in module.modules() if isinstance(m, Layer)]
    for layer in layers:
        layer.recompute = recompute
        if get("compile"):
            layer.compile()
    spread = Spread(module, layers, recipe.parallel, place)
    optimizer, average = make_optimizer(module, schedule), Average(module, schedule.average)
    rows = max(1, schedule.tokens // model.context)
    parts = [
        text_batch(rows, model.positions * model.patch, model.vocabulary, seed)
        for seed in range(schedule.micro_batches)
    ]

    def step(index: int) -> None:
        take_step(spread, optimizer, parts, schedule, index, folder)
        average.update(module, index + 1)

    return step, sum(part.tokens.size for part in parts), sum(p.numel() for p in module.parameters()), recipe


def vae_steps(case: Case, place: Place, folder: Path) -> tuple[Step, int, int, Recipe]:
    """The same for the Text VAE of the compression recipes, with the float attention of most of its run."""
    recipe = RECIPES[case.recipe]()
    assert isinstance(recipe, Recipe)
    config, get = recipe.model, case.settings.get
    patches = get("tokens", recipe.vae.patches * config.patch) // config.patch
    schedule = dataclasses.replace(
        recipe.vae, patches=patches, micro_batches=get("parts", recipe.vae.micro_batches)
    )
    recipe = dataclasses.replace(recipe, vae=schedule)
    model = TextVAE(config)
    slots = torch.arange(config.vocabulary).view(config.slots, config.classes).t()  # common ones first
    named = torch.tensor(schedule.named)[:, None].expand(-1, config.classes) // config.classes
    model.readout.set_classes(slots, named)
    model.places.requires_grad_(False)
    model.to(place.device).train()
    parameters = sum(p.numel() for p in model.parameters())
    if get("captured"):
        captured = _captured(model, schedule, folder)
        tokens = int(captured.take(0, 0.0)["count"])

        def replay(index: int) -> None:
            captured.take(index, 1.0)

        return replay, tokens, parameters, recipe
    descent = Descent(model, optimizers(model, schedule))
    length = config.segment * config.patch
    rows = max(1, schedule.patches // config.segment)
    parts = [text_batch(rows, length, config.vocabulary, seed) for seed in range(schedule.micro_batches)]

    def step(index: int) -> None:
        del index
        count = 0
        for i, part in enumerate(parts):
            x, counts = to_tensors(part, place.device)
            terms = compute(model, x, counts, guesses(part, place.device), schedule.detail(i), fast=True)
            terms.loss.backward()
            count += terms.tokens
        descent.clip(count)
        descent.step(1.0)

    return step, sum(part.tokens.size for part in parts), parameters, recipe


def _captured(model: TextVAE, schedule: VAESchedule, folder: Path) -> CapturedSteps:
    """Steps over full segments that are on the device."""
    config = model.config
    length = config.segment * config.patch
    batch = text_batch(4 * max(1, schedule.patches // config.segment), length, config.vocabulary, 0)
    guess, kind = (values.reshape(-1) for values in batch.guesses)
    ends = (np.arange(len(batch.counts)) + 1) * length
    store = TokenStore(
        batch.tokens.reshape(-1).astype(np.uint16),
        ends,
        0,
        guess.astype(np.uint16),
        kind.astype(np.uint8),
    )
    return captured_steps(model, schedule, store, None, folder)


def measure(case: Case, device: str, steps: int, limit: float) -> Speed:
    """Time the steps of a case, `steps` of them unless `limit` seconds are over first."""
    place = Place.alone(device)
    cuda = place.device.type == "cuda"
    if cuda:
        torch.cuda.init()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        step, tokens, parameters, recipe = (
            vae_steps(case, place, Path(folder))
            if case.stage == "vae"
            else cola_steps(case, place, Path(folder))
        )

        def take(index: int) -> float:
            begun = time.monotonic()
            step(index)
            if cuda:
                torch.cuda.synchronize()
            return time.monotonic() - begun

        warm = [take(index) for index in range(WARM_UP)]
        note(f"{case.text}: ready after {time.monotonic() - started:.1f} s, last step {warm[-1]:.3f} s")
        taken: list[float] = []
        while len(taken) < steps and (not taken or time.monotonic() - started < limit):
            taken.append(take(WARM_UP + len(taken)))
    return Speed(
        case.text,
        parameters,
        tokens,
        len(taken),
        sum(taken),
        flops_a_token(recipe, case.stage),
        torch.cuda.max_memory_allocated() if cuda else 0,
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("cases", nargs=-1, required=True)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--steps", default=10, show_default=True, type=click.IntRange(min=1), help="Timed steps a case."
)
@click.option("--seconds", default=60.0, show_default=True, help="After these a case times no further step.")
@click.option("--all-seconds", default=600.0, show_default=True, help="After these no case is begun.")
@click.option("--peak", type=click.Choice(sorted(PEAK)), default="h100", show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
def training_speed(
    cases: tuple[str, ...],
    device: str,
    steps: int,
    seconds: float,
    all_seconds: float,
    peak: str,
    json_path: Path | None,
) -> None:
    """Print tokens a second, FLOP utilisation and peak memory of each case."""
    todo = [Case.parse(text) for text in cases]
    begun = time.monotonic()
    found: list[dict[str, Any]] = []
    rows = [("case", "parameters", "tokens a step", "tokens/s", "GFLOP a token", "TFLOP/s", "MFU", "peak GB")]
    for case in todo:
        if time.monotonic() - begun > all_seconds:
            note(f"{case.text}: left out, no time")
            continue
        try:
            speed = measure(case, device, steps, seconds)
        except (RuntimeError, ColazipError) as error:
            note(f"{case.text}: failed, {type(error).__name__}: {str(error)[:200]!r}")
            found.append({"case": case.text, "failed": type(error).__name__})
            speed = None
        gc.collect()
        if speed is None:
            continue
        share = speed.flops_a_second / PEAK[peak]
        found.append({**dataclasses.asdict(speed), "tokens_a_second": speed.tokens_a_second, "mfu": share})
        rows.append(
            (
                speed.case,
                f"{speed.parameters / 1e6:,.0f} M",
                f"{speed.tokens_a_step:,}",
                f"{speed.tokens_a_second:,.0f}",
                f"{speed.flops_a_token / 1e9:.3f}",
                f"{speed.flops_a_second / 1e12:.1f}",
                f"{share:.1%}",
                f"{speed.peak_bytes / 1e9:.1f}",
            )
        )
        note("  ".join(rows[-1]))
        if json_path:
            json_path.write_text(json.dumps(found, indent=2) + "\n")
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device
    click.echo(f"{name}, torch {torch.__version__}; MFU against {PEAK[peak] / 1e12:.0f} TFLOP/s\n")
    click.echo(markdown(rows))


if __name__ == "__main__":
    run_command(training_speed, "benchmarks.training_speed")
