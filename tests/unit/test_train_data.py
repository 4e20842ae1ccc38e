"""Training data: what is read, how it is cut, and that the order of batches can be taken up again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import colazip.encode
from colazip.archive import Archive, Record
from colazip.codec import Codec
from colazip.config import ModelConfig
from colazip.errors import InputError
from colazip.lanes import Lanes, lay_out
from colazip.layers import BLOCK_BYTES, BLOCK_PARTS, EXACT, GIST, Block
from colazip.memory import recall
from colazip.nn.dit import DiT
from colazip.nn.vae import TextVAE
from colazip.presets import SMALL
from colazip.pretrained import from_networks
from colazip.tokenizer import Tokenizer
from colazip.train import data as train_data
from colazip.train.data import (
    Batch,
    TokenStore,
    Vocabulary,
    batches,
    cluster_tokens,
    company,
    gather,
    read_texts,
)
from colazip.vectors import SearchRows
from tests.plain_codec import PlainCodec
from tests.tiny_model import passages

LANE = 1024  # tokens
NAMED = (np.arange(512) // 3 * 3).astype(np.uint16)  # what stands for each token in a gist


@pytest.fixture(scope="module")
def store(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("store")
    return guessed(TokenStore.build(folder, iter(passages()), tiny_tokenizer), folder, tiny_tokenizer, NAMED)


def guessed(store: TokenStore, folder: Path, tokenizer: Tokenizer, named: np.ndarray) -> TokenStore:
    return store.guessed(folder, tokenizer.lengths, LANE, named)


# Reading


def write_parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def write_jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_files_of_all_kinds_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes("plain text \xe9\n".encode("latin-1"))
    files = [
        write_jsonl(tmp_path / "b.jsonl", [{"text": "three"}, {"text": ""}, {"text": "four", "n": 1}]),
        write_parquet(tmp_path / "a.parquet", {"n": [1, 2, 3, 4], "text": ["one", None, "", "two"]}),
        tmp_path / "c.txt",
    ]
    assert list(read_texts(files)) == ["three", "four", "one", "two", "plain text \ufffd\n"]


def test_another_column_and_sources_left_out(tmp_path: Path) -> None:
    rows = [("a", "x-1"), ("b", "y-1"), ("c", "x-2"), ("d", "z")]
    files = [
        write_parquet(tmp_path / "a.parquet", {"body": [r[0] for r in rows], "source": [r[1] for r in rows]}),
        write_jsonl(tmp_path / "b.ndjson", [*({"body": b, "source": s} for b, s in rows), {"body": "e"}]),
    ]
    assert list(read_texts(files, "body", ["x-", "z"])) == ["b", "b", "e"]
    assert list(read_texts(files, "body")) == list("abcdabcde")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_other_kinds_of_text_columns(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(["one", "two", None, "one"]).cast(kind)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    assert list(read_texts([tmp_path / "a.parquet"])) == ["one", "two", "one"]


def bad_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Why it can't be read, as the message says it, and the file."""
    yield "no such file", folder / "none.txt"
    (folder / "folder").mkdir()
    yield "folder", folder / "folder"
    (folder / "folder.jsonl").mkdir()
    yield "folder", folder / "folder.jsonl"
    (folder / "folder.parquet").mkdir()
    yield "folder", folder / "folder.parquet"
    for name, data in {"empty": b"", "noise": b"PAR1 no parquet PAR1"}.items():
        (folder / f"{name}.parquet").write_bytes(data)
        yield "Parquet", folder / f"{name}.parquet"
    good = write_parquet(folder / "good.parquet", {"text": [f"{i} " * 50 for i in range(400)]})
    damaged = bytearray(good.read_bytes())
    damaged[100:1000] = bytes(900)  # the footer is whole, so the file opens
    (folder / "damaged.parquet").write_bytes(damaged)
    yield "Parquet", folder / "damaged.parquet"
    yield "'text'", write_parquet(folder / "column.parquet", {"body": ["a"]})
    yield "'text'", write_parquet(folder / "numbers.parquet", {"text": [1, 2]})
    yield "'text'", write_parquet(folder / "bytes.parquet", {"text": [b"a", b"\xff"]})
    yield "line 2", write_jsonl(folder / "column.jsonl", [{"text": "a"}, {"body": "b"}])
    yield "line 2", write_jsonl(folder / "rows.jsonl", [{"text": "a"}, ["text"]])
    yield "line 2", write_jsonl(folder / "words.jsonl", [{"text": "a"}, "text"])
    yield "line 2", write_jsonl(folder / "numbers.jsonl", [{"text": "a"}, {"text": 5}])
    for name, data in {
        "cut": b'{"text": "a"}\n{"text": "b',
        "latin": b'{"text": "a"}\n{"text": "\xe9"}\n',
        "deep": b'{"text": "a"}\n' + b"[" * 100_000,
    }.items():
        (folder / f"{name}.jsonl").write_bytes(data)
        yield "line 2", folder / f"{name}.jsonl"


