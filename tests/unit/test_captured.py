"""Steps of fixed shapes, as a GPU replays them: here they run operation by operation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from colazip.config import ModelConfig
from colazip.errors import ColazipError, InputError
from colazip.nn.vae import TextVAE
from colazip.tokenizer import Tokenizer
from colazip.train.captured import BatchedMuon
from colazip.train.data import TokenStore, Vocabulary, gather
from colazip.train.distributed import Place
from colazip.train.losses import compute
from colazip.train.optimize import guesses, load_checkpoint, muon, save_atomic, to_tensors
from colazip.train.padded import padded_sums
from colazip.train.resident import Inputs, Resident, Segments, Shape, shapes
from colazip.train.side import Teller
from colazip.train.vae import VAESchedule, new_vae, train_vae
from colazip.vectors import SearchRows
from tests.tiny_model import passages

CPU = torch.device("cpu")
SIZES = (4, 8)
SCHEDULE = VAESchedule(
    12,
    named=(256, 64, 0),
    drawn=(0.6, 0.2, 0.2),
    patches=32,
    micro_batches=2,
    lr=1e-2,
    muon_lr=1e-2,
    warmup=2,
    evaluate_every=6,
    save_every=4,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config(tiny_config: ModelConfig) -> ModelConfig:
    return replace(tiny_config, conditional=True, code_sizes=SIZES)


@pytest.fixture(scope="module")
def teller(config: ModelConfig, tiny_tokenizer: Tokenizer) -> Teller:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((config.vocabulary + config.word_rows, config.vector)).astype(np.float32)
    books = {m: rng.standard_normal((m, 256, config.vector // m)).astype(np.float32) for m in SIZES}
    return Teller.of_search(config, SearchRows(rows, books), tiny_tokenizer)


@pytest.fixture(scope="module")
def stores(
    config: ModelConfig, tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TokenStore, TokenStore, Vocabulary]:
    """Of training and validation text; some records are a word, some several segments."""
    folder = tmp_path_factory.mktemp("stores")
    texts = [*passages()[:40], "a", "a word", *(text[:40] for text in passages()[40:60])]
    train = TokenStore.build(folder / "train", iter(texts), tiny_tokenizer)
    held = TokenStore.build(folder / "held", iter(passages()[60:64]), tiny_tokenizer)
    vocabulary = Vocabulary.build(folder / "vocabulary.npz", train, config, 0)
    named = vocabulary.named(SCHEDULE.named[0])
    train, held = (
        store.guessed(folder / name, tiny_tokenizer.lengths, config.segment * config.patch, named)
        for name, store in (("train", train), ("held", held))
    )
    return train, held, vocabulary


@pytest.fixture(scope="module")
def data(config: ModelConfig, teller: Teller, stores: tuple[TokenStore, TokenStore, Vocabulary]) -> Resident:
    return Resident(stores[0], Segments.cut(stores[0], config, teller, CPU), config, teller.codebooks, CPU)


@pytest.fixture(scope="module")
def vae(config: ModelConfig, teller: Teller, stores: tuple[TokenStore, TokenStore, Vocabulary]) -> TextVAE:
    """Its weights are all drawn: none is zero, as where training begins."""
    torch.manual_seed(0)
    model, vocabulary = TextVAE(config), stores[2]
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.1)
    model.readout.set_classes(
        torch.from_numpy(vocabulary.token_of), torch.from_numpy(vocabulary.limits(SCHEDULE.named))
    )
    assert model.likeness is not None
    model.likeness.set_rows(teller.rows(), model.readout.token_of)
    model.likeness.begin(torch.from_numpy(vocabulary.rank)[model.readout.token_of])
    return model


def first(data: Resident, shape: Shape, size: int | None) -> tuple[Inputs, np.ndarray]:
    inputs = data.blank(shape)
    _, rows = next(data.batches([shape], seed=1))
    data.fill(inputs, rows, size)
    return inputs, rows


# Text on the device


@pytest.mark.parametrize(("segment", "lengths"), [(256, [16, 32, 64, 128, 192, 256]), (16, [12, 16])])
def test_shapes_are_few_and_batches_of_one_size(segment: int, lengths: list[int]) -> None:
    found = shapes(segment, 1024)
    assert [shape.patches for shape in found] == lengths
    assert all(shape.rows * shape.patches <= 1024 < (shape.rows + 1) * shape.patches for shape in found)
    assert shapes(256, 10)[-1] == Shape(1, 256)  # a segment larger than a batch comes alone


def test_an_epoch_has_every_segment_at_most_once(data: Resident, config: ModelConfig) -> None:
    of = shapes(config.segment, 48)
    rows = len(data._segments)
    seen: list[int] = []
    for shape, batch in data.batches(of, seed=0):
        assert len(batch) == shape.rows and (-(-batch[:, 1] // config.patch) <= shape.patches).all()
        if set(batch[:, 0].tolist()) & set(seen):
            break
        seen += batch[:, 0].tolist()
    assert rows - sum(shape.rows - 1 for shape in of) <= len(seen) <= rows


def test_skipping_goes_on_where_a_run_stopped(data: Resident, config: ModelConfig) -> None:
    of = shapes(config.segment, 48)
    whole = list(islice(data.batches(of, seed=3), 60))
    for skip in (1, 25, 59):
        shape, batch = next(data.batches(of, seed=3, skip=skip))
        assert shape == whole[skip][0] and (batch == whole[skip][1]).all()
    assert any(
        s != t or (a != b).any() for (s, a), (t, b) in zip(whole, data.batches(of, seed=4), strict=False)
    )


def test_a_batch_larger_than_its_text_repeats_it(data: Resident, config: ModelConfig) -> None:
    shape, rows = next(data.batches([Shape(1000, config.segment)], seed=0))
    assert len(rows) == shape.rows and len(np.unique(rows[:, 0])) == len(data._segments)


@pytest.mark.parametrize("size", [None, *SIZES])
def test_a_batch_is_what_is_gathered_elsewhere(
    data: Resident,
    config: ModelConfig,
    teller: Teller,
    stores: tuple[TokenStore, TokenStore, Vocabulary],
    size: int | None,
) -> None:
    inputs, rows = first(data, Shape(9, config.segment), size)
    batch = gather(stores[0], np.stack([rows[:, 0], rows[:, 0] + rows[:, 1]], 1), config.patch)
    tokens, found = data.batch(inputs, config.segment)
    width = batch.tokens.shape[1]
    assert (tokens[:, :width].numpy() == batch.tokens).all() and not tokens[:, width:].any()
    assert (found[..., :width].numpy() == batch.guesses).all() and not found[..., width:].any()
    if size is not None:
        mine, theirs = data.about(inputs, config.segment), teller.about(batch, size, CPU)
        for row, count in enumerate(batch.counts):
            patches = -(-int(count) // config.patch)
            assert torch.equal(mine.vectors[mine.of[row, :patches]], theirs.vectors[theirs.of[row, :patches]])


def test_codes_are_kept(
    config: ModelConfig, teller: Teller, stores: tuple[TokenStore, TokenStore, Vocabulary], tmp_path: Path
) -> None:
    kept = tmp_path / "codes.npz"
    made = Segments.cut(stores[0], config, teller, CPU, kept)
    stamp = kept.stat().st_mtime_ns
    read = Segments.cut(stores[0], config, teller, CPU, kept)
    assert kept.stat().st_mtime_ns == stamp
    assert all((made.codes[size] == read.codes[size]).all() for size in SIZES)
    assert len(made.codes[4]) == int(made.passages.sum()) and (made.count > 0).all()


# What a step minimises


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("detail", "size"), [(0, None), (0, 4), (1, 8), (2, None)])
def test_padding_weighs_nothing(
    data: Resident,
    config: ModelConfig,
    teller: Teller,
    vae: TextVAE,
    stores: tuple[TokenStore, TokenStore, Vocabulary],
    detail: int,
    size: int | None,
    fast: bool,
) -> None:
    """Sums and gradients are those of a batch without."""
    inputs, rows = first(data, Shape(6, config.segment), size)
    batch = gather(stores[0], np.stack([rows[:, 0], rows[:, 0] + rows[:, 1]], 1), config.patch)
    x, counts = to_tensors(batch, CPU)
    about = None if size is None else teller.about(batch, size, CPU)
    vae.zero_grad()
    terms = compute(vae, x, counts, guesses(batch, CPU), detail, fast=fast, about=about)
    terms.loss.backward()
    expected = {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}
    vae.zero_grad()
    tokens, found = data.batch(inputs, config.segment)
    about = None if size is None else data.about(inputs, config.segment)
    sums = padded_sums(vae, tokens, inputs.counts, found, detail, room=tokens.numel(), fast=fast, about=about)
    sums[1:4].sum().backward()
    near = 2e-3 if fast else 1e-5
    assert sums.tolist() == pytest.approx(
        [terms.tokens, float(terms.classes), float(terms.slots), float(terms.exact), terms.open], rel=near
    )
    for name, parameter in vae.named_parameters():
        if name in expected:
            assert parameter.grad is not None
            gap = float((parameter.grad - expected[name]).norm())
            assert gap <= (0.1 if fast else 0.02) * float(expected[name].norm()), name


def test_what_has_no_room_is_left_out(data: Resident, config: ModelConfig, vae: TextVAE) -> None:
    inputs, _ = first(data, Shape(6, config.segment), None)
    tokens, found = data.batch(inputs, config.segment)
    whole, part = (
        padded_sums(vae, tokens, inputs.counts, found, 2, room=room, fast=False).tolist()
        for room in (tokens.numel(), 10)
    )
    assert part[:3] == whole[:3] and 0 < part[3] < whole[3] and part[4] == whole[4]


def test_muon_is_torch_s() -> None:
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(*shape)) for shape in ((24, 8), (24, 8), (8, 24), (16, 16))]
    theirs = deepcopy(mine)
    batched, reference = BatchedMuon(mine, 0.05), muon(theirs, 0.01, 0.05)
    for _ in range(3):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        batched.step(torch.tensor(0.01))
        reference.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# A run


class Reads:
    """Stands for the stream of batches of a run that is killed after so many."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, data: Resident, *args: Any, **kwargs: Any) -> Iterator[tuple[Shape, np.ndarray]]:
        for batch in self.batches(data, *args, **kwargs):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch

    batches = staticmethod(Resident.batches)


