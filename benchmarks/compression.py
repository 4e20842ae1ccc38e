"""colazip by layers beside classical coders, on the records of a Parquet file.

python -m benchmarks.compression FILE.parquet [--sample N] [--json OUT] [--plot OUT.svg]

One line a coder over all records; then colazip's bytes by layer, each source packed alone, and each range of
record lengths packed alone, for all coders that reach a single record. Peers that are trained (dictionaries
of zstd, the static table over tokens) learn from train-*.parquet beside FILE. --language-model adds an
autoregressive transformer with arithmetic coding, trained by benchmarks.train_language_model. Last, what
colazip makes of records that no model expects: the largest growth of a blob over its record.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks import lengths
from benchmarks.command import note, run_command
from benchmarks.corpus import Corpus, evenly_spaced, read_corpus
from benchmarks.plot import bar_chart, svg
from colazip.evaluate import peers
from colazip.evaluate.table import markdown

if TYPE_CHECKING:
    from colazip.tokenizer import Tokenizer

INDEX_ONLY = "colazip search"  # gives no text back, so a ratio would mean nothing
DICTIONARY_SAMPLE_BYTES = 64 << 20
PEER_COLOUR, OWN_COLOUR = "#9aa5b1", "#2f6fde"
PEER_LINES = ("#9aa5b1", "#d9822b", "#52a36b", "#8a6fc9", "#c9576f", "#3e4c59")


@dataclass
class Results:
    """Everything measured, in the order in which it was."""

    rows: list[peers.Measurement] = field(default_factory=list)
    by_layer: dict = field(default_factory=dict)
    by_source: list = field(default_factory=list)
    by_length: list[lengths.LengthRow] = field(default_factory=list)
    growth: dict[str, int] = field(default_factory=dict)
    model: dict = field(default_factory=dict)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--text-column", default="text", show_default=True, help="Column that holds the text.")
@click.option("--sample", type=click.IntRange(min=1), help="Take this many records, evenly spaced.")
@click.option(
    "--train",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Parquet file to train peers on; may be repeated. Default: train-*.parquet beside FILE.",
)
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option(
    "--language-model",
    type=click.Path(path_type=Path),
    help="Checkpoint of an autoregressive model to measure as a peer.",
)
@click.option("--only", type=click.Choice(["peers", "colazip"]), help="Measure one side only.")
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that run colazip's networks; their start counts.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw the ratios as an SVG here.")
def compression(
    file: Path,
    text_column: str,
    sample: int | None,
    train: tuple[Path, ...],
    model: Path | None,
    language_model: Path | None,
    only: str | None,
    workers: int,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Pack the records of FILE with every coder, check that they come back, print Markdown tables."""
    corpus = read_corpus(file, text_column, sample)
    results = Results()
    if only != "colazip":
        measure_peers(corpus, dictionary_samples(file, train, text_column), tokenizer_of(model), results)
        if language_model:
            measure_language_model(corpus, language_model, tokenizer_of(model), results)
    if only != "peers":
        measure_colazip(corpus, model, workers, results)
    print_report(file, corpus, results)
    if json_path:
        json_path.write_text(json.dumps(as_json(file, corpus, results), indent=2) + "\n", encoding="utf-8")
    if plot:
        plot.write_text(chart(results), encoding="utf-8")


def tokenizer_of(model: Path | None) -> Tokenizer:
    """The vocabulary of a model folder; its weights stay unread."""
    from colazip.pretrained import resolve
    from colazip.tokenizer import Tokenizer

    return Tokenizer((resolve(model) / "tokenizer.json").read_text(encoding="utf-8"))


def measure_peers(
    corpus: Corpus, samples: list[bytes] | None, tokenizer: Tokenizer, results: Results
) -> None:
    """Every peer on all records, and those that reach a single record on each range of lengths."""
    buckets = lengths.by_length(corpus.records)
    for peer in peers.all_peers(samples, tokenizer):
        note(peer.name)
        results.rows.append(peers.measure(peer, corpus.records))
        if peer.access == "record":
            for bucket, members in buckets.items():
                records = [corpus.records[i] for i in members]
                results.by_length.append(length_row(bucket, peers.measure(peer, records)))


