"""Training data: what is read, how it is cut, and that the order of batches can be taken up again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.errors import InputError
from colazip.tokenizer import Tokenizer
from colazip.train.data import Batch, TokenStore, batches, cluster_tokens, gather, read_texts
from tests.tiny_model import passages


@pytest.fixture(scope="module")
def store(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return TokenStore.build(tmp_path_factory.mktemp("store"), iter(passages()), tiny_tokenizer)


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


@pytest.mark.parametrize("name", ["meta.json", "ends.npy", "tokens.bin"])
@pytest.mark.parametrize("data", [b"", b"{}", b"noise" * 50])
def test_a_damaged_store_is_an_input_error(
    tiny_tokenizer: Tokenizer, tmp_path: Path, name: str, data: bytes
) -> None:
    TokenStore.build(tmp_path, iter(["one two", "three"]), tiny_tokenizer)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=r"[Dd]elete"):
        TokenStore.open(tmp_path)


# Segments


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=30), st.integers(1, 40))
def test_segments_tile_the_records(counts: list[int], length: int) -> None:
    ends = np.cumsum(np.array(counts, np.int64))
    segments = TokenStore(np.zeros(int(ends[-1]) if counts else 0, np.uint16), ends, 0).segments(length)
    expected = []
    for end, count in zip(ends.tolist(), counts, strict=True):
        at = end - count
        while at < end:
            expected.append([at, min(at + length, end)])
            at += length
    assert segments.tolist() == expected


# Batches


def same(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.tokens, b.tokens) and np.array_equal(a.counts, b.counts)


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


# Classes


def test_clusters_are_equal_and_repeatable(store: TokenStore, tiny_tokenizer: Tokenizer) -> None:
    class_of = cluster_tokens(store, 512, 16, seed=3)
    assert class_of.shape == (512,) and class_of.dtype == np.int64
    assert np.bincount(class_of, minlength=16).tolist() == [32] * 16
    assert np.array_equal(cluster_tokens(store, 512, 16, seed=3), class_of)


def test_tokens_of_like_company_share_a_class() -> None:
    """Two alphabets that never meet, interleaved so that a number says nothing of its alphabet."""
    rng = np.random.default_rng(0)
    runs = [rng.integers(0, 8, 50) * 2 + side for side in (0, 1) * 40]
    tokens = np.concatenate(runs).astype(np.uint16)
    made = cluster_tokens(TokenStore(tokens, np.array([len(tokens)]), 0), 16, 2, seed=0)
    assert len(set(made[::2].tolist())) == 1 and len(set(made[1::2].tolist())) == 1
    assert made[0] != made[1]
