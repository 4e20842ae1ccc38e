"""Training of the search head: pairs out of text, the teacher's files, rows, quantizer."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from colazip.config import EncoderConfig, ModelConfig
from colazip.errors import InputError
from colazip.nn.context import ContextEncoder
from colazip.tokenizer import Tokenizer
from colazip.train.data import TokenStore
from colazip.train.pairs import TextPairs
from colazip.train.quantizer import balanced_rotation, decode, fit_codebook, nearest
from colazip.train.search_encoder import EncoderSchedule, InContext, Units, train_encoder
from colazip.train.search_head import SearchSchedule, fit_search_head
from colazip.train.search_rows import Bags, RowSchedule, choose, first_rows, train_rows
from colazip.train.teacher import PART, Pairs, read_lexicon, read_pairs, write_lexicon, write_pairs
from colazip.vectors import RowSums, SearchRows, assign_codes, pack_rows, unpack_nibbles
from tests.tiny_model import passages

WIDTH, WORDS = 16, 64


def teacher(texts: Sequence[str]) -> np.ndarray:
    """A bag of hashed words: a teacher of which it is known that rows can follow it."""
    vectors = np.zeros((len(texts), 24), np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
            vector += np.random.default_rng(seed).standard_normal(24)
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> TokenStore:
    folder = tmp_path_factory.mktemp("store")
    return TokenStore.build(folder, iter(passages()), tiny_tokenizer)


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, store: TokenStore, tiny_tokenizer: Tokenizer
) -> tuple[Path, Path]:
    """Pairs and lexicon with a teacher, as `colazip train --teacher` leaves them."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, store, tiny_tokenizer, teacher, pairs=200, taught=200, seed=3)
    write_lexicon(folder / "lexicon.npz", store, tiny_tokenizer, teacher, words=50)
    return folder, folder / "lexicon.npz"


def test_pairs_come_again_and_are_of_one_record(store: TokenStore, tiny_tokenizer: Tokenizer) -> None:
    source = TextPairs(store, tiny_tokenizer, seed=1)
    drawn = source.draw(0, 60)
    assert drawn == TextPairs(store, tiny_tokenizer, seed=1).draw(0, 60) != source.draw(1, 60)
    texts = [" ".join(t.split()) for t in passages()]
    for query, passage in drawn:
        assert query and len(passage) >= 40
        first = " ".join(passage.split())[:30]
        assert any(first in text for text in texts)