def run(
    config: ModelConfig,
    teller: Teller,
    stores: tuple[TokenStore, TokenStore, Vocabulary],
    lengths: np.ndarray,
    folder: Path,
    **settings: Any,
) -> TextVAE:
    folder.mkdir(exist_ok=True)
    train, held, vocabulary = stores
    schedule = settings.pop("schedule", SCHEDULE)
    model = new_vae(config, schedule, vocabulary, teller, settings.pop("initial", None))
    train_vae(
        model,
        schedule,
        train=train,
        validation=held,
        lengths=lengths,
        folder=folder,
        place=Place.alone(),
        resume=settings.pop("resume", False),
        teller=teller,
        resident=True,
        **settings,
    )
    return model


def test_a_run_learns_and_goes_on_where_it_was_killed(
    config: ModelConfig,
    teller: Teller,
    stores: tuple[TokenStore, TokenStore, Vocabulary],
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    lengths = tiny_tokenizer.lengths
    run(config, teller, stores, lengths, whole)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    early, late = (line for line in lines if "validation" in line)
    assert late["total_bpb"] < early["total_bpb"] and late["told_total_bpb"] < early["told_total_bpb"]
    with monkeypatch.context() as patch:
        patch.setattr(Resident, "batches", lambda data, *args, **kwargs: reads(data, *args, **kwargs))
        reads = Reads(7)
        with pytest.raises(KeyboardInterrupt):
            run(config, teller, stores, lengths, killed)
    run(config, teller, stores, lengths, killed, resume=True)
    mine, theirs = (load_checkpoint(f / "checkpoint.pt", CPU) for f in (killed, whole))
    assert mine["step"] == theirs["step"] == SCHEDULE.steps
    assert all(torch.equal(mine["model"][name], theirs["model"][name]) for name in theirs["model"])
    with pytest.raises(InputError, match="another model"):
        run(replace(config, coder=config.decoder), teller, stores, lengths, killed, resume=True)


def test_a_loss_that_is_not_finite_keeps_its_batch(
    config: ModelConfig,
    teller: Teller,
    stores: tuple[TokenStore, TokenStore, Vocabulary],
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    model = TextVAE(config)
    with torch.no_grad():
        model.embed.trainable.fill_(torch.inf)
    save_atomic({"model": model.state_dict()}, tmp_path / "broken.pt")
    with pytest.raises(ColazipError, match=r"not finite at step 0.*bad_batch\.npz"):
        run(config, teller, stores, tiny_tokenizer.lengths, tmp_path / "run", initial=tmp_path / "broken.pt")
    with np.load(tmp_path / "run" / "bad_batch.npz") as kept:
        assert kept["tokens"].ndim == 2 and len(kept["counts"]) == len(kept["tokens"])


def test_fused_kernels_are_the_layers() -> None:
    """Where Triton is installed: its interpreter runs them without a GPU."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    script = Path(__file__).parents[1] / "fused_kernels.py"
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
