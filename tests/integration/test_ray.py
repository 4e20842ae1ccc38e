"""Archives as Ray datasets and back, on a real local cluster of two CPUs."""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from colazip import Archive, Record
from colazip.errors import ColazipError, InputError, MissingLayerError, UsageError
from colazip.layers import GIST, SEARCH
from tests.plain_codec import PlainCodec

ray = pytest.importorskip("ray", reason="not installed: pip install 'colazip[ray]'")
pytest.importorskip("ray.data", reason="not installed: pip install 'colazip[ray]'")

ROOT = Path(__file__).resolve().parents[2]
ROWS = 1000


class NeverMade(PlainCodec):
    """For reads that must not decode anything."""

    def __init__(self) -> None:
        raise AssertionError("a codec was made")


class Poisoned(PlainCodec):
    def encode_blocks(self, blocks: Any, layers: Any = None, preset: str = "small") -> Any:
        if any(part.startswith(b"poison") for parts in blocks for part in parts):
            raise RuntimeError("poison in a block")
        return super().encode_blocks(blocks, layers, preset)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Workers import the codec of the tests.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before.get("PYTHONPATH")]))
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=150 << 20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task for about every block of a test's dataset."""
    monkeypatch.setattr("colazip.integrations.ray._PART_BYTES", 1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "a.cola"
    day = datetime.date(2020, 1, 1)
    Archive.pack(
        path,
        (
            Record(
                text_of(i).encode(),
                f"id-{i}",
                {"n": i, "day": day + datetime.timedelta(i), "tags": ["a"] * (i % 3)},
            )
            for i in range(ROWS)
        ),
        codec=PlainCodec(),
    )
    return path


def text_of(i: int) -> str:
    return f"text {i} " * 100


def blocks_of(table: pa.Table, count: int) -> Any:
    """A dataset of so many blocks."""
    size = -(-len(table) // count)
    return ray.data.from_arrow([table[at : at + size] for at in range(0, len(table), size)])


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_read_in_order_by_several_tasks(archive: Path) -> None:
    from colazip.integrations.ray import read_archive

    dataset = read_archive(archive, codec=PlainCodec, override_num_blocks=5)
    assert dataset.count() == ROWS  # from the manifest
    assert dataset.schema().names == ["id", "text", "n", "day", "tags"]
    found = pa.concat_tables(ray.get(dataset.materialize().to_arrow_refs()))
    with Archive(archive, PlainCodec()) as opened:
        assert len(opened.ranges(5)) == 5
        assert found.equals(opened.to_arrow().read_all())


def test_columns_filters_and_counts_decode_nothing(archive: Path) -> None:
    from colazip.integrations.ray import read_archive

    some = read_archive(
        archive, ["n", "id"], where="n >= 100 and n < 110", codec=NeverMade, override_num_blocks=3
    )
    assert some.take_all() == [{"n": i, "id": f"id-{i}"} for i in range(100, 110)]
    whole = read_archive(archive, where="day < '2020-02-01'", codec=NeverMade, override_num_blocks=3)
    assert whole.count() == 31
    assert [row["n"] for row in whole.select_columns(["n"]).take(3)] == [0, 1, 2]
    renamed = whole.rename_columns({"n": "id", "id": "n"}).select_columns(["id", "n"])
    assert renamed.take(1) == [{"id": 0, "n": "id-0"}]


def test_a_worker_makes_its_codec_once(archive: Path, tmp_path: Path) -> None:
    from colazip.integrations.ray import read_archive

    made = tmp_path / "made"
    dataset = read_archive(archive, codec=partial(noted, str(made)), override_num_blocks=8)
    assert sum(len(ray.get(ref)) for ref in dataset.materialize().to_arrow_refs()) == ROWS
    workers = made.read_text().split()
    assert len(workers) == len(set(workers)) <= 2


def noted(file: str) -> PlainCodec:
    with open(file, "a") as out:
        out.write(f"{os.getpid()}\n")
    return PlainCodec()


def test_the_gist_and_bytes(archive: Path, tmp_path: Path) -> None:
    from colazip.integrations.ray import read_archive

    gist = read_archive(archive, ["text"], layer=GIST, where="n = 7", codec=PlainCodec)
    assert gist.take_all() == [{"text": text_of(7)[:40]}]
    Archive.pack(tmp_path / "b.cola", [b"\xff\xfe"], codec=PlainCodec())
    assert read_archive(tmp_path / "b.cola", ["text"], binary=True, codec=PlainCodec).take_all() == [
        {"text": b"\xff\xfe"}
    ]
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_archive(tmp_path / "b.cola", codec=PlainCodec).take_all()


def test_what_is_wrong_shows_at_once(archive: Path, tmp_path: Path) -> None:
    from colazip.integrations.ray import read_archive

    with pytest.raises(InputError, match="can't be opened"):
        read_archive(tmp_path / "none.cola")
    with pytest.raises(UsageError, match="has no column 'year'"):
        read_archive(archive, ["year"])
    with pytest.raises(UsageError, match="columns is a list of names"):
        read_archive(archive, [])
    with pytest.raises(UsageError, match="names column 'year'"):
        read_archive(archive, where="year = 1")
    with pytest.raises(UsageError, match="layer 'plain' can't be read"):
        read_archive(archive, layer="plain")
    with pytest.raises(UsageError, match="model and codec both"):
        read_archive(archive, model="folder", codec=PlainCodec)
    with pytest.raises(UsageError, match="codec is a function that makes a codec, not a PlainCodec"):
        read_archive(archive, codec=PlainCodec())  # type: ignore[arg-type]
    Archive.pack(tmp_path / "s.cola", ["a"], codec=PlainCodec(), layers=[SEARCH])
    with pytest.raises(MissingLayerError, match="has no exact layer"):
        read_archive(tmp_path / "s.cola")
    assert read_archive(tmp_path / "s.cola", ["id"]).take_all() == [{"id": "0"}]


def test_an_archive_that_changes_meanwhile(tmp_path: Path) -> None:
    from colazip.integrations.ray import read_archive

    Archive.pack(tmp_path / "a.cola", ["one"], codec=PlainCodec())
    dataset = read_archive(tmp_path / "a.cola", codec=PlainCodec)
    Archive.pack(tmp_path / "a.cola", ["two"], codec=PlainCodec(), overwrite=True)
    with pytest.raises(InputError, match="was changed meanwhile"):
        dataset.take_all()


@pytest.mark.usefixtures("small_parts")
def test_write_gives_the_same_table_back(tmp_path: Path) -> None:
    from colazip.integrations.ray import read_archive, write_archive

    table = pa.table(
        {
            "key": pa.array(range(0, 600, 2), pa.int32()),
            "body": pa.array([text_of(i) for i in range(300)], pa.large_string()),
            "when": pa.array(
                [datetime.datetime(2020, 1, 1, 0, i % 60) for i in range(300)], pa.timestamp("ms")
            ),
            "fine": pa.array([1 + i * (i > 150) for i in range(300)], pa.timestamp("ns")),
            "price": pa.array([Decimal("1.50"), None, Decimal("2.25")] * 100, pa.decimal128(6, 2)),
            "tags": pa.array([["a", "b"], [], None] * 100, pa.list_(pa.string())),
            "raw": pa.array([b"\xff", b"", None] * 100, pa.binary()),
            "of": pa.array([{"x": 1.5}, {"x": None}, None] * 100, pa.struct([("x", pa.float32())])),
        }
    )
    path = tmp_path / "a.cola"
    summary = write_archive(
        blocks_of(table, 4), path, text_column="body", id_column="key", codec=PlainCodec, concurrency=2
    )
    assert summary.records == 300
    assert leftovers(tmp_path) == ["a.cola"]
    with Archive(path, PlainCodec()) as opened:
        assert len(opened.manifest.groups) == 4  # one a task
        assert opened.to_arrow().read_all().equals(table)
        assert opened.get("6") == text_of(3).encode()
        assert opened.verify()["records"] == 300
    again = read_archive(path, codec=PlainCodec).materialize()
    assert pa.concat_tables(ray.get(again.to_arrow_refs())).equals(table)


@pytest.mark.usefixtures("small_parts")
def test_order_is_kept_where_tasks_end_in_another(tmp_path: Path) -> None:
    from colazip.integrations.ray import write_archive

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = False
    try:
        blocks = blocks_of(pa.table({"text": [text_of(i) for i in range(80)]}), 8)
        marker = {"marker": str(tmp_path / "marker")}
        dataset = blocks.map_batches(first_is_last, num_cpus=0.25, fn_kwargs=marker)
        write_archive(dataset, tmp_path / "a.cola", codec=PlainCodec)
        assert dataset.context.execution_options.preserve_order is False
    finally:
        context.execution_options.preserve_order = True
    with Archive(tmp_path / "a.cola", PlainCodec()) as opened:
        assert [(r.id, r.data.decode()) for r in opened] == [(str(i), text_of(i)) for i in range(80)]


def first_is_last(batch: dict[str, Any], marker: str) -> dict[str, Any]:
    """The first block waits until another one is done."""
    if batch["text"][0].startswith("text 0 "):
        deadline = time.monotonic() + 20
        while not os.path.exists(marker) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
    elif batch["text"][0].startswith("text 10 "):
        Path(marker).touch()
    return batch


@pytest.mark.usefixtures("small_parts")
def test_blocks_of_several_schemas(tmp_path: Path) -> None:
    from colazip.integrations.ray import write_archive

    def joined(*tables: pa.Table) -> pa.Table:
        write_archive(
            ray.data.from_arrow(list(tables)), tmp_path / "a.cola", codec=PlainCodec, overwrite=True
        )
        with Archive(tmp_path / "a.cola", PlainCodec()) as opened:
            return opened.to_arrow().read_all()

    one = pa.table({"text": ["a"], "n": pa.nulls(1), "m": pa.array([1], pa.int32())})
    found = joined(one, pa.table({"text": ["b"], "n": [1.5], "m": pa.array([2], pa.int64())}))
    assert found.schema.field("n").type == pa.float64() and found.schema.field("m").type == pa.int64()
    assert found.to_pylist() == [
        {"id": "0", "text": "a", "n": None, "m": 1},
        {"id": "1", "text": "b", "n": 1.5, "m": 2},
    ]


@pytest.mark.usefixtures("small_parts")
def test_a_failing_task_leaves_nothing(tmp_path: Path) -> None:
    from colazip.integrations.ray import write_archive

    texts = [text_of(i) for i in range(40)] + ["poison"]
    with pytest.raises(RuntimeError, match="poison in a block"):
        write_archive(blocks_of(pa.table({"text": texts}), 4), tmp_path / "a.cola", codec=Poisoned)
    assert leftovers(tmp_path) == []


@pytest.mark.usefixtures("small_parts")
def test_what_is_no_archive(tmp_path: Path) -> None:
    from colazip.integrations.ray import write_archive

    def fails(table: pa.Table, **options: Any) -> str:
        with pytest.raises(ColazipError) as raised:
            write_archive(blocks_of(table, 2), tmp_path / "a.cola", codec=PlainCodec, **options)
        assert type(raised.value) in (InputError, UsageError)
        assert leftovers(tmp_path) == []
        message = str(raised.value)
        assert "\n" not in message and ".parts" not in message
        return message

    assert "column 'text' holds no text (null)" in fails(pa.table({"text": ["a", "b", None]}))
    assert "has no column 'text'; it has 'body'; choose with text_column" in fails(pa.table({"body": ["a"]}))
    doubled = pa.table({"text": ["a", "b"], "id": ["x", "x"]})
    message = fails(doubled, id_column="id")
    assert f"{tmp_path}/a.cola: record 1: another record has the id 'x'" in message
    assert "can't be kept" in fails(
        pa.table({"text": ["a"], "m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))})
    )
    assert "can't be both text and id" in fails(doubled, id_column="text")
    assert "layer" in fails(doubled, layers=["none"])
    (tmp_path / "b.cola").write_bytes(b"")
    with pytest.raises(UsageError, match="exists already"):
        write_archive(blocks_of(doubled, 1), tmp_path / "b.cola", codec=PlainCodec)
    with pytest.raises(InputError, match="can't be written: No such file or directory"):
        write_archive(blocks_of(doubled, 1), tmp_path / "none" / "b.cola", codec=PlainCodec)


def test_no_rows(tmp_path: Path) -> None:
    from colazip.integrations.ray import read_archive, write_archive

    assert write_archive(ray.data.from_items([]), tmp_path / "a.cola", codec=PlainCodec).records == 0
    assert read_archive(tmp_path / "a.cola", codec=PlainCodec).take_all() == []


def test_threads_of_a_task() -> None:
    @ray.remote(num_cpus=2)
    def threads() -> tuple[str, int]:
        from colazip.integrations.ray import _use_own_threads

        _use_own_threads()
        import torch

        return os.environ["OMP_NUM_THREADS"], torch.get_num_threads()

    assert ray.get(threads.remote()) == ("2", 2)
    assert ray.get(threads.options(num_cpus=0.5).remote()) == ("1", 1)
