"""Archives as Hugging Face datasets and back, against the real package."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from colazip import Archive, Record
from colazip.errors import ColazipError, InputError, UsageError
from colazip.layers import GIST
from tests.plain_codec import PlainCodec

datasets = pytest.importorskip("datasets", reason="not installed: pip install 'colazip[datasets]'")

ROWS = 1000


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "a.cola"
    rows = ({"n": i, "day": datetime.date(2020, 1, 1), "tags": ["a"] * (i % 3)} for i in range(ROWS))
    records = (Record(text_of(i).encode(), f"id-{i}", row) for i, row in enumerate(rows))
    Archive.pack(path, records, codec=PlainCodec())
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is written where datasets keeps what it makes."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    yield
    assert list(folder.iterdir()) == []


def text_of(i: int) -> str:
    return f"text {i} " * 100


def test_in_memory(archive: Path) -> None:
    from colazip.integrations.datasets import load_archive

    loaded = load_archive(archive, codec=PlainCodec)
    assert isinstance(loaded, datasets.Dataset) and loaded.cache_files == []
    assert loaded.features["day"] == datasets.Value("date32")
    with Archive(archive, PlainCodec()) as opened:
        assert loaded.data.table.equals(opened.to_arrow().read_all())
    assert loaded[7]["text"] == text_of(7)
    some = load_archive(archive, ["n"], where="n >= 990")
    assert some["n"][:] == list(range(990, 1000))
    assert load_archive(archive, ["text"], layer=GIST, codec=PlainCodec)[3] == {"text": text_of(3)[:40]}
    # The same archive has the same fingerprint, so what is made from it can be found again.
    assert load_archive(archive, codec=PlainCodec)._fingerprint == loaded._fingerprint != some._fingerprint


def test_from_a_file(archive: Path, tmp_path: Path) -> None:
    from colazip.integrations.datasets import load_archive

    file = tmp_path / "a.arrow"
    loaded = load_archive(archive, codec=PlainCodec, arrow_file=file)
    assert [entry["filename"] for entry in loaded.cache_files] == [str(file)]
    assert len(loaded) == ROWS and loaded[999]["n"] == 999
    with pytest.raises(UsageError, match="exists already; name another"):
        load_archive(archive, codec=PlainCodec, arrow_file=file)


def test_streaming(archive: Path) -> None:
    from datasets.distributed import split_dataset_by_node

    from colazip.integrations.datasets import load_archive

    stream = load_archive(archive, codec=PlainCodec, streaming=True, shards=6)
    assert isinstance(stream, datasets.IterableDataset) and stream.num_shards == 6
    assert stream.features == load_archive(archive, codec=PlainCodec).features
    assert [(row["id"], row["text"]) for row in stream] == [(f"id-{i}", text_of(i)) for i in range(ROWS)]
    shuffled = [row["n"] for row in stream.shuffle(seed=1, buffer_size=50)]
    assert shuffled != sorted(shuffled) == list(range(ROWS))
    halves = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
    assert sorted(row["n"] for half in halves for row in half) == list(range(ROWS))
    table = next(iter(stream.with_format("arrow").iter(batch_size=10)))
    assert table["n"].to_pylist() == list(range(10))


def test_a_stream_goes_on_where_it_was(archive: Path) -> None:
    from colazip.integrations.datasets import load_archive

    stream = load_archive(archive, ["n"], streaming=True, shards=6)
    rows = iter(stream)
    first = [next(rows)["n"] for _ in range(333)]
    state = stream.state_dict()
    again = load_archive(archive, ["n"], streaming=True, shards=6)
    again.load_state_dict(state)
    assert first + [row["n"] for row in again] == list(range(ROWS))


@pytest.mark.parametrize("shape", ["torch", None])
def test_workers_of_a_loader_share_the_records(archive: Path, shape: str | None) -> None:
    from torch.utils.data import DataLoader

    from colazip.integrations.datasets import load_archive

    stream = load_archive(archive, ["n", "text"], codec=PlainCodec, streaming=True, shards=6)
    loader = DataLoader(stream.with_format(shape), num_workers=2, batch_size=64)
    found = [(int(n), text) for batch in loader for n, text in zip(batch["n"], batch["text"], strict=True)]
    assert sorted(found) == [(i, text_of(i)) for i in range(ROWS)]


def test_an_archive_that_changes_meanwhile(tmp_path: Path) -> None:
    from colazip.integrations.datasets import load_archive

    Archive.pack(tmp_path / "a.cola", ["one"], codec=PlainCodec())
    stream = load_archive(tmp_path / "a.cola", codec=PlainCodec, streaming=True)
    Archive.pack(tmp_path / "a.cola", ["two"], codec=PlainCodec(), overwrite=True)
    with pytest.raises(InputError, match="was changed meanwhile"):
        next(iter(stream))


def test_an_empty_archive(tmp_path: Path) -> None:
    from colazip.integrations.datasets import load_archive

    Archive.pack(tmp_path / "a.cola", [], codec=PlainCodec())
    assert len(load_archive(tmp_path / "a.cola", codec=PlainCodec)) == 0
    assert list(load_archive(tmp_path / "a.cola", codec=PlainCodec, streaming=True)) == []


TABLE = pa.table(
    {
        "key": pa.array(range(0, 1200, 4), pa.int32()),
        "body": pa.array([text_of(i) for i in range(300)], pa.large_string()),
        "when": pa.array([datetime.datetime(2020, 1, 1, 0, i % 60) for i in range(300)], pa.timestamp("ms")),
        "whole": pa.array([i * 1000 for i in range(300)], pa.timestamp("ns")),
        "fine": pa.array(range(300), pa.timestamp("ns")),
        "price": pa.array([Decimal("1.50"), None, Decimal("2.25")] * 100, pa.decimal128(6, 2)),
        "tags": pa.array([["a", "b"], [], None] * 100, pa.list_(pa.string())),
        "raw": pa.array([b"\xff", b"", None] * 100, pa.binary()),
        "of": pa.array([{"x": 1.5}, {"x": None}, None] * 100, pa.struct([("x", pa.float32())])),
    }
)


@pytest.mark.parametrize("streamed", [False, True])
def test_pack_gives_the_same_table_back(tmp_path: Path, streamed: bool) -> None:
    from colazip.integrations.datasets import load_archive, pack_dataset

    dataset: Any = datasets.Dataset(TABLE)
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    path = tmp_path / "a.cola"
    done: list[int] = []
    summary = pack_dataset(
        dataset,
        path,
        text_column="body",
        id_column="key",
        codec=PlainCodec,
        progress=lambda records, size: done.append(records),
    )
    assert summary.records == done[-1] == 300
    with Archive(path, PlainCodec()) as opened:
        assert opened.to_arrow().read_all().equals(TABLE)
        assert opened.get("12") == text_of(3).encode()
        assert isinstance(opened.metadata("12")["whole"], int if streamed else datetime.datetime)
    assert load_archive(path, codec=PlainCodec).features == dataset.features


def test_rows_in_another_order_and_labels(tmp_path: Path) -> None:
    from colazip.integrations.datasets import load_archive, pack_dataset

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    dataset = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)
    pack_dataset(dataset.select([2, 0]), tmp_path / "a.cola", codec=PlainCodec)
    assert load_archive(tmp_path / "a.cola", codec=PlainCodec).to_list() == [
        {"id": "0", "text": "c", "label": 1},
        {"id": "1", "text": "a", "label": 0},
    ]


def untyped(rows: list[dict[str, Any]]) -> Any:
    """A stream whose features nobody knows."""
    return datasets.Dataset.from_list(rows).to_iterable_dataset().map(dict, remove_columns=["nothing"])


def test_a_stream_without_features(tmp_path: Path) -> None:
    from colazip.integrations.datasets import pack_dataset

    rows = [{"text": "a", "x": None, "nothing": 0}, {"text": "b", "x": 1, "nothing": 0}]
    stream = untyped(rows)
    assert stream.features is None
    pack_dataset(stream, tmp_path / "a.cola", codec=PlainCodec)
    with Archive(tmp_path / "a.cola", PlainCodec()) as opened:
        assert opened.to_arrow(["text", "x"]).read_all().to_pylist() == [
            {"text": "a", "x": None},
            {"text": "b", "x": 1},
        ]
    late = [{"text": "a", "x": None, "nothing": 0}] * 300 + [{"text": "b", "x": "y", "nothing": 0}]
    with pytest.raises(InputError, match="its rows are not all of one schema"):
        pack_dataset(untyped(late), tmp_path / "b.cola", codec=PlainCodec)
    assert not (tmp_path / "b.cola").exists()


def test_what_is_no_archive(archive: Path, tmp_path: Path) -> None:
    from colazip.integrations.datasets import load_archive, pack_dataset

    def fails(columns: dict[str, Any], **options: Any) -> str:
        with pytest.raises(ColazipError) as raised:
            pack_dataset(
                datasets.Dataset(pa.table(columns)), tmp_path / "a.cola", codec=PlainCodec, **options
            )
        assert not list(tmp_path.glob("a.cola*"))
        return str(raised.value)

    assert fails({"text": ["a", None]}) == (
        "the dataset: row 2: column 'text' holds no text (null); fill it, drop the row or text_column"
    )
    assert "has no column 'text'; it has 'body'; choose with text_column" in fails({"body": ["a"]})
    assert "another record has the id 'x'" in fails({"text": ["a", "b"], "id": ["x", "x"]}, id_column="id")
    assert "ids are text or integers" in fails({"text": ["a"], "id": [1.5]}, id_column="id")
    with pytest.raises(UsageError, match="a DatasetDict is no dataset"):
        pack_dataset(datasets.DatasetDict(), tmp_path / "a.cola")
    with pytest.raises(UsageError, match="has no column 'year'"):
        load_archive(archive, ["year"])
    with pytest.raises(UsageError, match="0 ranges"):
        load_archive(archive, streaming=True, shards=0)
    with pytest.raises(UsageError, match="leave one of the two out"):
        load_archive(archive, streaming=True, arrow_file="a.arrow")


@pytest.mark.parametrize("module", ["datasets", "ray"])
def test_without_the_package(module: str) -> None:
    """One line says what to install; colazip itself never imports them."""
    code = f"""
import sys
import colazip.archive, colazip.arrow, colazip.cli.main
assert {module!r} not in sys.modules
sys.modules[{module!r}] = None
try:
    import colazip.integrations.{module}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120)
    assert f"pip install 'colazip[{module}]'" in done.stdout, done.stderr
    assert os.linesep not in done.stdout.strip()
