"""`colazip compress` and `decompress`: one text in, one blob out."""

from __future__ import annotations

import os
import sys

import click

from colazip.cli.console import Console, data_output, size
from colazip.cli.model_option import model_options
from colazip.cli.options import check_detail, console_options, detail_option, force_option, preset_option
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
    """Compress FILE, or standard input, to one blob, exactly. The source is kept."""
    from colazip.presets import choose

    chosen_detail = check_detail(detail, choose(preset, None)[0])
    output = output or ("-" if file == "-" else file + SUFFIX)
    data = _transfer(file, output, force, binary=True)
    import colazip

    blob = colazip.compress(data, preset, detail=chosen_detail, model=model)
    _write(blob, output, force)
    if output != "-":
        console.note(
            f"{output}: {size(len(data))} -> {size(len(blob))} ({len(data) / max(len(blob), 1):.2f}x)"
        )


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
    output = output or ("-" if file == "-" else file.removesuffix(SUFFIX))
    blob = _transfer(file, output, force, binary=False)
    import colazip

    data = colazip.decompress(blob, model=model)
    _write(data, output, force)
    if output != "-":
        console.note(f"{output}: {size(len(blob))} -> {size(len(data))}")


def _transfer(file: str, output: str, force: bool, binary: bool) -> bytes:
    """Check the output before the work, then read all of the input."""
    from colazip.files import check_apart, check_free

    if output == "-":
        data_output(binary=binary, force=force)
    elif not os.path.exists(output) or os.path.isfile(output):
        check_free(output, force)
        check_apart(file, output)
    if file == "-":
        return sys.stdin.buffer.read()
    with open(file, "rb") as source:
        return source.read()


def _write(data: bytes, output: str, force: bool) -> None:
    from colazip.files import new_file

    if output == "-":
        stdout = data_output(force=force)
        stdout.write(data)
        stdout.flush()
    else:
        with new_file(output, force) as target:
            target.write(data)
