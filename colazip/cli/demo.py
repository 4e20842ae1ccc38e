"""`colazip demo`: the main job from end to end on the handbook that the package carries."""

from __future__ import annotations

import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from colazip.cli.console import Console, amount, size
from colazip.cli.progress import Progress
from colazip.evaluate.table import markdown

if TYPE_CHECKING:
    from colazip.archive import Archive
    from colazip.demo import Passage
    from colazip.evaluate.peers import Measurement
    from colazip.layers import ArchiveCodec

# Asked in other words than the passages use.
QUERIES = (
    "something eats my young vegetable plants in the dark",
    "a melody keeps playing in my mind and I want it gone",
    "friend was stung by a wasp and can hardly breathe",
)
SHOWN = "gardening/compost"
WIDTH = 96


@click.command()
@click.option(
    "--keep",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep the archive at this path, to try other commands on. Default: it is deleted at the end.",
)
def demo(keep: Path | None) -> None:
    """Pack a handbook that comes with colazip, measure it, search it, read it back.

    Works without a network, on the embedded model, in well under a minute.
    """
    from colazip.codec import Codec
    from colazip.demo import handbook

    console = Console()
    start = time.perf_counter()
    passages = handbook()
    codec = Codec.from_pretrained()
    with tempfile.TemporaryDirectory(prefix="colazip-demo-") as folder:
        path = keep or Path(folder) / "handbook.cola"
        run(passages, codec, path, Path(folder), console)
    click.echo(f"\nDone in {time.perf_counter() - start:.1f} s.")
    if keep:
        click.echo(f'Kept: {keep}. Try: colazip search {keep} "how to mend a flat tyre"')


def run(passages: Sequence[Passage], codec: ArchiveCodec, path: Path, folder: Path, console: Console) -> None:
    """Everything `colazip demo` shows. path: where the archive goes. folder: for what isn't kept."""
    from colazip.archive import Archive, Record

    texts = [passage.text.encode() for passage in passages]
    records = [Record(text, passage.id) for text, passage in zip(texts, passages, strict=True)]
    topics = len({passage.topic for passage in passages})
    click.echo(
        f"The handbook: {amount(len(texts), 'passage')} on {topics} topics, "
        f"{size(sum(map(len, texts)))}. Model: {codec.name}."
    )
    console.note("packing the handbook (three layers)")
    with Progress(console, "packing") as progress:
        Archive.pack(path, records, codec=codec, source={"name": "handbook"}, progress=progress)
    with Archive(path, codec) as archive:
        show_sizes(archive, records, codec, folder, console)
        show_layers(archive)
        show_search(archive, QUERIES)
        show_round_trip(archive, passages)
        show_readings(archive, SHOWN)


def show_sizes(
    archive: Archive, records: Sequence, codec: ArchiveCodec, folder: Path, console: Console
) -> None:
    """The table of ratios, on all passages and on every second one."""
    from colazip.archive import Archive

    texts = [record.data for record in records]
    half = texts[1::2]
    console.note("measuring zstd, and a half of the handbook on its own")
    half_path, gist_path, half_gist_path = (folder / name for name in ("half", "gist", "half-gist"))
    Archive.pack(half_path, records[1::2], codec=codec)
    archive.strip(["exact"], gist_path)
    with Archive(half_path, codec) as half_archive:
        half_archive.strip(["exact"], half_gist_path)

    table = [("coder", "handbook", "ratio", "half of it", "ratio")]

    def row(name: str, whole: int, part: int) -> None:
        whole_ratio, part_ratio = sum(map(len, texts)) / whole, sum(map(len, half)) / part
        table.append((name, f"{whole:,}", f"{whole_ratio:.2f}", f"{part:,}", f"{part_ratio:.2f}"))

    for name, whole, part in classical(texts):
        row(name, whole, part)
    for name, whole_file, half_file in (
        ("colazip exact + gist + search", Path(archive.path), half_path),
        ("colazip gist + search (approximate text)", gist_path, half_gist_path),
    ):
        row(name, whole_file.stat().st_size, half_file.stat().st_size)
    click.echo(
        "\nBytes, everything counted (colazip: the whole file, ids included; others: text and lengths)\n"
    )
    click.echo(markdown(table))
    click.echo(
        "\nThe dictionary comes from this very text, so on the whole handbook it is counted. For the half\n"
        "it was trained on the other half and isn't counted, nor is the model: both ship with the reader."
    )


