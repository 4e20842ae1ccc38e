"""`colazip index`."""

from __future__ import annotations

import click

from colazip.cli.console import Console, size
from colazip.cli.model_option import model_options, open_archive
from colazip.cli.options import console_options
from colazip.cli.progress import Progress


@click.command()
@click.argument("archive")
@click.option("--rebuild", is_flag=True, help="Replace an index that is there.")
@click.option(
    "--refine/--no-refine",
    default=None,
    help="Also keep finer vectors, which rank the passages nearest in meaning again. [default: as in the"
    " index that is replaced, else no]",
)
@model_options
@console_options
def index(archive: str, rebuild: bool, refine: bool | None, model: str | None, console: Console) -> None:
    """Make the index that search by words needs, in the folder ARCHIVE.index beside the archive.

    With it, 'colazip search' ranks by words and meaning together. For archives of many passages it also holds
    codes that make the search by meaning faster. --refine adds what makes it find better: a finer vector of
    each passage, computed from its text, or in an archive without text from its gist. The archive itself
    stays as it is, and the folder can be removed at any time.
    """
    with open_archive(archive, model) as opened:
        total = opened.manifest.text_bytes
        done = 0

        def fraction() -> float | None:
            return done / total if total else None

        with Progress(console, "indexing", fraction) as progress:

            def report(records: int, text_bytes: int) -> None:
                nonlocal done
                done = text_bytes
                progress(records, text_bytes)

            sizes = opened.build_index(overwrite=rebuild, refine=refine, progress=report)
    told = ", ".join(
        f"{name} {size(count)}" for name, count in sizes.items() if count and name != "container"
    )
    console.note(f"{archive}.index: {size(sum(sizes.values()))} ({told})")
