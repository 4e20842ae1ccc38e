"""The model card: what a model was trained on, with which command, and how well it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from colazip.config import ModelConfig
from colazip.train.prior import PriorSchedule
from colazip.train.recipes import Recipe
from colazip.train.vae import VAESchedule

_CODER = (
    ("bits a byte, gist and exact", "total_bpb"),
    ("bits a byte, gist", "gist_bpb"),
    ("bits a byte, exact layer given the gist", "exact_bpb"),
    ("share of tokens the gist reading gets right", "gist_accuracy"),
)


def _of_coder(vae: dict[str, float]) -> list[tuple[str, str]]:
    """Names of the coder's figures and their keys; of a conditional model also where search codes are beside
    the text."""
    beside = [(f"beside search codes: {name}", f"told_{key}") for name, key in _CODER]
    return [(name, key) for name, key in (*_CODER, *beside) if key in vae]


def render(
    recipe: Recipe, figures: dict[str, Any], command: str, files: Sequence[str], skipped: Sequence[str]
) -> str:
    """Markdown of the card."""
    vae, count = figures["vae"], figures["parameters"]
    rows = [
        *((name, vae[key]) for name, key in _of_coder(vae)),
        ("flow-matching loss of the prior", figures["prior"]["flow_loss"]),
        ("search: queries whose own passage is first of the held-out ones", figures["search"]["hit_at_1"]),
        ("search: the same from codes", figures["search"]["code_hit_at_1"]),
        ("search: mean cosine of a vector and its code", figures["search"]["quantizer_cosine"]),
    ]
    table = "\n".join(f"| {name} | {value:.3f} |" for name, value in rows)
    left_out = f" Sources left out: {', '.join(f'`{s}*`' for s in skipped)}." if skipped else ""
    megabytes, tokens = figures["train_bytes"] / 1e6, figures["train_tokens"]
    search_steps = f"{recipe.rows.steps} (search rows)"
    if recipe.model.search_encoder is not None:
        search_steps += f", {recipe.encoder.steps} (search encoder)"
    taught = " Search learned from the vectors of all-MiniLM-L6-v2 (Apache-2.0)." if figures["taught"] else ""
    # Segments are padded a little to a common length, hence "at most".
    seen = recipe.vae.steps * recipe.vae.micro_batches * recipe.vae.patches * recipe.model.patch
    steps = f"{recipe.vae.steps} of {recipe.vae.patches} patches (VAE), {recipe.prior.steps} (prior)"
    return f"""# {recipe.model.name}

A Text VAE with its coder, latent prior and search head, for use with colazip.

- Parameters: {count["vae"]:,} coding, {count["prior"]:,} prior, {count["search"]:,} search; int8.{taught}
- Training text: {megabytes:.1f} MB ({tokens:,} tokens) from {", ".join(files)}.{left_out}
- Steps: {steps}, {search_steps}. Tokens that the VAE saw: at most {seen:,}.
- Command: `{command}`

Validation figures ({figures["validation_bytes"] / 1e6:.1f} MB held out by source document; a sample of
segments, integer arithmetic):

| figure | value |
| --- | --- |
{table}

The text is mostly English: encyclopedia, fiction, abstracts, documentation, dialogue. Other languages are
coded without loss but less well, and search by meaning is of little use there.
"""


def render_tuned(
    config: ModelConfig,
    schedule: VAESchedule,
    figures: dict[str, Any],
    command: str,
    files: Sequence[str],
) -> str:
    """Markdown of the card of a model that `colazip tune` made."""
    before, after = figures["before"], figures["vae"]
    table = "\n".join(f"| {name} | {before[key]:.3f} | {after[key]:.3f} |" for name, key in _of_coder(after))
    seen = schedule.steps * schedule.micro_batches * schedule.patches * config.patch
    return f"""# {config.name}

A model for use with colazip, tuned from model {figures["tuned_from"]}. Tokenizer, search head and prior are
that model's.

- Text: {figures["train_bytes"] / 1e6:.1f} MB ({figures["train_tokens"]:,} tokens) from {", ".join(files)}.
- Steps: {schedule.steps} of {schedule.patches} patches. Tokens seen: at most {seen:,}.
- Command: `{command}`

On {figures["validation_bytes"] / 1e6:.1f} MB held out (a sample of segments, integer arithmetic):

| figure | before | after |
| --- | --- | --- |
{table}
"""


def render_tuned_prior(
    config: ModelConfig, schedule: PriorSchedule, figures: dict[str, Any], command: str, text: str
) -> str:
    """Markdown of the card of a model whose prior `colazip tune` trained on. text: what it learned from."""
    before, after = figures["before"], figures["prior"]
    table = "\n".join(f"| {name} | {before[name]:.3f} | {after[name]:.3f} |" for name in after)
    return f"""# {config.name}

A model for use with colazip: model {figures["tuned_from"]}, whose diffusion prior went on learning. All else
is as it was, so it reads that model's archives and writes the same.

- Text: {text}.
- Steps: {schedule.steps} of {schedule.patches} patches.
- Command: `{command}`

On what was held out:

| figure | before | after |
| --- | --- | --- |
{table}
"""