def test_bad_files_are_input_errors(tmp_path: Path) -> None:
    for reason, path in bad_files(tmp_path):
        with pytest.raises(InputError) as caught:
            list(read_texts([path]))
        message = str(caught.value)
        assert str(path) in message and reason in message, path
        assert "\n" not in message and len(message) < 400, path


# The store


def test_records_are_tokenized_one_after_the_other(store: TokenStore, tiny_tokenizer: Tokenizer) -> None:
    starts = [0, *store.ends[:-1].tolist()]
    texts = [
        tiny_tokenizer.decode(store.tokens[a:b].tolist()) for a, b in zip(starts, store.ends, strict=True)
    ]
    assert texts == [p.encode() for p in passages()]
    assert store.tokens.dtype == np.uint16
    assert store.text_bytes == sum(map(len, texts))


def test_a_finished_store_is_opened_and_an_unfinished_one_built(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    first = TokenStore.build(tmp_path / "store", iter(["one two", "three"]), tiny_tokenizer)

    def never() -> Iterator[str]:
        raise AssertionError("read again")
        yield

    again = TokenStore.build(tmp_path / "store", never(), tiny_tokenizer)
    assert again.tokens.tolist() == first.tokens.tolist() and again.ends.tolist() == first.ends.tolist()
    (tmp_path / "store" / "meta.json").unlink()  # written last: a killed build lacks it
    other = TokenStore.build(tmp_path / "store", iter(["four"]), tiny_tokenizer)
    assert tiny_tokenizer.decode(other.tokens.tolist()) == b"four"


def test_lone_surrogates_are_kept(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = TokenStore.build(tmp_path, iter(["a\ud800b"]), tiny_tokenizer)
    assert tiny_tokenizer.decode(made.tokens.tolist()) == b"a\xed\xa0\x80b"


def test_no_text_is_an_input_error(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text"):
        TokenStore.build(tmp_path, iter([]), tiny_tokenizer)


@pytest.mark.parametrize("name", ["meta.json", "ends.npy", "tokens.bin", "guess.bin", "kind.bin"])
@pytest.mark.parametrize("data", [b"", b"{}", b"noise" * 50])
def test_a_damaged_store_is_an_input_error(
    tiny_tokenizer: Tokenizer, tmp_path: Path, name: str, data: bytes
) -> None:
    made = TokenStore.build(tmp_path, iter(["one two", "three"]), tiny_tokenizer)
    guessed(made, tmp_path, tiny_tokenizer, NAMED)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=r"[Dd]elete"):
        TokenStore.open(tmp_path)


# Guesses of the block memory


class Recorder(PlainCodec):
    """Keeps the parts of every block that a writer filled."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[list[bytes]] = []

    def encode_blocks(
        self,
        blocks: Sequence[Sequence[bytes]],
        layers: Sequence[str] | None = None,
        preset: str = SMALL,
    ) -> list[Block]:
        self.blocks += [list(parts) for parts in blocks]
        return super().encode_blocks(blocks, layers, preset)


def in_order(lanes: Lanes, guess: np.ndarray, kind: np.ndarray) -> list[tuple[int, int]]:
    """What was guessed, (guess, kind) of each token, as the text goes: part after part, block by block."""
    rows = sorted(range(len(lanes)), key=lambda i: (lanes.block[i], lanes.part[i], lanes.start[i]))
    return [(int(guess[i, t]), int(kind[i, t])) for i in rows for t in range(lanes.count[i])]


def stored(store: TokenStore) -> list[tuple[int, int]]:
    return list(zip(store.guess.tolist(), store.kind.tolist(), strict=True))


def test_guesses_are_those_of_the_blocks_that_a_writer_fills(
    tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that are full of bytes and blocks that are full of parts, several passes of blocks, records of
    several lanes."""
    monkeypatch.setattr(train_data, "_BLOCKS_AT_ONCE", 2)
    long = " ".join(passages())[: BLOCK_BYTES - 1000]
    many = [f"{i % 77}" for i in range(BLOCK_PARTS + 50)]
    texts = [*passages(), *many, long, long, *passages()[::-1]]
    recorder = Recorder()
    Archive.pack(tmp_path / "a.cola", [Record(t.encode()) for t in texts], codec=recorder)
    sizes = [(len(parts), sum(map(len, parts))) for parts in recorder.blocks]
    assert len(sizes) >= 6 and any(parts == BLOCK_PARTS for parts, _ in sizes)

    coded = [tiny_tokenizer.encode(parts) for parts in recorder.blocks]
    lanes = lay_out([[len(t) for t in parts] for parts in coded], 1024, 4)
    table = np.zeros((len(lanes), lanes.count.max()), np.int64)
    for row in range(len(lanes)):
        part = coded[lanes.block[row]][lanes.part[row]]
        table[row, : lanes.count[row]] = NAMED[part[lanes.start[row] :][: lanes.count[row]]]
    expected = in_order(lanes, *recall(table, lanes.block, lanes.count))
    plain = TokenStore.build(tmp_path / "store", iter(texts), tiny_tokenizer)
    assert not plain.kind.any() and not plain.guess.any()
    made = guessed(plain, tmp_path / "store", tiny_tokenizer, NAMED)
    assert stored(TokenStore.open(tmp_path / "store")) == stored(made) == expected
    assert (made.guess.dtype, made.kind.dtype) == (np.uint16, np.uint8)
    assert np.mean(made.kind > 0) > 0.5 and np.mean(made.guess == NAMED[made.tokens]) > 0.1


def test_guesses_are_those_the_codec_codes_with(
    tiny_vae: TextVAE,
    tiny_config: ModelConfig,
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(tiny_config, segment=256)
    rows = SearchRows(
        np.ones((config.vocabulary + config.word_rows, config.vector), np.float32),
        {
            config.code_bytes: np.zeros(
                (config.code_bytes, 256, config.vector // config.code_bytes), np.float32
            )
        },
    )
    codec = Codec(from_networks(config, tiny_tokenizer, tiny_vae, rows, DiT.for_text(config)))
    calls = []

    def listening(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        calls.append(recall(*arguments))
        return calls[-1]

    monkeypatch.setattr(colazip.encode, "recall", listening)
    texts = [*passages()[:8], " ".join(passages()[8:20])]
    parts = [t.encode() for t in texts]
    codec.encode_blocks([parts], (GIST, EXACT))
    lanes = lay_out([[len(t) for t in tiny_tokenizer.encode(parts)]], 1024, 4)
    assert lanes.count.max() == 1024
    made = TokenStore.build(tmp_path / "store", iter(texts), tiny_tokenizer)
    named = codec.model.cells.named(np.arange(config.vocabulary), 0).astype(np.uint16)
    made = guessed(made, tmp_path / "store", tiny_tokenizer, named)
    assert stored(made) == in_order(lanes, *calls[0])


def test_a_text_longer_than_a_block_is_several_parts(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Each starts a memory of its own: nothing is known at a block's first tokens."""
    text = "0123456789abcdef" * (3 * BLOCK_BYTES // 16)
    made = TokenStore.build(tmp_path, iter([text]), tiny_tokenizer)
    made = guessed(made, tmp_path, tiny_tokenizer, NAMED)
    assert len(made.guess) == len(made.kind) == len(made.tokens)
    ends = np.cumsum(tiny_tokenizer.lengths[np.asarray(made.tokens)])
    starts = [0, *(np.searchsorted(ends, [BLOCK_BYTES, 2 * BLOCK_BYTES], side="right")).tolist()]
    assert len(starts) == 3
    for at in starts:
        assert made.kind[at] == 0 and made.guess[at] == 0
    assert (made.kind > 0).mean() > 0.9


# Segments


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=30), st.integers(1, 40))
def test_segments_tile_the_records(counts: list[int], length: int) -> None:
    ends = np.cumsum(np.array(counts, np.int64))
    nothing = np.zeros(int(ends[-1]) if counts else 0, np.uint16)
    segments = TokenStore(nothing, ends, 0, nothing, nothing.astype(np.uint8)).segments(length)
    expected = []
    for end, count in zip(ends.tolist(), counts, strict=True):
        at = end - count
        while at < end:
            expected.append([at, min(at + length, end)])
            at += length
    assert segments.tolist() == expected


# Batches


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "counts", "guesses"))


def run(store: TokenStore, count: int, *, seed: int = 0, skip: int = 0) -> list[Batch]:
    segments = store.segments(64)
    return list(islice(batches(store, segments, patch=4, patches=96, seed=seed, skip=skip), count))


def batches_an_epoch(store: TokenStore) -> int:
    segments, total, count = store.segments(64), 0, 0
    for batch in batches(store, segments, patch=4, patches=96, seed=0):
        total, count = total + len(batch.counts), count + 1
        if total >= len(segments):
            assert total == len(segments)
            return count
    raise AssertionError


def test_an_epoch_has_every_segment_once(store: TokenStore) -> None:
    seen = []
    for batch in run(store, batches_an_epoch(store)):
        seen += [row[:count].tobytes() for row, count in zip(batch.tokens, batch.counts, strict=True)]
    expected = [store.tokens[a:b].astype(np.int64).tobytes() for a, b in store.segments(64)]
    assert sorted(seen) == sorted(expected)


def test_batches_keep_to_their_size_and_pad_with_zeros(store: TokenStore) -> None:
    for batch in run(store, batches_an_epoch(store)):
        assert batch.tokens.shape[1] % 4 == 0
        assert batch.tokens.shape[1] - 4 < batch.counts.max() <= batch.tokens.shape[1]
        assert batch.tokens.size // 4 <= 96
        real = np.arange(batch.tokens.shape[1]) < batch.counts[:, None]
        assert not batch.tokens[~real].any() and batch.tokens[real].all()
        assert batch.guesses.shape == (2, *batch.tokens.shape) and not batch.guesses[:, ~real].any()


def test_the_seed_decides_the_order(store: TokenStore) -> None:
    first, again, other = run(store, 30), run(store, 30), run(store, 30, seed=1)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not all(same(a, b) for a, b in zip(first, other, strict=True))


def test_epochs_differ(store: TokenStore) -> None:
    epoch = batches_an_epoch(store)
    both = run(store, 2 * epoch)
    assert not all(same(a, b) for a, b in zip(both[:epoch], both[epoch:], strict=True))


def test_skipping_goes_on_where_a_run_stopped(store: TokenStore) -> None:
    epoch = batches_an_epoch(store)
    whole = run(store, 2 * epoch + 10)
    for skip in (0, 1, epoch - 1, epoch, epoch + 3, 2 * epoch + 1):
        rest = run(store, 5, skip=skip)
        assert all(same(a, b) for a, b in zip(whole[skip:], rest, strict=False))


def test_a_segment_larger_than_a_batch_comes_alone(store: TokenStore) -> None:
    segments = store.segments(10_000)
    for batch in islice(batches(store, segments, patch=4, patches=1, seed=0), 5):
        assert len(batch.counts) == 1


def test_gather(store: TokenStore) -> None:
    batch = gather(store, np.array([[3, 8], [10, 12]]), 4)
    assert batch.counts.tolist() == [5, 2]
    assert batch.tokens.tolist() == [
        [*store.tokens[3:8].tolist(), 0, 0, 0],
        [*store.tokens[10:12].tolist(), 0, 0, 0, 0, 0, 0],
    ]
    for row, kept in enumerate((store.guess, store.kind)):
        assert batch.guesses[row].tolist() == [
            [*kept[3:8].tolist(), 0, 0, 0],
            [*kept[10:12].tolist(), 0, 0, 0, 0, 0, 0],
        ]


# Classes of tokens


def a_store(tokens: np.ndarray) -> TokenStore:
    nothing = np.zeros(len(tokens), np.uint16)
    return TokenStore(tokens.astype(np.uint16), np.array([len(tokens)]), 0, nothing, nothing.astype(np.uint8))


def two_alphabets() -> TokenStore:
    """Even and odd tokens meet only where they take turns; a number says nothing of its alphabet."""
    rng = np.random.default_rng(0)
    return a_store(np.concatenate([rng.integers(0, 40, 400) * 2 + side for side in (0, 1) * 40]))


def test_company_is_repeatable_and_counts(store: TokenStore) -> None:
    points, frequency = company(store, 512, 3)
    assert points.shape == (512, 64) and points.dtype == np.float32
    assert frequency.tolist() == np.bincount(store.tokens, minlength=512).tolist()
    again, _ = company(store, 512, 3)
    assert np.array_equal(again, points)
    seen = np.linalg.norm(points[frequency > 0], axis=1)
    assert np.allclose(seen, 1.0, atol=1e-5) and len(seen) > 300
    _, some = company(store, 512, 3, sample=1000)
    assert some.sum() == 1000


def test_tokens_of_like_company_stand_together() -> None:
    points, _ = company(two_alphabets(), 80, 0)
    cosine = points @ points.T
    same_side = np.arange(80)[:, None] % 2 == np.arange(80)[None] % 2
    assert cosine[same_side].mean() > cosine[~same_side].mean() + 0.3


def test_clusters_are_equal_and_repeatable(store: TokenStore) -> None:
    points, frequency = company(store, 512, 3)
    class_of = cluster_tokens(points, frequency, 16)
    assert class_of.shape == (512,) and class_of.dtype == np.int64
    assert np.bincount(class_of, minlength=16).tolist() == [32] * 16
    assert np.array_equal(cluster_tokens(points, frequency, 16), class_of)


def test_tokens_of_like_company_share_a_class() -> None:
    made = cluster_tokens(*company(two_alphabets(), 80, 0), 2)
    assert len(set(made[::2].tolist())) == 1 and len(set(made[1::2].tolist())) == 1
    assert made[0] != made[1]


# What gists name


@pytest.fixture(scope="module")
def vocabulary(
    store: TokenStore, tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.npz"
    made = Vocabulary.build(path, store, tiny_config, 0)
    again = Vocabulary.build(path, a_store(np.zeros(1)), tiny_config, 7)  # from the file, not from the text
    for name in ("token_of", "rank", "places"):
        assert np.array_equal(getattr(made, name), getattr(again, name))
    return made


def test_classes_hold_like_tokens_the_common_ones_first(store: TokenStore, vocabulary: Vocabulary) -> None:
    frequency = np.bincount(store.tokens, minlength=512)
    assert (np.diff(frequency[np.argsort(vocabulary.rank)]) <= 0).all()
    assert sorted(vocabulary.rank.tolist()) == list(range(512))
    assert vocabulary.token_of.shape == (16, 32)
    assert sorted(vocabulary.token_of.flatten().tolist()) == list(range(512))
    assert (np.diff(vocabulary.rank[vocabulary.token_of]) > 0).all()
    class_of = cluster_tokens(*company(store, 512, 0), 16)
    assert all(len(set(class_of[row].tolist())) == 1 for row in vocabulary.token_of)


def test_places_are_the_leading_axes_of_company(store: TokenStore, vocabulary: Vocabulary) -> None:
    points, _ = company(store, 512, 0)
    centred = points - points.mean(0)
    spread = np.linalg.svd(centred, compute_uv=False)[:2] ** 2
    assert vocabulary.places.shape == (512, 2) and vocabulary.places.dtype == np.float32
    assert np.allclose((vocabulary.places**2).sum(0), spread, rtol=1e-3)
    assert abs(float(vocabulary.places[:, 0] @ vocabulary.places[:, 1])) < 1e-3 * spread[1]
    assert np.abs(vocabulary.places.mean(0)).max() < 1e-5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 600))
def test_the_commonest_tokens_are_named(vocabulary: Vocabulary, count: int) -> None:
    (limits,) = vocabulary.limits([count])
    assert limits.sum() == min(count, 512) and limits.dtype == np.int64
    named = vocabulary.named(count)
    assert named.dtype == np.uint16
    for row, limit in zip(vocabulary.token_of, limits.tolist(), strict=True):
        assert (vocabulary.rank[row[:limit]] < count).all() and (vocabulary.rank[row[limit:]] >= count).all()
        assert named[row[:limit]].tolist() == row[:limit].tolist()
        assert set(named[row[limit:]].tolist()) <= {int(row[min(limit, 31)])}


def test_limits_and_names_are_those_of_the_networks(tiny_config: ModelConfig, vocabulary: Vocabulary) -> None:
    counts = [300, 40, 0]
    readout = TextVAE(tiny_config).readout
    limits = vocabulary.limits(counts)
    assert limits.shape == (3, 16) and (np.diff(limits, axis=0) <= 0).all()
    readout.set_classes(torch.from_numpy(vocabulary.token_of), torch.from_numpy(limits))
    for detail, count in enumerate(counts):
        assert readout.named(torch.arange(512), detail).tolist() == vocabulary.named(count).tolist()
