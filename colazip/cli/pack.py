"""`colazip pack`."""

from __future__ import annotations

import sys
import time

import click

from colazip.cli.console import Console, amount, size
from colazip.cli.model_option import coding_options, load_codec, model_options
from colazip.cli.options import (
    brief_option,
    check_code_bytes,
    check_detail,
    code_bytes_option,
    console_options,
    detail_option,
    force_option,
    gist_layers,
    layer_list,
    preset_option,
    price_option,
)
from colazip.cli.progress import Progress
from colazip.errors import UsageError


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("-o", "--output", required=True, metavar="OUT.cola", help="The archive to write.")
@force_option
@click.option(
    "--layers",
    callback=layer_list,
    metavar="LIST",
    help="Layers to keep, joined by commas: search, gist, exact; with other presets search, plain. "
    "[default: all of them]",
)
@preset_option
@detail_option
@brief_option
@price_option
@code_bytes_option
@click.option(
    "--format",
    type=click.Choice(["auto", "text", "lines", "jsonl", "csv", "parquet"]),
    default="auto",
    show_default=True,
    help="What the sources are: files of one record each, a record a line, or tables.",
)
@click.option("--text-column", metavar="NAME", help="Column of a table that holds the text. [default: text]")
@click.option(
    "--id-column", metavar="NAME", help="Column of a table that holds the ids. [default: row numbers]"
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Blocks coded at once; the archive is the same. [default: 16 a worker, on a GPU 128]",
)
@coding_options
@model_options
@console_options
def pack(
    sources: tuple[str, ...],
    output: str,
    force: bool,
    layers: tuple[str, ...] | None,
    preset: str,
    detail: int | None,
    brief: float | None,
    price: float | None,
    code_bytes: int | None,
    format: str,
    text_column: str | None,
    id_column: str | None,
    batch_size: int | None,
    device: str,
    workers: int,
    model: str | None,
    console: Console,
) -> None:
    """Pack files, folders or tables into an archive. Sources are kept.

    Every file is one record, in folders (hidden files included) by its relative path. JSON lines (.jsonl,
    .ndjson), CSV (.csv, .tsv) and Parquet (.parquet, .pq) named directly are tables: each row is a record,
    the columns beside the text are kept as metadata. With --format lines each line is a record. '-' is
    standard input: one text, unless --format says otherwise. A folder given with the format of a table, or
    lines, stands for the files of that kind in it.
    """
    from colazip.archive import Archive
    from colazip.files import check_apart, check_free
    from colazip.ingest import open_sources
    from colazip.presets import choose
    from colazip.tables import ColumnChoice

    if output == "-":
        raise UsageError(
            "an archive can't be written to standard output; name a file, or use 'colazip compress'"
        )
    kept = gist_layers(layers, brief, price)
    wanted, _ = choose(preset, kept)
    chosen_detail = check_detail(detail, wanted)
    check_code_bytes(code_bytes, wanted)
    check_free(output, force)
    for source in sources:
        check_apart(source, output)
    columns = None
    if text_column is not None or id_column is not None:
        columns = ColumnChoice("text" if text_column is None else text_column, id_column)
    started = time.monotonic()
    with open_sources(
        sources, format=format, columns=columns, stdin=sys.stdin.buffer, exclude=output, warn=console.warn
    ) as opened:
        console.detail(f"packing {', '.join(sources)} as {opened.description['kind']}")
        with Progress(console, "packing", opened.fraction) as progress:
            summary = Archive.pack(
                output,
                opened.records,
                codec=load_codec(
                    model,
                    detail=chosen_detail,
                    brief=brief,
                    price=price,
                    code_bytes=code_bytes,
                    device=device,
                    workers=workers,
                ),
                layers=kept,
                preset=preset,
                overwrite=force,
                source=opened.description,
                progress=progress,
                batch_blocks=batch_size,
            )
    ratio = summary.text_bytes / summary.file_bytes if summary.file_bytes else 0
    console.note(
        f"{output}: {amount(summary.records, 'record')}, {size(summary.text_bytes)} -> "
        f"{size(summary.file_bytes)} ({ratio:.2f}x)"
    )
    seconds = time.monotonic() - started
    console.detail(
        f"{amount(summary.blocks, 'block')}, {seconds:.1f} s, {size(summary.text_bytes / seconds)}/s"
    )
