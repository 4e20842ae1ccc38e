"""Coder and prior over two processes: the losses of one, also after a kill and on fewer processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colazip.codec import Codec
from colazip.errors import InputError, UsageError
from colazip.train.distributed import Place, share_of
from tests.shared_runs import KILLED_IN, losses, train
from tests.tiny_model import write_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process (`one`), and what `tests.shared_runs` trains with two."""
    folder = tmp_path_factory.mktemp("shared")
    write_corpus(folder)
    assert train(folder, folder / "one") is not None
    for name in ("two", "killed"):  # classes of tokens are float sums: other threads, other classes
        (folder / name).mkdir()
        for prepared in ("tokenizer.json", "tokens.npz"):
            shutil.copy(folder / "one" / prepared, folder / name)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.shared_runs", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and (folder / "killed" / "vae" / "metrics.jsonl").exists(), done.stderr
    return folder


def same(a: Path, b: Path) -> None:
    one, other = losses(a), losses(b)
    assert [entry[:2] for entry in one] == [entry[:2] for entry in other]
    assert [entry[2] for entry in one] == pytest.approx([entry[2] for entry in other], rel=1e-3)


def test_two_processes_train_as_one(runs: Path) -> None:
    same(runs / "two", runs / "one")
    codec = Codec.from_pretrained(runs / "two" / "model")
    text = b"A boat came in with the tide."
    assert codec.decode(codec.encode([text])) == [text]


def test_killed_with_two_goes_on_with_one(runs: Path) -> None:
    assert max(step for _, step, _ in losses(runs / "killed")) in (KILLED_IN - 1, KILLED_IN)
    train(runs, runs / "killed", resume=True)
    same(runs / "killed", runs / "one")


def test_a_finished_run_has_nothing_left_to_do(runs: Path) -> None:
    before = losses(runs / "one")
    with pytest.raises(InputError, match="--resume"):
        train(runs, runs / "one")
    train(runs, runs / "one", resume=True)
    assert losses(runs / "one") == before


def test_batches_that_cannot_be_shared() -> None:
    place = Place(0, 3, Place.alone().device)
    assert share_of(6, place) == 2
    with pytest.raises(UsageError, match="3 processes can't share 4 micro-batches"):
        share_of(4, place)
