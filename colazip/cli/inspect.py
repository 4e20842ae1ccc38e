"""`colazip info`, `verify`, `strip` and `merge`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import click

from colazip.cli.console import Console, amount, printable, size, write_json
from colazip.cli.model_option import model_options, open_archive
from colazip.cli.options import console_options, force_option, json_option, layer_list
from colazip.cli.progress import Progress
from colazip.cli.report import explain
from colazip.errors import ColazipError, UsageError


@click.command()
@click.argument("archive")
@json_option
@console_options
def info(archive: str, as_json: bool, console: Console) -> None:
    """Show what an archive holds and what it costs: counts, ratio, bytes by layer, the model it needs."""
    with open_archive(archive) as opened:
        facts = opened.info()
    if as_json:
        write_json(facts)
        return
    # The Arrow schema of a Parquet source is for unpack, not for people.
    facts["source"] = {key: value for key, value in facts["source"].items() if key != "schema"}
    lines = [(printable(name), printable(value)) for name, value in _lines(facts)]
    width = max(len(name) for name, _ in lines) + 2
    for name, value in lines:
        click.echo(f"{name:<{width}}{value}")


@click.command()
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...")
@json_option
@model_options
@console_options
@click.pass_context
def verify(
    context: click.Context, archives: tuple[str, ...], as_json: bool, model: str | None, console: Console
) -> None:
    """Check archives: every checksum, then decode everything. The exit code is 1 if one of them failed.

    JSON is a list of objects with archive, ok, and either the counts or the error.
    """
    results: list[dict[str, Any]] = []
    for path in archives:
        try:
            with open_archive(path, model) as opened:
                results.append({"archive": path, "ok": True, **opened.verify()})
        except (ColazipError, OSError) as error:
            message, _ = explain(error)
            results.append({"archive": path, "ok": False, "error": message})
            click.echo(f"colazip: error: {message}", err=True)
        else:
            counts = {name: value for name, value in results[-1].items() if isinstance(value, int)}
            counts.pop("ok")
            told = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())
            console.note(f"{path}: ok ({told})")
    if as_json:
        write_json(results)
    if not all(result["ok"] for result in results):
        context.exit(1)


@click.command()
@click.argument("archive")
@click.option(
    "--drop",
    required=True,
    callback=layer_list,
    metavar="LIST",
    help="Layers to leave out, joined by commas.",
)
@click.option("-o", "--output", required=True, metavar="OUT.cola", help="The archive to write.")
@force_option
@console_options
def strip(archive: str, drop: tuple[str, ...], output: str, force: bool, console: Console) -> None:
    """Copy an archive without some of its layers: search, gist, exact. Nothing is coded again.

    The exact layer needs the gist, so the gist goes only together with it. A gist beside search codes is
    coded given them, so search goes only together with the gist. Archives of the presets fast and balanced
    have the layers search and plain.
    """
    from colazip.files import check_free

    if not drop:
        raise UsageError("--drop names no layer; choose from search, gist, exact, plain")
    check_free(output, force)
    with open_archive(archive) as opened:
        before = opened.file_bytes
        opened.strip(drop, output, overwrite=force)
    console.note(f"{output}: {size(before)} -> {size(os.path.getsize(output))} without {', '.join(drop)}")


@click.command()
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...")
@click.option("-o", "--output", required=True, metavar="OUT.cola", help="The archive to write.")
@force_option
@console_options
def merge(archives: tuple[str, ...], output: str, force: bool, console: Console) -> None:
    """Put the records of several archives into one, in their order. Nothing is coded again.

    What came in since can so be added to an archive: pack it alone and merge both, with -f even under the
    name of one of them. All have to be packed by one model with the same layers. Records keep their ids;
    those that have none of their own, and go by their numbers, are numbered on. An index that stands beside
    has to be made anew.
    """
    from colazip.archive import Archive
    from colazip.files import check_free

    check_free(output, force)
    with Progress(console, "merging") as progress:
        summary = Archive.merge(output, archives, overwrite=force, progress=progress)
    console.note(f"{output}: {amount(summary.records, 'record')}, {size(summary.file_bytes)}")


def _lines(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Facts as (name, value), nested ones by dotted names."""
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{key}.")
        elif isinstance(value, bool) or value is None:
            yield name, "-" if value is None else "yes" if value else "no"
        elif isinstance(value, int):
            yield name, f"{value:,}"
        elif isinstance(value, float):
            yield name, f"{value:.2f}"
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        else:
            yield name, str(value)
