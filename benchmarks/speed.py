"""How fast archives are packed and unpacked here, and how far that is from what the machine could do.

python -m benchmarks.speed FILE.parquet [--sample N] [--model PATH] [--threads N] [--json OUT]

The floor is the time of the multiplications alone at the rate that large int8 products of torch reach in the
same run. What stands between is rounding rows to the grid, attention, tables of frequencies and the entropy
coder: the last tables say how much each takes.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import time
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.command import run_command
from benchmarks.corpus import read_corpus
from colazip.evaluate.table import markdown

DEFAULT_SAMPLE = 400


def product_rate() -> float:
    """Multiply-adds a second of torch's int8 product on matrices of the networks' size."""
    import torch

    a = torch.ones(4096, 1024, dtype=torch.int8)
    b = torch.ones(1024, 1024, dtype=torch.int8).t()
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        torch._int_mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 4096 * 1024 * 1024 / best


def timed(call: Callable[[], object]) -> tuple[float, pstats.Stats]:
    """Seconds of a second call, and the profile of a third, on one thread, as those beside are not profiled:
    the first one loads and warms up."""
    import torch

    call()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    profile, threads = cProfile.Profile(), torch.get_num_threads()
    torch.set_num_threads(1)
    profile.runcall(call)
    torch.set_num_threads(threads)
    return seconds, pstats.Stats(profile)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--sample", default=DEFAULT_SAMPLE, show_default=True, type=click.IntRange(min=1))
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--top", default=12, show_default=True, type=click.IntRange(min=1), help="Functions to list.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
def speed(
    file: Path, sample: int, model: Path | None, threads: int, top: int, json_path: Path | None
) -> None:
    """Print speeds, the floor, and where the time goes."""
    import torch

    from colazip.codec import Codec
    from colazip.layers import BLOCK_BYTES
    from colazip.nn.cost import cost

    torch.set_num_threads(threads)
    codec = Codec.from_pretrained(model)
    records = [part for r in read_corpus(file, "text", sample).records for part in codec.split(r)]
    blocks: list[list[bytes]] = [[]]
    for record in records:
        if sum(map(len, blocks[-1])) + len(record) > BLOCK_BYTES:
            blocks.append([])
        blocks[-1].append(record)
    text = sum(map(len, records))
    tokens = sum(map(len, codec.model.tokenizer.encode(records)))
    patches = tokens / codec.model.config.patch
    lanes = cost(codec.model.config, codec.model.config.segment // 2)
    rate = product_rate()
    coded = codec.encode_blocks(blocks)
    rows = [("", "kB/s", "multiply-adds a byte", "floor kB/s", "floor over measured")]
    figures: dict[str, float] = {"giga_multiply_adds_a_second": rate / 1e9, "threads": threads}
    shares = []
    for name, work, call in (
        ("pack, all layers", lanes.pack, lambda: codec.encode_blocks(blocks)),
        ("unpack, exact", lanes.unpack, lambda: codec.decode_blocks(coded)),
        ("unpack, gist", lanes.unpack, lambda: codec.read_gist(coded)),
    ):
        seconds, profile = timed(call)
        a_byte = work * patches / text
        measured, floor = text / seconds / 1e3, rate / a_byte / 1e3
        figures[name] = measured
        rows.append((name, f"{measured:.0f}", f"{a_byte:,.0f}", f"{floor:,.0f}", f"{floor / measured:.1f}"))
        shares.append((name, profile))
    click.echo(
        f"{text / 1e3:,.0f} kB of {file.name} in {len(blocks)} blocks, {threads} thread(s),"
        f" {rate / 1e9:,.0f} G multiply-adds a second in int8 products\n"
    )
    click.echo(markdown(rows))
    for name, profile in shares:
        click.echo(f"\n{name}: own time by function\n")
        click.echo(markdown(own_time(profile, top)))
    if json_path:
        json_path.write_text(json.dumps(figures, indent=2) + "\n")


def own_time(profile: pstats.Stats, top: int) -> list[tuple[str, ...]]:
    """The functions that take most of the time, children left out."""
    stats = profile.stats  # type: ignore[attr-defined]
    total = sum(entry[2] for entry in stats.values())
    table: list[tuple[str, ...]] = [("function", "calls", "share")]
    for (path, _, function), entry in sorted(stats.items(), key=lambda item: -item[1][2])[:top]:
        where = f"{Path(path).stem}.{function}" if path != "~" else function.strip("<>")
        table.append((where, f"{entry[0]:,}", f"{entry[2] / total:.1%}"))
    return table


if __name__ == "__main__":
    run_command(speed, "benchmarks.speed")
