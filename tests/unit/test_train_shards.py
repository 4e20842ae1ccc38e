"""Training data for many processes: together they read what one would, whatever their number."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.train.data import Batch, TokenStore, batches


@dataclass(frozen=True)
class Alphabet:
    """Stands for a tokenizer of any size: a character is a token, plus an offset."""

    size: int
    offset: int = 0
    lengths: np.ndarray = field(default_factory=lambda: np.ones(1 << 18, np.int64))

    def encode(self, records: list[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(r, np.uint8).astype(np.int64) + self.offset for r in records]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    texts = ("x" * (1 + n * n % 37) for n in range(200))
    return TokenStore.build(tmp_path_factory.mktemp("store"), texts, Alphabet(256))  # type: ignore[arg-type]


def read(store: TokenStore, count: int, **options: int) -> list[bytes]:
    stream = batches(store, store.segments(16), patch=1, patches=64, seed=3, **options)
    return [_bytes(batch) for batch in islice(stream, count)]


def _bytes(batch: Batch) -> bytes:
    return batch.tokens.tobytes() + batch.counts.tobytes()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 150))
def test_processes_share_one_order(store: TokenStore, world: int, skip: int) -> None:
    each = 4
    skip -= skip % world  # a step is a whole number of rounds
    alone = read(store, each * world, skip=skip)
    shared = [read(store, each, skip=skip, rank=rank, world=world) for rank in range(world)]
    assert [shared[i % world][i // world] for i in range(each * world)] == alone


def test_tokens_beyond_16_bits(tmp_path: Path) -> None:
    tokenizer = Alphabet(100_278, offset=100_000)
    store = TokenStore.build(tmp_path / "s", iter(["ab", "c"]), tokenizer)  # type: ignore[arg-type]
    assert store.tokens.tolist() == [100_097, 100_098, 100_099]
    assert store.guess.tolist() == store.kind.tolist() == [0, 0, 0]
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["ends.npy", "meta.json", "tokens.bin"]
    batch = next(batches(store, store.segments(16), patch=1, patches=64, seed=0))
    assert batch.tokens.max() == 100_099 and batch.guesses.sum() == 0
