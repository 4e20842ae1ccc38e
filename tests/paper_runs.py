"""Runs of the paper's tiny recipe for tests: in this process, or under torchrun as a program.

torchrun --nproc-per-node 2 -m tests.paper_runs FOLDER trains FOLDER/ddp to the end, FOLDER/bf16 likewise, and
FOLDER/killed (FSDP) until one process is killed in the middle of stage 2.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from colazip.train import cola
from colazip.train.cola import ColaRecipe, run_cola
from colazip.train.distributed import Parallel, joined
from colazip.train.recipes import paper_tiny

STEPS = 6
KILLED_AT = 5  # after the checkpoint of step 4


def short_recipe(sharding: str = "ddp", precision: str = "float32") -> ColaRecipe:
    recipe = paper_tiny()
    stage = replace(recipe.stage1, steps=STEPS, tokens=128, micro_batches=4)  # two processes: two each
    stage = replace(stage, evaluate_every=STEPS, save_every=4, warmup=2)
    return replace(recipe, stage1=stage, stage2=stage, parallel=Parallel(sharding, precision, True))


def train(
    corpus: Path, out: Path, recipe: ColaRecipe, *, resume: bool = False, tensorboard: bool = False
) -> Path:
    data, validation = ([corpus / f"{name}.jsonl"] for name in ("train", "validation"))
    return run_cola(recipe, data=data, validation=validation, out=out, resume=resume, tensorboard=tensorboard)


def losses(run: Path) -> list[tuple[str, int, float]]:
    """(stage, step, loss) of every logged step and validation."""
    found = []
    for stage in ("stage1", "stage2"):
        for line in (run / stage / "metrics.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if "loss" in entry:
                found.append((f"{stage} {entry.get('validation', '')}", entry["step"], entry["loss"]))
    return found


def _die_in_stage_2(check: Any) -> Any:
    def checked(loss: Any, norm: float, step: int, batch: Any, folder: Path, name: str) -> Any:
        if folder.name == "stage2" and step == KILLED_AT and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return check(loss, norm, step, batch, folder, name)

    return checked


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with joined("cpu"):
        train(folder, folder / "ddp", short_recipe("ddp"))
        train(folder, folder / "bf16", short_recipe("fsdp", "bfloat16"))
        cola.check_finite = _die_in_stage_2(cola.check_finite)  # type: ignore[assignment]
        train(folder, folder / "killed", short_recipe("fsdp"))
