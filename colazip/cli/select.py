"""`colazip select`."""

from __future__ import annotations

import click

from colazip.cli.console import Console, amount, size
from colazip.cli.model_option import coding_options, given_codec, load_codec, model_options
from colazip.cli.options import console_options, force_option, where_option
from colazip.cli.progress import Progress
from colazip.errors import UsageError


@click.command()
@click.argument("archive")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@where_option
@click.option("--ids", "listed", metavar="FILE", help="A file with one id a line, or '-': as if named.")
@click.option("--drop", is_flag=True, help="Leave those records out, and keep all others.")
@click.option("-o", "--output", required=True, metavar="OUT.cola", help="The archive to write.")
@force_option
@coding_options
@model_options
@console_options
def select(
    archive: str,
    ids: tuple[str, ...],
    where: str | None,
    listed: str | None,
    drop: bool,
    output: str,
    force: bool,
    device: str,
    workers: int,
    model: str | None,
    console: Console,
) -> None:
    """Copy some of an archive's records into another, or with --drop all but those.

    Records are chosen by their ids, or by --where. Blocks that stay whole are copied as they are; those that
    only some records leave are coded anew, which takes the exact text. With -f the output may be the archive
    itself: so records are deleted. Ids stay what they were. An index that stands beside has to be made anew.
    """
    from colazip.archive import Archive
    from colazip.files import check_free

    if (where is None) == (not ids and listed is None):
        raise UsageError("choose records by their ids, or by --where: one of the two")
    check_free(output, force)
    chosen = list(ids) if where is None else None
    if listed is not None and chosen is not None:
        with click.open_file(listed, encoding="utf-8-sig", errors="surrogateescape") as lines:
            chosen += filter(None, (line.rstrip("\r\n") for line in lines))
    with Archive(archive) as opened:
        code_bytes = opened.manifest.code_bytes
    codec = given_codec() or load_codec(model, code_bytes=code_bytes, device=device, workers=workers)
    with Archive(archive, codec) as opened, Progress(console, "selecting") as progress:
        summary = opened.select(
            output, where=where, ids=chosen, drop=drop, overwrite=force, progress=progress
        )
        of = len(opened)
    console.note(f"{output}: {summary.records:,} of {amount(of, 'record')}, {size(summary.file_bytes)}")
