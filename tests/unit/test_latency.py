"""The latency benchmark on the tiny model: both sides run, and the counts they share are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.latency import coding_parameters, measure, median_seconds, peer_of
from benchmarks.records import hostile, prose
from colazip.errors import InputError
from colazip.evaluate.language_model import LanguageModel, LanguageModelConfig, as_checkpoint
from colazip.nn.vae import TextVAE
from tests.tiny_model import tiny_codec


def test_both_sides_of_one_record(tmp_path: Path) -> None:
    codec = tiny_codec()
    rows = measure(codec, peer_of(codec, None), prose(160), 1, tmp_path)
    assert len(rows) == 2 and all(row.own > 0 and row.factor > 0 for row in rows)


def test_shipped_weights_count_like_trained_ones() -> None:
    codec = tiny_codec()
    fresh = TextVAE(codec.model.config)
    assert coding_parameters(codec) == sum(p.numel() for p in fresh.parameters())
    peer = peer_of(codec, None)
    assert abs(sum(p.numel() for p in peer.parameters()) / coding_parameters(codec) - 1) < 0.01


def test_a_peer_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    state = as_checkpoint(LanguageModel(LanguageModelConfig(100, 64, 1, 64)))
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(InputError, match="100 tokens"):
        peer_of(tiny_codec(), tmp_path / "other.pt")


def test_jobs_take_turns() -> None:
    calls: list[str] = []
    seconds = median_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3 and set(seconds) == {"a", "b"}


def test_made_records() -> None:
    assert [len(prose(n)) for n in (1, 2000, 60_000)] == [1, 2000, 60_000]
    kinds = hostile()
    assert b"" in kinds["empty"] and len(set(kinds["single bytes"])) == 256
    assert max(map(len, kinds["random bytes, 1 to 4,096"])) == 4096
