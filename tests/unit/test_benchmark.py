"""The compression benchmark on a small file made here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import lengths
from benchmarks.archives import Variant, largest_growth, measure_layers, measure_source, variants
from benchmarks.corpus import evenly_spaced, read_corpus
from benchmarks.plot import Line, bar_chart, line_chart, svg
from benchmarks.retrieval import figures
from colazip.demo import handbook
from colazip.errors import InputError
from colazip.layers import SEARCH
from colazip.presets import SMALL
from tests.plain_codec import PlainCodec
from tests.tiny_model import tiny_codec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty passages of the handbook, with a source column."""
    path = tmp_path_factory.mktemp("corpus") / "test.parquet"
    passages = handbook()[:40]
    pq.write_table(
        pa.table({"source": [p.topic for p in passages], "text": [p.text for p in passages]}), path
    )
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.compression", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120)


def test_peers_only(parquet: Path, tmp_path: Path) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    done = run(parquet, "--only", "peers", "--sample", "30", "--json", figures, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert "30 records" in done.stdout
    assert "rows with a dictionary are left out" in done.stderr
    coders = {row["name"]: row for row in json.loads(figures.read_text())["coders"]}
    assert coders["zstd -19 per record"]["ratio"] < coders["PPMd order 16 solid"]["ratio"]
    assert f"| {coders['xz -9e solid']['ratio']:.2f} |" in done.stdout.replace(" " * 2, " ")
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    by_length = json.loads(figures.read_text())["by_length"]
    assert {row["coder"] for row in by_length} == {"zstd -19 per record", "brotli -11 per record"}
    assert sum(row["records"] for row in by_length) == 2 * 30
    assert "Ratio by record length" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["missing.parquet"], "missing.parquet"), (["--text-column", "body"], "no column 'body'")],
)
def test_bad_input_is_one_line(parquet: Path, arguments: list[str], message: str) -> None:
    file = [] if arguments[0].endswith(".parquet") else [parquet]
    done = run(*file, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_corpus_samples_evenly(parquet: Path) -> None:
    everything = read_corpus(parquet, "text", None)
    assert everything.raw_bytes == sum(len(p.text.encode()) for p in handbook()[:40])
    assert read_corpus(parquet, "text", 10).records == everything.records[::4]
    assert list(everything.by_source()) == ["compression", "storage", "weather", "baking"]
    some = evenly_spaced([parquet, parquet], "text", everything.raw_bytes // 2)
    assert 0 < len(some) < 40
    with pytest.raises(InputError, match="no column"):
        evenly_spaced([parquet], "body", 1000)


def test_archives_are_counted_as_they_lie_on_disk(tmp_path: Path) -> None:
    records = [p.text.encode() for p in handbook()[:20]] + [b"\xff\xfe\x00", b""]
    measured, info = measure_layers(records, variants(1)[0], PlainCodec(), tmp_path / "all")
    assert measured.total_bytes == (tmp_path / "all").stat().st_size == sum(info["bytes"].values())
    assert measured.raw_bytes == sum(map(len, records))
    search, _ = measure_layers(records, Variant(SMALL, (SEARCH,)), PlainCodec(), tmp_path / "search")
    assert search.total_bytes < measured.total_bytes
    assert (measured.name, search.name) == ("colazip exact + gist + search", "colazip search")
    row = measure_source("mixed", records, PlainCodec(), tmp_path / "source")
    assert (row.records, row.parts, row.plain_parts) == (22, 22, 1)
    assert row.file_bytes == measured.total_bytes


def test_retrieval_figures_against_known_rankings() -> None:
    ranking = [[0, 1, 2], [2, 1, 0]]
    assert figures(ranking, [{0: 1.0}, {2: 1.0}]) == (1.0, 1.0)
    ndcg, recall = figures(ranking, [{1: 1.0}, {0: 1.0}])
    assert ndcg == pytest.approx((1 / np.log2(3) + 1 / np.log2(4)) / 2)
    assert recall == 1.0
    assert figures([list(range(19, -1, -1))], [{0: 1.0, 19: 1.0}])[1] == 0.5
    assert figures([[]], [{0: 1.0}]) == (0.0, 0.0)


def test_records_by_length() -> None:
    records = [b"x" * n for n in (0, 200, 201, 400, 401, 1000, 1001, 4000, 4001, 9000)]
    buckets = lengths.by_length(records)
    assert list(buckets) == list(lengths.NAMES)
    assert list(buckets.values()) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert lengths.by_length([b"x" * 300]) == {"201-400": [0]}
    rows = [lengths.LengthRow(c, b, 1, 300, 100) for c, b in (("a", "201-400"), ("colazip", "0-200"))]
    assert lengths.table(rows)[1:] == [
        ("0-200", "1", "0.000", "-", "3.00"),
        ("201-400", "1", "0.000", "3.00", "-"),
    ]
    size, elements = lengths.chart(rows, "colazip", "#00f", ["#888"])
    assert size > 0 and any("#00f" in e for e in elements) and any("#888" in e for e in elements)


def test_charts_are_well_formed() -> None:
    lines = [Line("a <b>", "#123456", [(1.0, 0.5), (2.0, 0.9)]), Line("level", "#999999", [(1.0, 0.7)], True)]
    panels = [bar_chart("bars & more", [("x", 2.0, "#000")]), line_chart("lines", lines, "ratio", top=1.0)]
    root = ElementTree.fromstring(svg("both", [*panels, line_chart("nothing", [], "x")]))
    tag = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{tag}circle")) == 2  # none on a dashed line
    assert root.get("viewBox", "").endswith(str(sum(p[0] for p in panels) + 40))
    for circle in root.iter(f"{tag}circle"):
        assert 0 < float(circle.get("cy", "0")) < panels[1][0]


def test_growth_is_that_of_the_worst_blob() -> None:
    codec = tiny_codec()
    records = [b"", b"\xff", bytes(range(256))]
    blobs = codec.encode(records)
    grown = [len(b) - len(r) for b, r in zip(blobs, records, strict=True)]
    assert largest_growth(records, codec) == max(grown) <= 8


def test_a_variant_for_each_detail() -> None:
    names = [way.name for way in variants(3)]
    assert len(set(names)) == len(names) == 10 and "colazip brief gist, 1/8 of the words + search" in names
    assert [n for n in names if n.startswith("colazip gist")] == [
        "colazip gist + search",
        "colazip gist of detail 1 + search",
        "colazip gist of detail 2 + search",
        "colazip gist at 9.6 bits a token + search",
    ]