def measure_language_model(corpus: Corpus, checkpoint: Path, tokenizer: Tokenizer, results: Results) -> None:
    """The autoregressive model of a checkpoint, on all records and on each range of lengths.

    Packing is timed as one parallel pass; unpacking goes token by token and is not timed here
    (benchmarks.latency does).
    """
    import torch

    from colazip.errors import InputError
    from colazip.evaluate.language_model import from_checkpoint, text_bits
    from colazip.train.optimize import load_checkpoint

    model = from_checkpoint(load_checkpoint(checkpoint, torch.device("cpu")))
    if model.config.vocabulary != tokenizer.size:
        raise InputError(
            f"{checkpoint}: is over {model.config.vocabulary} tokens,"
            f" the model's tokenizer has {tokenizer.size}"
        )
    name = f"autoregressive LM, {model.config.parameters / 1e6:.1f} M"
    note(name)
    start = time.perf_counter()
    tokens = tokenizer.encode(corpus.records)
    bits = text_bits(model, tokens)
    seconds = time.perf_counter() - start

    def row(members: Sequence[int]) -> peers.Measurement:
        records = [corpus.records[i] for i in members]
        size = peers.language_model_bytes(records, [tokens[i] for i in members], bits[members])
        raw = sum(map(len, records))
        return peers.Measurement(name, "record", len(records), raw, size, seconds, float("nan"))

    results.rows.append(row(list(range(len(tokens)))))
    results.by_length += [
        length_row(bucket, row(members)) for bucket, members in lengths.by_length(corpus.records).items()
    ]


def length_row(bucket: str, row: peers.Measurement) -> lengths.LengthRow:
    return lengths.LengthRow(row.name, bucket, row.records, row.raw_bytes, row.total_bytes)


def dictionary_samples(file: Path, train: Sequence[Path], column: str) -> list[bytes] | None:
    """Text for the dictionaries; None, with a note, if there is none."""
    files = list(train) or sorted(file.parent.glob("train-*.parquet"))
    if not files:
        note(f"no train-*.parquet beside {file}: rows with a dictionary are left out (see --train)")
        return None
    note(f"reading samples for dictionaries from {len(files)} file(s)")
    return evenly_spaced(files, column, DICTIONARY_SAMPLE_BYTES)


def measure_colazip(corpus: Corpus, model: Path | None, workers: int, results: Results) -> None:
    """Archives by layers, then one archive a source and one a range of lengths; blobs of hostile records."""
    from benchmarks.archives import largest_growth, measure_layers, measure_source, variants
    from benchmarks.records import hostile
    from colazip.codec import Codec
    from colazip.layers import GIST
    from colazip.pool import PooledCodec

    codec = Codec.from_pretrained(model)
    results.model = {"name": codec.name, "id": codec.id}
    with tempfile.TemporaryDirectory(prefix="colazip-bench-") as folder:
        ways = variants(codec.model.config.details)
        for index, way in enumerate(ways):
            note(way.name)
            path = Path(folder) / f"variant-{index}"
            writer = Codec(codec.model, detail=way.detail, price=way.price, brief=way.brief)
            pays = workers > 1 and GIST in way.layers
            with PooledCodec(writer, workers) if pays else nullcontext(writer) as coding:
                row, info = measure_layers(corpus.records, way, coding, path)
            results.rows.append(row)
            if not results.by_layer:
                results.by_layer = info["bytes"]
        for index, (source, records) in enumerate(corpus.by_source().items()):
            note(f"colazip on {source}")
            results.by_source.append(measure_source(source, records, codec, Path(folder) / f"source-{index}"))
        for index, (bucket, members) in enumerate(lengths.by_length(corpus.records).items()):
            note(f"colazip on records of {bucket} bytes")
            records = [corpus.records[i] for i in members]
            row, _ = measure_layers(records, ways[0], codec, Path(folder) / f"length-{index}")
            results.by_length.append(length_row(bucket, row))
    note("hostile records")
    results.growth = {kind: largest_growth(records, codec) for kind, records in hostile().items()}


