"""colazip by layers beside classical coders, on the records of a Parquet file.

python -m benchmarks.compression FILE.parquet [--sample N] [--json OUT] [--plot OUT.svg]
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from benchmarks.corpus import Corpus, evenly_spaced, read_corpus
from colazip.errors import ColazipError
from colazip.evaluate import peers
from colazip.evaluate.table import markdown

INDEX_ONLY = "colazip search"  # gives no text back, so a ratio would mean nothing
DICTIONARY_SAMPLE_BYTES = 64 << 20
PEER_COLOUR, OWN_COLOUR = "#9aa5b1", "#2f6fde"


@dataclass
class Results:
    """Everything measured, in the order in which it was."""

    rows: list[peers.Measurement] = field(default_factory=list)
    by_layer: dict = field(default_factory=dict)
    by_source: list = field(default_factory=list)
    model: dict = field(default_factory=dict)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--text-column", default="text", show_default=True, help="Column that holds the text.")
@click.option("--sample", type=click.IntRange(min=1), help="Take this many records, evenly spaced.")
@click.option(
    "--train",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Parquet file to train zstd dictionaries on; may be repeated. Default: train-*.parquet beside FILE.",
)
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option("--only", type=click.Choice(["peers", "colazip"]), help="Measure one side only.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw the ratios as an SVG here.")
def compression(
    file: Path,
    text_column: str,
    sample: int | None,
    train: tuple[Path, ...],
    model: Path | None,
    only: str | None,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Pack the records of FILE with every coder, check that they come back, print Markdown tables."""
    corpus = read_corpus(file, text_column, sample)
    results = Results()
    if only != "colazip":
        samples = dictionary_samples(file, train, text_column)
        for peer in peers.all_peers(samples):
            note(peer.name)
            results.rows.append(peers.measure(peer, corpus.records))
    if only != "peers":
        measure_colazip(corpus, model, results)
    print_report(file, corpus, results)
    if json_path:
        json_path.write_text(json.dumps(as_json(file, corpus, results), indent=2) + "\n", encoding="utf-8")
    if plot:
        plot.write_text(chart(results.rows), encoding="utf-8")


def dictionary_samples(file: Path, train: Sequence[Path], column: str) -> list[bytes] | None:
    """Text for the dictionaries; None, with a note, if there is none."""
    files = list(train) or sorted(file.parent.glob("train-*.parquet"))
    if not files:
        note(f"no train-*.parquet beside {file}: rows with a dictionary are left out (see --train)")
        return None
    note(f"reading samples for dictionaries from {len(files)} file(s)")
    return evenly_spaced(files, column, DICTIONARY_SAMPLE_BYTES)


def measure_colazip(corpus: Corpus, model: Path | None, results: Results) -> None:
    """Archives by layers, then one archive a source."""
    from benchmarks.archives import VARIANTS, measure_layers, measure_source
    from colazip.codec import Codec

    codec = Codec.from_pretrained(model)
    results.model = {"name": codec.name, "id": codec.id}
    with tempfile.TemporaryDirectory(prefix="colazip-bench-") as folder:
        for index, (preset, layers) in enumerate(VARIANTS):
            note(f"colazip {preset}: " + " + ".join(layers))
            path = Path(folder) / f"variant-{index}"
            row, info = measure_layers(corpus.records, layers, codec, path, preset)
            results.rows.append(row)
            if not results.by_layer:
                results.by_layer = info["bytes"]
        for index, (source, records) in enumerate(corpus.by_source().items()):
            note(f"colazip on {source}")
            results.by_source.append(measure_source(source, records, codec, Path(folder) / f"source-{index}"))


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
        "they ship with the reader: colazip's model, and the dictionaries, trained on other records. Texts\n"
        "were unpacked and compared byte for byte; without the exact layer, unpack is the gist reading."
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
    }


def chart(rows: Sequence[peers.Measurement]) -> str:
    from benchmarks.plot import bar_chart

    bars = [
        (row.name, row.ratio, OWN_COLOUR if row.name.startswith("colazip") else PEER_COLOUR)
        for row in rows
        if row.name != INDEX_ONLY
    ]
    return bar_chart("Compression ratio, all bytes counted (more is better)", bars)


def note(message: str) -> None:
    click.echo(message, err=True)


def main() -> int:
    """Returns the exit code; a failure is one line on stderr."""
    try:
        compression.main(prog_name="python -m benchmarks.compression", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ColazipError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except (OSError, ValueError, ImportError) as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("error: interrupted", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
