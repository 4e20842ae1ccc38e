"""The full model over two processes: the losses of one, also after a kill and on fewer processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colazip.errors import InputError, ModelError
from colazip.train.cola_folder import load_cola
from tests.event_files import read_events
from tests.paper_runs import KILLED_AT, losses, short_recipe, train
from tests.tiny_model import write_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process (`one`), and what `tests.paper_runs` trains with two."""
    folder = tmp_path_factory.mktemp("paper")
    write_corpus(folder)
    train(folder, folder / "one", short_recipe(), tensorboard=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.paper_runs", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and (folder / "killed" / "stage2" / "metrics.jsonl").exists(), done.stderr
    return folder


def same(a: Path, b: Path, tolerance: float) -> None:
    one, other = losses(a), losses(b)
    assert [entry[:2] for entry in one] == [entry[:2] for entry in other]
    assert [entry[2] for entry in one] == pytest.approx([entry[2] for entry in other], rel=tolerance)


def test_the_loss_falls(runs: Path) -> None:
    found = [loss for stage, _, loss in losses(runs / "one") if stage == "stage1 "]
    assert found[-1] < found[0] - 0.05


def test_two_processes_train_as_one(runs: Path) -> None:
    same(runs / "ddp", runs / "one", 1e-4)
    tensors = [load_cola(runs / name / "model")[0].state_dict() for name in ("ddp", "one")]
    for name, value in tensors[0].items():
        torch.testing.assert_close(value, tensors[1][name], rtol=1e-3, atol=1e-4)


def test_bfloat16_stays_near(runs: Path) -> None:
    same(runs / "bf16", runs / "one", 0.03)


def test_killed_with_two_goes_on_with_one(runs: Path) -> None:
    killed = losses(runs / "killed")
    assert [step for stage, step, _ in killed if stage == "stage2 "][-1] == KILLED_AT
    checkpoints = sorted(p.name for p in (runs / "killed" / "stage2").glob("step-*"))
    assert checkpoints == ["step-00000004"]
    train(runs, runs / "killed", short_recipe(), resume=True)
    same(runs / "killed", runs / "one", 1e-4)


def test_a_finished_run_has_nothing_left_to_do(runs: Path) -> None:
    before = losses(runs / "one")
    with pytest.raises(InputError, match="--resume"):
        train(runs, runs / "one", short_recipe())
    train(runs, runs / "one", short_recipe(), resume=True)
    after = losses(runs / "one")
    assert after[: len(before)] == before


def test_event_files_say_what_the_metrics_say(runs: Path) -> None:
    for stage in ("stage1", "stage2"):
        (file,) = (runs / "one" / stage).glob("events.out.tfevents.*")
        found = {(step, tag): value for step, tag, value in read_events(file.read_bytes())}
        for name, step, loss in losses(runs / "one"):
            if name.startswith(stage):
                tag = "validation/loss" if name.endswith("figures") else "loss"
                assert found[step, tag] == pytest.approx(loss, rel=1e-6)


def test_another_model_is_refused(runs: Path) -> None:
    recipe = short_recipe()
    wider = replace(recipe, model=replace(recipe.model, vae_width=48))
    with pytest.raises(InputError, match="another model"):
        train(runs, runs / "one", wider, resume=True)


def test_a_damaged_model_folder_is_one_error(runs: Path, tmp_path: Path) -> None:
    model = runs / "one" / "model"
    good = {p.name: p.read_bytes() for p in model.iterdir()}
    assert set(good) == {"config.json", "tokenizer.json", "weights.safetensors"}
    for name, data in (
        ("config.json", good["config.json"].replace(b'"vae_layers": 1', b'"vae_layers": 900')),
        ("config.json", good["config.json"].replace(b'"vae_layers": 1', b'"vae_layers": -1')),
        ("config.json", b"{}"),
        ("weights.safetensors", good["weights.safetensors"][:1000]),
        ("weights.safetensors", b""),
    ):
        for other, kept in good.items():
            (tmp_path / other).write_bytes(kept)
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError):
            load_cola(tmp_path)
