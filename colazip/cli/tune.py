"""`colazip tune`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from colazip.cli.console import Console, hushed
from colazip.cli.model_option import model_options
from colazip.cli.options import console_options, training_options
from colazip.errors import UsageError


@click.command()
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Your text: Parquet, JSONL, CSV or plain text. Repeat for more.",
)
@click.option(
    "--validation",
    multiple=True,
    metavar="FILE",
    help="Held-out text, never trained on. [default: one record in 50 of the data]",
)
@training_options
@click.option(
    "--steps", type=click.IntRange(min=1), default=600, show_default=True, metavar="N", help="How many."
)
@click.option(
    "--patches",
    type=click.IntRange(256, 65_536),
    default=1536,
    show_default=True,
    metavar="N",
    help="Patches of 4 tokens a step; a GPU is busy with 8192 or more.",
)
@click.option(
    "--rate",
    type=click.FloatRange(1e-5, 1e-1),
    default=1.5e-3,
    show_default=True,
    help="Peak learning rate.",
)
@click.option("--prior", is_flag=True, help="Train the diffusion prior in place of the coding networks.")
@model_options
@console_options
def tune(
    data: tuple[str, ...],
    validation: tuple[str, ...],
    output: str,
    text_column: str,
    skip_source: tuple[str, ...],
    steps: int,
    patches: int,
    rate: float,
    prior: bool,
    device: str,
    resume: bool,
    model: str | None,
    console: Console,
) -> None:
    """Fit a model to your own text, so that archives of such text are smaller.

    Begins with the model in the package, or with that of --model, and goes on training its coding networks.
    600 steps see 3.7 million tokens and take ten to fifteen minutes on two cores. Archives are then packed,
    and have to be read, with --model DIR/model. Tokenizer and search stay those of the model that was there.
    A killed run goes on with --resume.

    --prior trains what regenerate draws from with --by prior. It decides nothing of what is stored: the model
    keeps its id, and reads the same archives.
    """
    from colazip.pretrained import load
    from colazip.train import tune as tuning
    from colazip.train.distributed import chosen_device

    if not math.isfinite(rate):
        raise UsageError(f"--rate {rate}: must be a number")
    base = load(model)
    learn: Callable[..., str] = partial(
        tuning.tune, base, tuning.schedule(steps, patches, rate, base.config.details)
    )
    if prior:
        learn = partial(tuning.tune_prior, base, tuning.prior_schedule(steps, patches, rate))
    with hushed(console):
        identity = learn(
            data=[Path(p) for p in data],
            validation=[Path(p) for p in validation],
            out=Path(output),
            text_column=text_column,
            skip_sources=skip_source,
            device=chosen_device(device),
            resume=resume,
        )
    console.note(f"{Path(output) / 'model'}: model {identity}")
