"""Runs of the tiny recipe for tests: in this process, or under torchrun as a program.

torchrun --nproc-per-node 2 -m tests.shared_runs FOLDER trains FOLDER/two to the end, and FOLDER/killed
until one process is killed while the coder trains.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from colazip.train import loop
from colazip.train.distributed import joined
from colazip.train.pipeline import run
from colazip.train.recipes import Recipe, tiny

STEPS = 6
KILLED_IN = 5  # the step after the checkpoint of step 4


def short_recipe() -> Recipe:
    recipe = tiny()
    common: dict[str, Any] = {"steps": STEPS, "micro_batches": 2, "log_every": 1, "evaluate_every": STEPS}
    common |= {"save_every": 4, "patches": 64, "warmup": 2}
    return replace(recipe, vae=replace(recipe.vae, **common), prior=replace(recipe.prior, **common))


def train(corpus: Path, out: Path, *, resume: bool = False) -> str | None:
    data, validation = ([corpus / f"{name}.jsonl"] for name in ("train", "validation"))
    return run(short_recipe(), data=data, validation=validation, out=out, resume=resume)


def losses(folder: Path) -> list[tuple[str, int, float]]:
    """(stage, step, figure) of every logged step and validation of coder and prior."""
    found = []
    for stage, names in (("vae", ("gist_bits_a_token", "total_bpb")), ("prior", ("flow_loss",))):
        metrics = folder / stage / "metrics.jsonl"
        for line in metrics.read_text().splitlines() if metrics.exists() else ():
            entry = json.loads(line)
            found += [(stage, entry["step"], entry[name]) for name in names if name in entry]
    return found


def _die(check: Any) -> Any:
    def checked(loss: float, norm: float, step: int, *rest: Any) -> None:
        if step + 1 == KILLED_IN and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        check(loss, norm, step, *rest)

    return checked


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with joined("cpu"):
        train(folder, folder / "two")
        loop.check_finite = _die(loop.check_finite)  # type: ignore[assignment]
        train(folder, folder / "killed")
