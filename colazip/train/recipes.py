"""Named recipes: one function, one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from colazip.config import ModelConfig, StackConfig
from colazip.train.prior import PriorSchedule
from colazip.train.search_head import SearchSchedule
from colazip.train.search_rows import RowSchedule
from colazip.train.vae import VAESchedule


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a model but the data."""

    model: ModelConfig
    vae: VAESchedule
    prior: PriorSchedule
    rows: RowSchedule
    search: SearchSchedule
    tokenizer_megabytes: int = 45  # of training text, evenly spread, that the tokenizer is trained on
    dictionary_bytes: int = 400 << 10  # of the zstd dictionary; 0 for none
    dictionary_megabytes: int = 32  # of training text, evenly spread, that the dictionary is trained on


def tiny() -> Recipe:
    """A model of a few seconds, for tests and for a first look at the command."""
    model = ModelConfig(
        "tiny",
        classes=16,
        slots=32,
        segment=32,
        embedding=16,
        channels=4,
        decoder=StackConfig(32, 1, 2),
        coder=StackConfig(32, 1, 2),
        local_width=32,
        local_hidden=64,
        ngram_rows=256,
        ngram_width=8,
        prior=StackConfig(32, 1, 2),
        prior_block=8,
        vector=16,
        code_bytes=4,
        word_rows=64,
    )
    return Recipe(
        model,
        VAESchedule(
            300,
            named=(256, 64, 0),
            patches=128,
            lr=1e-2,
            muon_lr=1e-2,
            warmup=10,
            evaluate_every=150,
            save_every=100,
        ),
        PriorSchedule(20, patches=128, warmup=5, evaluate_every=20, save_every=10),
        RowSchedule(20, pairs=256, taught=128, words=200, batch=32, warmup=5, evaluate_every=10, held_out=64),
        SearchSchedule(sample=512, held_out=64),
        tokenizer_megabytes=1,
        dictionary_bytes=1 << 10,
        dictionary_megabytes=1,
    )


def default() -> Recipe:
    """The model inside the package: 11 M coding parameters, about an hour and a half on two cores."""
    model = ModelConfig("default")
    return Recipe(model, VAESchedule(5200), PriorSchedule(900), RowSchedule(2000), SearchSchedule())


RECIPES: dict[str, Callable[[], Recipe]] = {"tiny": tiny, "default": default}
