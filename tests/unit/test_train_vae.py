"""The training loop: it learns, it can be killed and taken up again, and it stops on nonsense."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from colazip.config import ModelConfig
from colazip.errors import ColazipError, InputError
from colazip.nn.vae import TextVAE
from colazip.tokenizer import Tokenizer
from colazip.train.data import TokenStore, Vocabulary, batches
from colazip.train.distributed import Place
from colazip.train.optimize import learning_rate, load_checkpoint, save_atomic
from colazip.train.vae import VAESchedule, new_vae, train_vae
from tests.tiny_model import passages

SCHEDULE = VAESchedule(
    20,
    named=(256, 64, 0),
    drawn=(0.6, 0.2, 0.2),
    patches=64,
    lr=1e-2,
    muon_lr=1e-2,
    warmup=3,
    evaluate_every=10,
    save_every=6,
)


@dataclass
class Corpus:
    train: TokenStore
    validation: TokenStore
    vocabulary: Vocabulary
    lengths: np.ndarray


@pytest.fixture(scope="module")
def corpus(
    tiny_config: ModelConfig, tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    stores = {"train": passages()[:60], "validation": passages()[60:64]}
    made = {n: TokenStore.build(folder / n, iter(t), tiny_tokenizer) for n, t in stores.items()}
    vocabulary = Vocabulary.build(folder / "vocabulary.npz", made["train"], tiny_config, 0)
    named, lengths = vocabulary.named(SCHEDULE.named[0]), tiny_tokenizer.lengths
    made = {n: s.guessed(folder / n, lengths, 64, named) for n, s in made.items()}
    return Corpus(made["train"], made["validation"], vocabulary, lengths)


pytestmark = pytest.mark.usefixtures("one_thread")


def run(config: ModelConfig, corpus: Corpus, folder: Path, **changes: Any) -> TextVAE:
    folder.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"resume": False, "train": corpus.train, "schedule": SCHEDULE, **changes}
    schedule = settings.pop("schedule")
    model = new_vae(config, schedule, corpus.vocabulary, initial=settings.pop("initial", None))
    train_vae(
        model,
        schedule,
        validation=corpus.validation,
        lengths=corpus.lengths,
        folder=folder,
        place=Place.alone(),
        **settings,
    )
    return model


def figures(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "validation" in line]


@pytest.fixture(scope="module")
def whole(tiny_config: ModelConfig, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nothing interrupted."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    run(tiny_config, corpus, folder)
    return folder


def test_it_learns(whole: Path) -> None:
    first, last = figures(whole)
    assert (first["step"], last["step"]) == (10, 20)
    for mark in ("", "_1", "_2"):
        assert last[f"total_bpb{mark}"] < first[f"total_bpb{mark}"] < 9 / 2  # 9 bits a token of 2 bytes
        assert last[f"total_bpb{mark}"] == pytest.approx(last[f"gist_bpb{mark}"] + last[f"exact_bpb{mark}"])
    for name, rising in (("gist_bpb", False), ("exact_bpb", True), ("gist_accuracy", False)):
        by_detail = [last[name], last[f"{name}_1"], last[f"{name}_2"]]
        assert by_detail == sorted(by_detail, reverse=not rising) and by_detail[-1 if rising else 0] > 0
    assert last["gist_accuracy"] <= 1
    head = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert head["config"]["name"] == "tiny" and head["schedule"]["steps"] == 20


class Interrupted(np.ndarray):
    """Tokens whose reading is interrupted, as by ^C, after so many reads."""

    reads_left: int

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            if not self.reads_left:
                raise KeyboardInterrupt
            self.reads_left -= 1
        return np.asarray(super().__getitem__(key))


def reads_until(corpus: Corpus, config: ModelConfig, step: int) -> int:
    segments = corpus.train.segments(config.segment * config.patch)
    stream = batches(corpus.train, segments, patch=config.patch, patches=SCHEDULE.patches, seed=0)
    return sum(len(next(stream).counts) for _ in range(step))


def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tiny_config: ModelConfig, corpus: Corpus, whole: Path, tmp_path: Path
) -> None:
    tokens = np.asarray(corpus.train.tokens).view(Interrupted)
    tokens.reads_left = reads_until(corpus, tiny_config, 11)  # after the figures of step 10
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config, corpus, tmp_path, train=replace(corpus.train, tokens=tokens))
    assert load_checkpoint(tmp_path / "checkpoint.pt", torch.device("cpu"))["step"] == 6
    assert figures(tmp_path) == figures(whole)[:1]  # the figures of step 10 are there, to be made again
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 1')  # cut short by the kill
    torch.manual_seed(99)  # another process has another state of its generator
    run(tiny_config, corpus, tmp_path, resume=True)
    assert figures(tmp_path) == figures(whole)
    mine, theirs = (
        load_checkpoint(f / "checkpoint.pt", torch.device("cpu"))["model"] for f in (tmp_path, whole)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_finished_run_resumes_to_itself(tiny_config: ModelConfig, corpus: Corpus, whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_text()
    model = run(tiny_config, corpus, whole, resume=True)
    saved = load_checkpoint(whole / "checkpoint.pt", torch.device("cpu"))["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert (whole / "metrics.jsonl").read_text() == before


def test_another_run_is_the_starting_point(
    tiny_config: ModelConfig, corpus: Corpus, whole: Path, tmp_path: Path
) -> None:
    schedule = replace(SCHEDULE, steps=1, warmup=0, lr=0.0, muon_lr=0.0, evaluate_every=1)
    run(tiny_config, corpus, tmp_path, schedule=schedule, initial=whole / "checkpoint.pt")
    (start,) = figures(tmp_path)
    for name in ("exact_bpb", "gist_bpb", "gist_bpb_2"):
        assert start[name] == pytest.approx(figures(whole)[-1][name], rel=1e-6)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_batch(
    tiny_config: ModelConfig, corpus: Corpus, tmp_path: Path
) -> None:
    model = TextVAE(tiny_config)
    with torch.no_grad():
        model.embed.weight.fill_(torch.inf)
    save_atomic({"model": model.state_dict()}, tmp_path / "broken.pt")
    with pytest.raises(ColazipError, match=r"not finite at step 0.*bad_batch\.npz"):
        run(tiny_config, corpus, tmp_path / "run", initial=tmp_path / "broken.pt")
    with np.load(tmp_path / "run" / "bad_batch.npz") as kept:
        assert kept["tokens"].ndim == 2 and len(kept["counts"]) == len(kept["tokens"])
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("data", [None, b"", b"noise" * 100, b"PK\x03\x04 noise"])
def test_a_checkpoint_that_is_none_is_an_input_error(
    tiny_config: ModelConfig, corpus: Corpus, tmp_path: Path, data: bytes | None
) -> None:
    if data is not None:
        (tmp_path / "checkpoint.pt").write_bytes(data)
    with pytest.raises(InputError, match=r"checkpoint\.pt.*start without --resume"):
        run(tiny_config, corpus, tmp_path, resume=True)


def test_a_checkpoint_of_another_model_is_an_input_error(
    tiny_config: ModelConfig, corpus: Corpus, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((whole / "checkpoint.pt").read_bytes())
    with pytest.raises(InputError, match="another"):
        run(replace(tiny_config, embedding=24), corpus, tmp_path, resume=True)


def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomic({"step": 1}, path)

    class Unwritable:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_atomic({"step": 2, "rest": Unwritable()}, path)
    assert load_checkpoint(path, torch.device("cpu")) == {"step": 1}


# Schedule


def test_learning_rate_rises_stays_and_falls() -> None:
    factors = [learning_rate(step, 100, warmup=10, decay_from=0.5) for step in range(101)]
    assert factors[0] == 0.1 and factors[9:51] == [1.0] * 42
    assert factors[75] == 0.5 and factors[100] == 0.0
    assert sorted(factors[:10]) == factors[:10] and sorted(factors[50:], reverse=True) == factors[50:]


def test_gists_of_every_detail_are_drawn_as_often_as_asked() -> None:
    drawn = np.bincount([SCHEDULE.detail(step) for step in range(4000)], minlength=3) / 4000
    assert drawn == pytest.approx([0.6, 0.2, 0.2], abs=0.03)
    assert [SCHEDULE.detail(step) for step in range(50)] == [SCHEDULE.detail(step) for step in range(50)]
    assert {replace(SCHEDULE, drawn=(0.0, 2.0)).detail(step) for step in range(50)} == {1}


def test_places_stay_where_company_puts_them(corpus: Corpus, whole: Path) -> None:
    saved = load_checkpoint(whole / "checkpoint.pt", torch.device("cpu"))["model"]
    assert np.array_equal(saved["places.weight"].numpy(), corpus.vocabulary.places)
    assert np.array_equal(saved["readout.token_of"].numpy(), corpus.vocabulary.token_of)
    assert np.array_equal(saved["readout.limits"].numpy(), corpus.vocabulary.limits(SCHEDULE.named))
