"""`colazip train plan`: figures that can be checked by hand, and its command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from colazip.errors import UsageError
from colazip.nn.cola_dit import ColaDiT
from colazip.train.distributed import Parallel
from colazip.train.plan import plan
from colazip.train.recipes import RECIPES, default, paper_2b, paper_tiny
from tests.cli.conftest import process


def test_every_recipe_has_a_plan() -> None:
    for name in ("tiny", "default", "default_gpu", "large", "base", "paper_tiny"):
        for stage in plan(RECIPES[name](), 1):
            assert stage.memory > stage.state > 0 and stage.flops > 0, name


def test_base_has_about_fifty_million() -> None:
    (vae, _) = plan(RECIPES["base"](), 1)
    assert sum(vae.parameters.values()) == pytest.approx(50e6, rel=0.1)


def test_the_papers_model() -> None:
    recipe = paper_2b()
    eight, sixteen = plan(recipe, 8), plan(recipe, 16)
    second = eight[1]
    assert second.parameters["prior"] == pytest.approx(1.8e9, rel=0.02)
    # Clean and noisy copy through the layers: 6 FLOPs a weight each, modulation once a block.
    with torch.device("meta"):
        layer = ColaDiT(recipe.model).layers[0]
    matrices = sum(p.numel() for n, p in layer.named_parameters() if not n.startswith("modulate"))
    products = 12 * matrices * recipe.model.prior_layers
    assert products < second.flops_a_token < 2 * products
    assert sixteen[1].state == pytest.approx(second.state / 2, rel=1e-6)
    assert sixteen[1].flops == second.flops
    # The published compute, within what rounding the batch to whole sequences does.
    assert eight[0].flops + second.flops == pytest.approx(2000e18, rel=0.1)


def test_recomputing_saves_memory() -> None:
    recipe = replace(paper_tiny(), model=replace(paper_tiny().model, prior_layers=8))
    kept = plan(replace(recipe, parallel=Parallel("ddp", "bfloat16", False)), 1)
    again = plan(replace(recipe, parallel=Parallel("ddp", "bfloat16", True)), 1)
    assert again[1].activations < 0.6 * kept[1].activations
    assert again[1].flops_a_token == kept[1].flops_a_token


def test_gpus_must_share_a_step() -> None:
    with pytest.raises(UsageError, match="3 GPUs"):
        plan(paper_tiny(), 3)
    with pytest.raises(UsageError, match="one GPU"):
        plan(default(), 2)


def test_the_command() -> None:
    shown = process("train", "plan", "paper_2b", "--gpus", "8")
    assert shown.returncode == 0, shown.stderr
    for word in (b"1,825.4 M", b"memory a GPU", b"FLOPs a token", b"expected time"):
        assert word in shown.stdout
    rows = json.loads(process("train", "plan", "paper_tiny", "--gpus", "2", "--json").stdout)
    assert len(rows["stages"]) == 2
    for arguments in (["plan", "nonsense"], ["plan", "paper_tiny", "--gpus", "3"], ["plan"]):
        refused = process("train", *arguments)
        assert refused.returncode == 2 and b"Traceback" not in refused.stderr