def test_files_are_kept_and_checked(
    files: tuple[Path, Path], store: TokenStore, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder, lexicon = files
    pairs = read_pairs(folder, 200, 200)
    assert len(pairs.queries) == len(pairs.passages) == 200
    assert pairs.query_vectors is not None and pairs.query_vectors.shape == (200, 24)

    def no_teacher(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("a finished file was made again")

    write_pairs(folder, store, tiny_tokenizer, no_teacher, pairs=200, taught=200, seed=3)
    write_lexicon(lexicon, store, tiny_tokenizer, no_teacher, words=50)
    write_pairs(tmp_path, store, tiny_tokenizer, None, pairs=20, taught=20, seed=3)
    assert read_pairs(tmp_path, 20, 0).query_vectors is None
    with pytest.raises(InputError, match="vectors"):
        read_pairs(tmp_path, 20, 20)
    with pytest.raises(InputError, match="pairs-00001"):
        read_pairs(folder, PART + 1, 0)
    (tmp_path / "pairs-00000.npz").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(InputError, match="delete it"):
        read_pairs(tmp_path, 20, 0)


def test_a_batch_is_half_taught_and_goes_through_all() -> None:
    rows = [np.zeros(3, np.uint16)] * 40
    vectors = np.zeros((10, 4), np.float16)
    pairs = Pairs(rows, rows, vectors, vectors)
    seen: set[int] = set()
    for step in range(8):
        chosen, taught = choose(pairs, step, 8, seed=1)
        assert taught == 4 and (chosen[:4] < 10).all() and (chosen[4:] >= 10).all()
        assert len(set(chosen.tolist())) == 8
        seen.update(chosen[4:].tolist())
    assert len(seen) >= 28  # seven batches of four make an epoch of thirty
    assert choose(Pairs(rows, rows, None, None), 0, 8, seed=1)[1] == 0


def test_bags_sum_what_the_shipped_rows_sum(store: TokenStore, tiny_tokenizer: Tokenizer) -> None:
    texts = tiny_tokenizer.encode([p.encode() for p in passages()[:5]])
    packed, scale = pack_rows(
        np.random.default_rng(2).standard_normal((512 + WORDS, WIDTH)).astype(np.float32) * 20
    )
    table = np.rint(unpack_nibbles(packed) * scale * 256) / 256
    bags = Bags(texts, tiny_tokenizer, WORDS).sums(torch.from_numpy(table.astype(np.float32)), range(5))
    shipped = RowSums(packed, scale, tiny_tokenizer.table, WORDS)
    for mine, tokens in zip(bags.numpy(), texts, strict=True):
        assert np.allclose(mine, shipped.patches(np.asarray(tokens, np.int64), 4).sum(0), atol=0.01)


@pytest.mark.parametrize("taught", [True, False])
def test_rows_learn_and_go_on(
    taught: bool,
    files: tuple[Path, Path],
    tiny_tokenizer: Tokenizer,
    tiny_config: ModelConfig,
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(tiny_config, vector=WIDTH, word_rows=WORDS)
    folder, lexicon = files
    pairs = read_pairs(folder, 200, 200 if taught else 0)

    def train(steps: int, resume: bool) -> tuple[torch.Tensor, dict[str, float]]:
        return train_rows(
            config,
            RowSchedule(steps, batch=32, lr=1e-2, warmup=2, decay_from=1 / 3, evaluate_every=5, held_out=100),
            tokenizer=tiny_tokenizer,
            lexicon=read_lexicon(lexicon, taught=taught),
            train=pairs,
            validation=pairs,
            folder=tmp_path,
            device=torch.device("cpu"),
            resume=resume,
        )

    before = train(0, False)[1]
    rows, after = train(30, False)
    assert after["mrr"] > before["mrr"] + 0.05
    assert ("agreement" in after) == taught
    again, figures = train(30, True)
    assert torch.equal(rows, again) and figures == after


def test_codes_are_near_what_they_stand_for() -> None:
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(1.0, 0.05, WIDTH)
    sample = torch.nn.functional.normalize(torch.randn(2000, WIDTH, generator=generator) * spread, dim=1)
    rotation = balanced_rotation(sample, 4)
    assert torch.allclose(rotation @ rotation.t(), torch.eye(WIDTH), atol=1e-5)
    turned = sample @ rotation.t()
    codebook = fit_codebook(turned, 4, seed=1).numpy()
    read = decode(assign_codes(turned.numpy(), codebook), codebook)
    near = torch.nn.functional.normalize(nearest(turned[:50], torch.from_numpy(codebook)), dim=1)
    assert np.allclose(near.numpy(), read[:50], atol=1e-5)
    assert np.allclose(np.linalg.norm(read, axis=1), 1.0, atol=1e-5)
    assert (read * turned.numpy()).sum(1).mean() > 0.9


def test_the_last_stage_gives_rows_as_they_ship_and_codes(
    files: tuple[Path, Path], tiny_tokenizer: Tokenizer, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config, vector=WIDTH, word_rows=WORDS)
    pairs = read_pairs(files[0], 200, 200)
    rows = first_rows(config, read_lexicon(files[1], taught=True), pairs, RowSchedule(1))

    def fit(steps: int) -> tuple[SearchRows, dict[str, float]]:
        return fit_search_head(
            config,
            SearchSchedule(sample=200, steps=steps, batch=32, held_out=64),
            rows=rows,
            tokenizer=tiny_tokenizer,
            train=pairs,
            validation=pairs,
            folder=tmp_path,
        )

    head, figures = fit(5)
    assert head.codebooks[config.code_bytes].shape == (config.code_bytes, 256, WIDTH // config.code_bytes)
    assert figures["code_mrr"] > 0.1 and 0.5 < figures["quantizer_cosine"] <= 1.0
    packed, scale = pack_rows(head.rows)
    assert np.allclose(unpack_nibbles(packed) * scale, head.rows, rtol=1e-5)
    again, same = fit(5)
    assert np.array_equal(again.rows, head.rows) and same == figures
    assert fit(0)[1] != figures  # the steps through the quantizer do something


def in_context(config: ModelConfig) -> ModelConfig:
    shape = EncoderConfig(width=16, layers=1, heads=2, hidden=32)
    return dataclasses.replace(config, vector=WIDTH, word_rows=WORDS, code_sizes=(4, 8), search_encoder=shape)


def test_units_are_those_of_the_model(
    files: tuple[Path, Path], tiny_tokenizer: Tokenizer, tiny_config: ModelConfig
) -> None:
    config = in_context(tiny_config)
    table = np.random.default_rng(1).standard_normal((config.vocabulary + WORDS, WIDTH)).astype(np.float32)
    packed, scale = pack_rows(table * 20)
    shipped = unpack_nibbles(packed).astype(np.float32) * scale
    model = RowSums(packed, scale, tiny_tokenizer.table, WORDS)
    some = read_pairs(files[0], 200, 0).passages[:20]
    sums, valid = Units(some, tiny_tokenizer, WORDS).sums(torch.from_numpy(shipped), range(20))
    for i, text in enumerate(some):
        expected, _ = model.units(text.astype(np.int64)[:256])
        assert int(valid[i].sum()) == len(expected)
        assert np.allclose(sums[i, : len(expected)].numpy(), expected, atol=0.05)
        assert not sums[i, len(expected) :].any()


def test_an_encoder_learns_and_ships_what_was_trained(
    files: tuple[Path, Path], tiny_tokenizer: Tokenizer, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    config = in_context(tiny_config)
    pairs = read_pairs(files[0], 200, 200)
    rows = first_rows(config, read_lexicon(files[1], taught=True), pairs, RowSchedule(1))

    def run(steps: int, resume: bool = False) -> tuple[torch.Tensor, ContextEncoder, dict[str, float]]:
        schedule = EncoderSchedule(
            steps, batch=64, lr=1e-2, row_lr=1e-2, warmup=2, save_every=5, sample=100, held_out=100
        )
        return train_encoder(
            config,
            schedule,
            rows=rows,
            tokenizer=tiny_tokenizer,
            train=pairs,
            validation=pairs,
            folder=tmp_path,
            device=torch.device("cpu"),
            resume=resume,
        )

    before = run(0)[2]
    table, encoder, after = run(25)
    assert after["mrr"] > before["mrr"] and after["static_mrr"] > before["static_mrr"]
    again, _, same = run(25, resume=True)
    assert torch.equal(again, table) and same == after
    texts = InContext(Units(pairs.passages[:50], tiny_tokenizer, WORDS), encoder)
    with torch.no_grad():
        trained, static = texts.both(table, range(50))
    assert not torch.allclose(trained, static, atol=1e-3)
    head, figures = fit_search_head(
        config,
        SearchSchedule(sample=200, steps=0, batch=32, held_out=100),
        rows=table,
        tokenizer=tiny_tokenizer,
        train=pairs,
        validation=pairs,
        folder=tmp_path,
        encoder=encoder,
    )
    assert head.encoder is encoder and figures["mrr"] == pytest.approx(after["mrr"], abs=0.02)
    shipped = InContext(Units(pairs.passages[:50], tiny_tokenizer, WORDS), encoder, 1.0)
    with torch.no_grad():
        assert torch.allclose(shipped.vectors(torch.from_numpy(head.rows), range(50)), trained, atol=1e-3)
    for size in config.codes:
        book = head.codebooks[size]
        assert book.shape == (size, 256, WIDTH // size)
        assert np.array_equal(book, book.astype(np.float16).astype(np.float32))


def test_an_encoder_learns_without_a_teacher(
    files: tuple[Path, Path], tiny_tokenizer: Tokenizer, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    config = in_context(tiny_config)
    pairs = read_pairs(files[0], 200, 0)
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((config.vocabulary + WORDS, WIDTH)))
    _, _, figures = train_encoder(
        config,
        EncoderSchedule(3, batch=32, warmup=1, sample=100, held_out=64),
        rows=rows.float(),
        tokenizer=tiny_tokenizer,
        train=pairs,
        validation=pairs,
        folder=tmp_path,
        device=torch.device("cpu"),
        resume=False,
    )
    assert 0 < figures["mrr"] <= 1
