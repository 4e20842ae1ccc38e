"""Packing and unpacking on a GPU: MB a second, and where the time goes.

python -m benchmarks.device_speed FILE.parquet [--device cuda] [--megabytes N] [--processes N] [--seconds S]

Each process codes its share of the blocks, repeated until there are `--megabytes` for it, with networks of
its own on the device: what runs in NumPy (the entropy coder, the blocks' memories, the tokenizer) takes one
core a process. Blocks are packed in groups as the codec makes them until they or `--seconds` are used up,
then unpacked the same way; every text is compared. The split of the time is that of the first process.
"""

from __future__ import annotations

import cProfile
import json
import multiprocessing
import pstats
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import click

from benchmarks.command import note, run_command
from benchmarks.corpus import read_corpus
from benchmarks.speed import own_time
from colazip.evaluate.table import markdown
from colazip.layers import BLOCK_BYTES, Block

# Functions whose time, with all that they call, is told apart.
PARTS = {
    "tokenizer": (("tokenizer", "encode"), ("tokenizer", "decode")),
    "networks": (
        ("encode", "_run"),
        ("gpu_decode", "decode_gist"),
        ("gpu_decode", "decode_exact"),
        ("steps", "context"),
        ("steps", "class_table"),
        ("steps", "slot_table"),
        ("steps", "rare_table"),
    ),
    "block memory": (("memory", "recall"), ("decode", "guess"), ("decode", "learn")),
    "entropy coder": (("entropy", "encode_streams"), ("entropy", "decode")),
    "search codes": (("codec", "_codes"),),
}


@dataclass(frozen=True)
class Leg:
    """Packing or unpacking by one process: bytes of text, begin and end (monotonic clock)."""

    name: str
    text: int
    begun: float
    ended: float
    shares: dict[str, float]


def blocks_of(records: list[bytes], size: int, at: int) -> list[list[bytes]]:
    """`size` bytes of records in full blocks, from record number `at` on, again from the first one if need
    be."""
    blocks: list[list[bytes]] = [[]]
    room = BLOCK_BYTES
    while size > 0:
        record = records[at % len(records)]
        at += 1
        if len(record) > room:
            blocks.append([])
            room = BLOCK_BYTES
        blocks[-1].append(record)
        room -= len(record)
        size -= len(record)
    return blocks


def shares_of(profile: cProfile.Profile) -> dict[str, float]:
    """Share of the time under each of PARTS, and of the rest."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(entry[2] for entry in stats.values())
    found = {}
    for name, functions in PARTS.items():
        found[name] = sum(
            entry[3]
            for (path, _, function), entry in stats.items()
            if (Path(path).stem, function) in functions
        )
    # `guess` and `learn` are methods of the memory, `recall` calls them.
    memory = sum(
        e[3] for (p, _, f), e in stats.items() if Path(p).stem == "memory" and f in ("guess", "learn")
    )
    found["block memory"] = max(found["block memory"], memory)
    shares = {name: seconds / total for name, seconds in found.items()}
    return {**shares, "rest": max(0.0, 1.0 - sum(shares.values()))}


def work(
    pipe: Connection,
    file: Path,
    number: int,
    model: Path | None,
    device: str,
    megabytes: float,
    seconds: float,
    profiled: bool,
) -> None:
    """One process: says when it is ready, waits for the start of each leg, sends what it did."""
    import torch

    from colazip.codec import Codec

    torch.set_num_threads(2)
    codec = Codec.from_pretrained(model, device=device)
    records = [part for r in read_corpus(file, "text", None).records for part in codec.split(r)]
    blocks = blocks_of(records, int(megabytes * 1e6), number * 997)
    coded: list[Block] = []
    codec.decode_blocks(codec.encode_blocks([[part[:200] for part in blocks[0][:20]]]))  # loads all there is
    pipe.send("ready")

    def leg(name: str, *, unpack: bool) -> Leg:
        profile = cProfile.Profile()
        group = codec.read_batch if unpack else codec.pack_batch
        text, at = 0, 0
        end = len(coded) if unpack else len(blocks)  # packing may have run out of time before
        begun = time.monotonic()
        if profiled:
            profile.enable()
        while at < end and (at == 0 or time.monotonic() - begun < seconds):
            some = blocks[at : min(at + group, end)]
            if unpack:
                if codec.decode_blocks(coded[at : at + group]) != some:
                    raise ValueError("a text came back changed")
            else:
                coded.extend(codec.encode_blocks(some))
            text += sum(len(part) for parts in some for part in parts)
            at += group
        if profiled:
            profile.disable()
        ended = time.monotonic()
        if profiled:
            for row in own_time(pstats.Stats(profile), 14):
                note("  ".join(row))
        return Leg(name, text, begun, ended, shares_of(profile) if profiled else {})

    for name in ("pack", "unpack"):
        pipe.recv()
        pipe.send(leg(name, unpack=name == "unpack"))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--megabytes", default=4.0, show_default=True, help="Of text, a process.")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=20.0, show_default=True, help="Of a leg; the group under way is finished.")
@click.option("--profile/--no-profile", default=True, help="Slows Python down a little.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
def device_speed(
    file: Path,
    model: Path | None,
    device: str,
    megabytes: float,
    processes: int,
    seconds: float,
    profile: bool,
    json_path: Path | None,
) -> None:
    """Print speeds of packing and unpacking by all processes together."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for number in range(processes):
        ours, theirs = context.Pipe()
        arguments = (theirs, file, number, model, device, megabytes, seconds, profile and number == 0)
        worker = context.Process(target=work, args=arguments, daemon=True)
        worker.start()
        theirs.close()
        workers.append((worker, ours))
    begun = time.monotonic()
    for _, pipe in workers:
        pipe.recv()
    note(f"{processes} ready after {time.monotonic() - begun:.1f} s")
    rows = [("", "processes", "MB", "MB/s", "where the time goes")]
    figures = {}
    for name in ("pack", "unpack"):
        for _, pipe in workers:
            pipe.send("go")
        legs: list[Leg] = [pipe.recv() for _, pipe in workers]
        text = sum(leg.text for leg in legs)
        taken = max(leg.ended for leg in legs) - min(leg.begun for leg in legs)
        split = ", ".join(f"{part} {share:.0%}" for part, share in legs[0].shares.items())
        rows.append((name, f"{processes}", f"{text / 1e6:.1f}", f"{text / taken / 1e6:.2f}", split))
        figures[name] = {"mb_a_second": text / taken / 1e6, "legs": [asdict(leg) for leg in legs]}
        note("  ".join(rows[-1]))
        if json_path:
            json_path.write_text(json.dumps(figures, indent=2) + "\n")
    for worker, _ in workers:
        worker.join()
    click.echo(markdown(rows))


if __name__ == "__main__":
    run_command(device_speed, "benchmarks.device_speed")
