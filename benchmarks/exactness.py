"""Are the bytes the same, whatever runs the networks? One line a way of running them.

python -m benchmarks.exactness [FILE.parquet] [--sample N] [--model PATH] [--write FILE] [--check FILE]

Packs the same records, with gists of every detail, by batches of 1, 7 and 64, on one thread and two, at
every precision that torch offers for products of float32, without compiled kernels, and on a GPU where
there is one, and compares every byte; then decodes and reads them with torch, with NumPy alone, and on the
GPU. `--write` keeps text and blocks (the last encoder's: a GPU's where there is one) for another machine,
where `--check` decodes them and encodes the text again. `--few` leaves out the encoders that differ from
another one in batch, threads or precision.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import msgpack
import numpy as np

from benchmarks.command import run_command
from benchmarks.corpus import read_corpus
from colazip.codec import Codec
from colazip.errors import InputError
from colazip.layers import BLOCK_BYTES, Block

DEFAULT_SAMPLE = 200
Make = partial[Codec]


def blocks_of(records: list[bytes]) -> list[list[bytes]]:
    """Records in blocks of at most half the allowed size, so that there are several."""
    blocks: list[list[bytes]] = [[]]
    room = BLOCK_BYTES // 2
    for record in records:
        part = record[: BLOCK_BYTES // 2]
        if len(part) > room:
            blocks.append([])
            room = BLOCK_BYTES // 2
        blocks[-1].append(part)
        room -= len(part)
    return blocks


def digest(blocks: list[Block]) -> str:
    state = hashlib.sha256()
    for block in blocks:
        for name in sorted(block.layers):
            state.update(f"{block.count} {name} {len(block.layers[name])}\n".encode())
            state.update(block.layers[name])
    return state.hexdigest()


def encode(make: Make, parts: list[list[bytes]]) -> list[Block]:
    """The parts coded with gists of each detail, one after the other."""
    details = make().model.config.details
    return [block for detail in range(details) for block in make(detail=detail).encode_blocks(parts)]


def encoders(model: Path | None, *, few: bool) -> Iterator[tuple[str, Make]]:
    """(how, what makes the codec) of every way to encode; it stays set until the next one is asked for."""
    import torch

    from colazip.nn.loading import expect_work, operation_by_operation

    expect_work(1 << 20)  # so that kernels are loaded

    make = partial(Codec.from_pretrained, model)
    threads = torch.get_num_threads()
    for batch in (64,) if few else (64, 7, 1):
        yield f"torch on the CPU, batch {batch}", partial(make, batch_size=batch)
    for count in () if few else (1, 2):
        torch.set_num_threads(count)
        yield f"torch on the CPU, {count} thread{'s' * (count > 1)}", make
    torch.set_num_threads(threads)
    for precision in () if few else ("high", "medium"):
        torch.set_float32_matmul_precision(precision)
        yield f"torch on the CPU, float32 products at {precision!r}", make
    torch.set_float32_matmul_precision("highest")
    with operation_by_operation():
        yield "torch on the CPU, operation by operation", make
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        yield f"torch on {name}, batch 7", partial(make, device="cuda", batch_size=7)
        torch.set_float32_matmul_precision("high")
        yield f"torch on {name}, float32 products at 'high'", partial(make, device="cuda")
        torch.set_float32_matmul_precision("highest")
        yield f"torch on {name}", partial(make, device="cuda")


def decoders(model: Path | None) -> Iterator[tuple[str, Codec]]:
    """(how, codec) of every way to decode."""
    import torch

    yield "NumPy alone", Codec.from_pretrained(model, implementation="numpy")
    yield "torch on the CPU", Codec.from_pretrained(model, implementation="torch")
    yield "what the codec chooses, compiled loops for a few lanes", Codec.from_pretrained(model)
    if torch.cuda.is_available():
        yield f"torch on {torch.cuda.get_device_name()}", Codec.from_pretrained(model, device="cuda")


def say(good: bool, what: str) -> bool:
    click.echo(f"{'same' if good else 'DIFFERENT'}  {what}")
    return good


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--sample", default=DEFAULT_SAMPLE, show_default=True, type=click.IntRange(min=1))
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option("--write", type=click.Path(path_type=Path), help="Keep the blocks in this file.")
@click.option("--check", type=click.Path(path_type=Path), help="Read blocks from this file, of any machine.")
@click.option("--few", is_flag=True, help="Fewer encoders.")
def exactness(
    file: Path | None, sample: int, model: Path | None, write: Path | None, check: Path | None, few: bool
) -> None:
    """Exit code 0 if every byte is the same."""
    if check:
        parts, reference = load(check)
    else:
        records = read_corpus(file, "text", sample).records if file else handbook(sample)
        parts = blocks_of([*records, b"", bytes(range(256)), "👩‍🚀 naïve 漢字".encode()])
        reference = encode(partial(Codec.from_pretrained, model), parts)
    expected = digest(reference)
    good, blocks = True, reference
    for how, make in encoders(model, few=few):
        blocks = encode(make, parts)
        good &= say(digest(blocks) == expected, f"encoded by {how}")
    if write:
        save(write, parts, blocks)
    whole = parts * (len(reference) // len(parts))
    readings = None
    for how, codec in decoders(model):
        good &= say(codec.decode_blocks(reference) == whole, f"decoded by {how}")
        read = codec.read_gist(reference)
        readings = readings or read
        good &= say(read == readings, f"gists read by {how}")
    size = sum(len(p) for block in parts for p in block)
    click.echo(f"{len(reference)} blocks, {size:,} bytes of text, {expected[:16]}", err=True)
    sys.exit(0 if good else 1)


def handbook(sample: int) -> list[bytes]:
    """Passages that the package carries."""
    from colazip.demo import handbook as passages

    texts = [passage.text.encode() for passage in passages()]
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(sample, len(texts))).astype(int)]


def save(path: Path, parts: list[list[bytes]], blocks: list[Block]) -> None:
    layers = [{name: bytes(data) for name, data in block.layers.items()} for block in blocks]
    path.write_bytes(msgpack.packb({"parts": parts, "layers": layers}))


def load(path: Path) -> tuple[list[list[bytes]], list[Block]]:
    try:
        kept = msgpack.unpackb(path.read_bytes())
        parts = kept["parts"]
        whole = parts * (len(kept["layers"]) // len(parts))
        return parts, [Block(len(p), layers) for p, layers in zip(whole, kept["layers"], strict=True)]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, msgpack.UnpackException) as e:
        raise InputError(f"{path}: not a file that --write made ({type(e).__name__})") from e


if __name__ == "__main__":
    run_command(exactness, "benchmarks.exactness")
