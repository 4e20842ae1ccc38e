"""`colazip compress` and `decompress`: a text in, a blob or a stream of them out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import click

from colazip.cli.console import Console, data_output, size
from colazip.cli.model_option import model_options
from colazip.cli.options import check_detail, console_options, detail_option, force_option, preset_option
from colazip.cli.progress import Progress
from colazip.errors import UsageError

SUFFIX = ".cz"


@click.command()
@click.argument("file", default="-")
@click.option("-o", "--output", metavar="OUT", help=f"File to write, or '-'. [default: FILE{SUFFIX}]")
@preset_option
@detail_option
@force_option
@model_options
@console_options
def compress(
    file: str,
    output: str | None,
    preset: str,
    detail: int | None,
    force: bool,
    model: str | None,
    console: Console,
) -> None:
    """Compress FILE, or standard input, exactly. The source is kept.

    Up to 8 MiB become one blob; of longer input each 8 MiB do, so any amount goes through in bounded memory.
    """
    from colazip.presets import choose
    from colazip.stream import compress_stream

    chosen_detail = check_detail(detail, choose(preset, None)[0])
    output = output or ("-" if file == "-" else file + SUFFIX)
    with _transfer(file, output, force, console, "compressing", binary=True) as (source, sink, progress):
        before, after = compress_stream(
            source, sink, preset, detail=chosen_detail, model=model, progress=progress
        )
    if output != "-":
        console.note(f"{output}: {size(before)} -> {size(after)} ({before / max(after, 1):.2f}x)")


@click.command()
@click.argument("file", default="-")
@click.option(
    "-o", "--output", metavar="OUT", help=f"File to write, or '-'. [default: FILE without {SUFFIX}]"
)
@force_option
@model_options
@console_options
def decompress(file: str, output: str | None, force: bool, model: str | None, console: Console) -> None:
    """Decompress FILE, or standard input, that 'compress' wrote. The source is kept."""
    if output is None and file != "-" and (not file.endswith(SUFFIX) or os.path.basename(file) == SUFFIX):
        raise UsageError(f"{file}: has no suffix {SUFFIX} to take away; name the output with -o")
    from colazip.stream import decompress_stream

    output = output or ("-" if file == "-" else file.removesuffix(SUFFIX))
    with _transfer(file, output, force, console, "decompressing", binary=False) as (source, sink, progress):
        before, after = decompress_stream(source, sink, model=model, progress=progress)
    if output != "-":
        console.note(f"{output}: {size(before)} -> {size(after)}")


@contextmanager
def _transfer(
    file: str, output: str, force: bool, console: Console, label: str, *, binary: bool
) -> Iterator[tuple[BinaryIO, BinaryIO, Callable[[int], None]]]:
    """Input, output, and what is told how many bytes are done; the output is checked before the work."""
    from colazip.files import check_apart, check_free, new_file

    with ExitStack() as stack:
        if output != "-" and (not os.path.exists(output) or os.path.isfile(output)):
            check_free(output, force)
            check_apart(file, output)
        stdout = data_output(binary=binary, force=force) if output == "-" else None
        source = sys.stdin.buffer if file == "-" else stack.enter_context(open(file, "rb"))
        sink = stdout or stack.enter_context(new_file(output, force))
        progress = stack.enter_context(Progress(console, label, counted=False))
        yield source, sink, lambda done: progress(0, done)
        sink.flush()
