"""The benchmarks of training and of devices, as far as a CPU can run them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.device_speed import blocks_of
from benchmarks.training_speed import Case, measure, text_batch
from colazip.errors import UsageError
from colazip.layers import BLOCK_BYTES
from colazip.train.plan import flops_a_token, plan
from colazip.train.recipes import RECIPES


def test_a_case_names_recipe_stage_and_settings() -> None:
    case = Case.parse("paper_2b:stage2,layers=8,recompute=0")
    assert (case.recipe, case.stage, case.settings) == ("paper_2b", "stage2", {"layers": 8, "recompute": 0})


@pytest.mark.parametrize(
    "text", ["none:vae", "paper_tiny:vae", "tiny:stage1", "tiny:vae,speed=1", "tiny:vae,parts=x"]
)
def test_other_cases_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Case.parse(text)


@pytest.mark.parametrize("text", ["paper_tiny:stage2,parts=1,layers=1", "tiny:vae", "tiny:vae,captured=1"])
def test_steps_are_timed(text: str) -> None:
    speed = measure(Case.parse(text), "cpu", steps=2, limit=60.0)
    assert speed.steps == 2 and speed.tokens_a_step == 512 and speed.tokens_a_second > 0


@pytest.mark.parametrize(("recipe", "stages"), [("paper_tiny", ("stage1", "stage2")), ("tiny", ("vae",))])
def test_flops_are_those_of_the_plan(recipe: str, stages: tuple[str, ...]) -> None:
    made = RECIPES[recipe]()
    for stage, planned in zip(stages, plan(made, 1), strict=False):
        assert flops_a_token(made, stage) == pytest.approx(planned.flops_a_token)


def test_common_tokens_are_common() -> None:
    batch = text_batch(4, 1000, 512, seed=0)
    assert np.bincount(batch.tokens.ravel()).argmax() == 0 and batch.tokens.max() < 512


def test_blocks_are_full_and_records_come_again() -> None:
    blocks = blocks_of([b"x" * 30_000, b"y" * 20_000], 200_000, at=1)
    assert blocks[0] == [b"y" * 20_000, b"x" * 30_000] and len(blocks) > 2
    assert all(sum(map(len, parts)) <= BLOCK_BYTES for parts in blocks)