def classical(texts: Sequence[bytes]) -> list[tuple[str, int, int]]:
    """(name, bytes of all texts, bytes of every second one) of the classical coders at hand."""
    from importlib.util import find_spec

    from colazip.evaluate import peers

    half, rest = texts[1::2], texts[0::2]

    def best_dictionary(samples: Sequence[bytes], measured: Sequence[bytes], counted: bool) -> int:
        totals = []
        for kib in (2, 4, 8, 16, 32):
            peer = peers.zstd_dictionary(samples, kib << 10, f"{kib} KiB")
            own = len(peers.train_dictionary(samples, kib << 10).as_bytes()) if counted else 0
            totals.append(peers.measure(peer, measured).total_bytes + own)
        return min(totals)

    def both(peer: peers.Peer) -> tuple[str, int, int]:
        whole: Measurement = peers.measure(peer, texts)
        return peer.name, whole.total_bytes, peers.measure(peer, half).total_bytes

    found = [both(peers.zstd_per_record())]
    found.append(
        (
            "zstd -19 + dictionary, best of 2 to 32 KiB",
            best_dictionary(texts, texts, counted=True),
            best_dictionary(rest, half, counted=False),
        )
    )
    if find_spec("brotli"):
        found.append(both(peers.brotli_per_record()))
    return found


def show_layers(archive: Archive) -> None:
    """Where the bytes of the archive are."""
    info = archive.info()
    total = info["file_bytes"]
    table = [("part of the archive", "bytes", "share", "a passage")]
    for name, count in info["bytes"].items():
        if count:
            table.append((name, f"{count:,}", f"{count / total:.1%}", f"{count / max(1, len(archive)):.1f}"))
    click.echo("\n" + markdown(table))


def show_search(archive: Archive, queries: Sequence[str]) -> None:
    """The best three hits of each query."""
    click.echo("\nSearch by meaning, on the codes in the archive:")
    for query in queries:
        click.echo(f"\n  {query}")
        for hit in archive.search(query, 3):
            line = f"{hit.score:.2f} {hit.id}: {hit.snippet}"
            click.echo("    " + textwrap.shorten(line, WIDTH - 4, placeholder=" …"))


def show_round_trip(archive: Archive, passages: Sequence[Passage]) -> None:
    """Compare every passage with what the archive gives back, byte for byte."""
    from colazip.errors import FormatError

    wanted = {passage.id: passage.text.encode() for passage in passages}
    start = time.perf_counter()
    count = 0
    for record in archive:
        if record.data != wanted.get(record.id or ""):
            raise FormatError(f"{archive.path}: record {record.id} came back changed; please report this")
        count += 1
    if count != len(wanted):
        raise FormatError(f"{archive.path}: {count} of {len(wanted)} records came back; please report this")
    seconds = time.perf_counter() - start
    total = sum(map(len, wanted.values()))
    click.echo(
        f"\nExact round trip: {amount(count, 'passage')}, {total:,} bytes compared, all equal "
        f"({seconds:.1f} s, {size(total / seconds)}/s)."
    )


def show_readings(archive: Archive, id: str) -> None:
    """One record three times: its text, the reading of its gist alone, and a variant."""
    for label, text in (
        (f"{id}, exact:", archive.get(id).decode()),
        ("the same from its gist alone, in one pass:", archive.gist(id)),
        (
            "regenerated, a fifth of the words written anew:",
            archive.regenerate(id, strength=0.2),
        ),
    ):
        click.echo(f"\n{label}\n")
        click.echo(textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  "))
