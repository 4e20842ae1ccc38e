"""`colazip unpack`."""

from __future__ import annotations

import click

from colazip.cli.console import Console, amount, data_output
from colazip.cli.model_option import coding_options, model_options, open_archive
from colazip.cli.options import (
    check_sampling,
    console_options,
    force_option,
    layer_option,
    sampling_options,
    where_option,
)
from colazip.cli.progress import Progress
from colazip.errors import UsageError
from colazip.sampling import Sampling


@click.command()
@click.argument("archive")
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="Folder or file to write, or '-'. [default: the name of the source, here; for standard input: '-']",
)
@click.option(
    "--format",
    type=click.Choice(["auto", "files", "text", "jsonl", "csv", "parquet"]),
    default="auto",
    show_default=True,
    help="What to write: a file a record, the records joined, or a table.",
)
@layer_option
@where_option
@click.option(
    "--denoise",
    is_flag=True,
    help="With --from gist: let the model's prior help to read what the gist leaves open.",
)
@click.option(
    "--detail",
    type=click.IntRange(min=0),
    help="With --denoise: read the gist as if it had been written with this detail. [default: as it was]",
)
@click.option(
    "--missing",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="SHARE",
    help="With --denoise: read the gist as if so large a share of its patches were lost, evenly spread.",
)
@sampling_options
@force_option
@coding_options
@model_options
@console_options
def unpack(
    archive: str,
    output: str | None,
    format: str,
    layer: str,
    where: str | None,
    denoise: bool,
    detail: int | None,
    missing: float | None,
    sampling: Sampling,
    force: bool,
    device: str,
    workers: int,
    model: str | None,
    console: Console,
) -> None:
    """Give back what was packed: the files, the one text, or the table with its columns in their order.

    Files get the same bytes under the same relative paths; modes and times are not kept, nor are empty
    folders. A table is written in its own format, or in that of the suffix of -o (.jsonl, .csv, .tsv,
    .parquet): the same values, not always the same spelling. An archive that a program made comes as JSON
    lines.
    """
    from colazip.files import check_apart
    from colazip.output import plan_output, write_records

    if denoise and layer != "gist":
        raise UsageError("--denoise reads the gist; add --from gist")
    if detail is not None and not denoise:
        raise UsageError("--detail goes with --denoise")
    if missing is not None and not denoise:
        raise UsageError("--missing goes with --denoise")
    if not denoise:
        check_sampling("steps", "solver", "guidance", "seed", advice="add --denoise")
    with open_archive(archive, model, device=device, workers=workers) as opened:
        plan = plan_output(opened.source, archive, output, format)
        if plan.path is not None:
            check_apart(archive, plan.path)
        stdout = data_output(binary=plan.is_binary, force=force) if plan.path is None else None
        total = max(len(opened) if where is None else sum(1 for _ in opened.ids(where)), 1)
        progress: Progress
        with Progress(console, "unpacking", lambda: progress.records / total) as progress:
            count = write_records(
                opened,
                plan,
                layer=layer,
                overwrite=force,
                stdout=stdout,
                progress=progress,
                denoise=denoise,
                detail=detail,
                missing=missing or 0.0,
                options=sampling,
                where=where,
            )
    if plan.path is not None:
        console.note(f"{plan.path}: {amount(count, 'record')} from {archive}")