def print_report(file: Path, corpus: Corpus, results: Results) -> None:
    count, raw = len(corpus.records), corpus.raw_bytes
    click.echo(f"{file.name}: {count:,} records, {raw / 1e6:.2f} MB of text\n")
    table = [("coder", "ratio", "bytes a record", "random access", "pack MB/s", "unpack MB/s")]
    table += [
        (
            row.name,
            f"{row.ratio:.2f}" if row.name != INDEX_ONLY else "-",
            f"{row.total_bytes / count:.1f}",
            row.access,
            speed(raw, row.pack_seconds),
            speed(raw, row.unpack_seconds),
        )
        for row in results.rows
    ]
    click.echo(markdown(table))
    click.echo(
        "\nAll bytes counted: for colazip the file on disk; for coders per record a varint length each\n"
        "beside the coded bytes; for solid ones the varint lengths of the records in front. Not counted, as\n"
        "they ship with the reader: colazip's model, and what peers learnt from other records. Texts\n"
        "were unpacked and compared byte for byte; without the exact layer, unpack is the gist reading. Of\n"
        "an autoregressive model the bits are counted (a record sees only itself), nothing is written."
    )
    if results.by_layer:
        total = sum(results.by_layer.values())
        layers = [("all layers: part of the file", "bytes", "share", "a record")]
        layers += [
            (name, f"{size:,}", f"{size / total:.1%}", f"{size / count:.1f}")
            for name, size in results.by_layer.items()
        ]
        click.echo("\n" + markdown(layers))
    if results.by_source:
        sources = [("source", "raw MB", "records", "ratio", "kept plain")]
        sources += [
            (
                row.source,
                f"{row.raw_bytes / 1e6:.3f}",
                f"{row.records:,}",
                f"{row.ratio:.2f}",
                f"{row.plain_parts / row.parts:.1%}",
            )
            for row in results.by_source
        ]
        click.echo("\nEach source packed alone, all layers, all bytes of its file:\n\n" + markdown(sources))
    if results.by_length:
        click.echo(
            "\nRatio by record length, the records of each range packed alone:\n\n"
            + markdown(lengths.table(results.by_length))
        )
    if results.growth:
        growth = [("hostile records, a blob each", "largest growth of a blob over its record, bytes")]
        growth += [(kind, f"{grown}") for kind, grown in results.growth.items()]
        click.echo("\n" + markdown(growth))


def speed(count: int, seconds: float) -> str:
    """Megabytes (10^6) of text a second, or a dash if nothing was timed."""
    if math.isnan(seconds) or seconds <= 0:
        return "-"
    rate = count / seconds / 1e6
    return f"{rate:.3f}" if rate < 1 else f"{rate:.1f}"


def as_json(file: Path, corpus: Corpus, results: Results) -> dict:
    def clean(row: dict) -> dict:
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in row.items()
        }

    return {
        "file": file.name,
        "records": len(corpus.records),
        "raw_bytes": corpus.raw_bytes,
        "model": results.model,
        "coders": [clean(asdict(row)) | {"ratio": row.ratio} for row in results.rows],
        "bytes_by_layer": results.by_layer,
        "by_source": [asdict(row) | {"ratio": row.ratio} for row in results.by_source],
        "by_length": [asdict(row) | {"ratio": row.ratio} for row in results.by_length],
        "growth_bytes": results.growth,
    }


def chart(results: Results) -> str:
    """Bars of all coders, below them lines over record length."""
    bars = [
        (row.name, row.ratio, OWN_COLOUR if row.name.startswith("colazip") else PEER_COLOUR)
        for row in results.rows
        if row.name != INDEX_ONLY
    ]
    title = "Compression ratio, all bytes counted (more is better)"
    return svg(
        title,
        [bar_chart(title, bars), lengths.chart(results.by_length, "colazip", OWN_COLOUR, PEER_LINES)],
    )


if __name__ == "__main__":
    run_command(compression, "benchmarks.compression")
