"""`colazip get`, `search` and `regenerate`."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import tee
from typing import TYPE_CHECKING, Any

import click

from colazip.cli.console import Console, data_output, printable, write_json
from colazip.cli.model_option import model_options, open_archive
from colazip.cli.options import (
    check_sampling,
    console_options,
    force_option,
    json_option,
    layer_option,
    sampling_options,
    where_option,
)
from colazip.errors import RecordNotFoundError, UsageError
from colazip.sampling import CODER, MAX_TEMPERATURE, PRIOR, WRITERS, Sampling

if TYPE_CHECKING:
    from colazip.archive import Archive, Hit


_MOST_PATCHES = 1 << 24  # bounds what `--missing 0-99999999999` asks for


@click.command()
@click.argument("archive")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("-o", "--output", metavar="FILE", help="Write to a file instead.")
@layer_option
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line: id, text, metadata.")
@force_option
@model_options
@console_options
def get(
    archive: str,
    ids: tuple[str, ...],
    output: str | None,
    layer: str,
    as_json: bool,
    force: bool,
    model: str | None,
    console: Console,
) -> None:
    """Write records to standard output, in the order of the ids given, with nothing between them.

    The id of a file is its relative path; of a row without id column its number, from 0.
    """
    from colazip.files import check_apart, new_file

    if output is not None:
        check_apart(archive, output)
    with open_archive(archive, model) as opened:
        for key in ids:
            if key not in opened:
                raise RecordNotFoundError(f"{archive}: no record {key!r}; it has {_known_ids(opened)}")
        pieces = (_json_line(opened, key, layer) if as_json else _read(opened, key, layer) for key in ids)
        if output is not None and output != "-":
            with new_file(output, force) as file:
                file.writelines(pieces)
            return
        stdout = data_output(force=force)
        last = b""
        for last in pieces:
            stdout.write(last)
        if sys.stdout.isatty() and not last.endswith(b"\n"):
            stdout.write(b"\n")
        stdout.flush()


@click.command("list")
@click.argument("archive")
@where_option
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line: id, metadata.")
@console_options
def list_ids(archive: str, where: str | None, as_json: bool, console: Console) -> None:
    """Write the ids of the records of an archive, one a line, in their order. Nothing is decoded."""
    from colazip.tables.common import json_text

    with open_archive(archive) as opened:
        stdout = data_output()
        if as_json:
            for key, metadata in opened.rows(where):
                stdout.write(json_text({"id": key, "metadata": metadata}) + b"\n")
        else:
            for key in opened.ids(where):
                stdout.write(key.encode() + b"\n")
        stdout.flush()


@click.command()
@click.argument("archive")
@click.argument("query", required=False)
@click.option("--like", metavar="ID", help="In place of QUERY: find the records nearest to this one.")
@click.option(
    "--queries",
    metavar="FILE",
    help="In place of QUERY: a file with one query a line, or '-'; writes a JSON object for each, query and "
    "hits, in their order.",
)
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many hits at most.")
@click.option(
    "--mode",
    type=click.Choice(["semantic", "lexical", "hybrid"]),
    help="Rank by meaning, by words in common, or by both. [default: hybrid where 'colazip index' was run, "
    "else semantic]",
)
@where_option
@click.option("--no-snippets", is_flag=True, help="Don't decode the hits: ids and scores at once.")
@click.option("--passages", is_flag=True, help="Show passages, not records: several of one perhaps.")
@json_option
@model_options
@console_options
def search(
    archive: str,
    query: str | None,
    like: str | None,
    queries: str | None,
    k: int,
    mode: str | None,
    where: str | None,
    no_snippets: bool,
    passages: bool,
    as_json: bool,
    model: str | None,
    console: Console,
) -> None:
    """Find records, best first: score, id, and the start of the passage that matches.

    The score is the cosine by meaning, BM25 by words, and between 0 and 1 by both. A long record is searched
    by passages and ranks by its best one. JSON is a list of objects with id, score, scores (cosine, bm25),
    metadata, snippet and span: the passage's first byte and end in the record, null without the exact text.
    Records that are no text to the model (binary, scripts it never saw) have no vector and are not found by
    meaning.
    """
    if sum(way is not None for way in (query, like, queries)) != 1:
        raise UsageError("give a query, a record with --like, or many queries with --queries")
    if query is not None and not query.strip():
        raise UsageError("the query is empty; give some words")
    if like is not None and (mode not in (None, "semantic") or passages):
        raise UsageError("--like finds records by meaning; leave out --mode and --passages")
    with open_archive(archive, model) as opened:
        if like is not None:
            if like not in opened:
                raise RecordNotFoundError(f"{archive}: no record {like!r}; it has {_known_ids(opened)}")
            hits = opened.similar(like, k, where, snippets=not no_snippets)
        elif queries is not None:
            with click.open_file(queries, encoding="utf-8-sig", errors="replace") as lines:
                asked, answered = tee(line.rstrip("\r\n") for line in lines)
                found = opened.search_many(
                    asked, k, mode, where, group=not passages, snippets=not no_snippets
                )
                for some in found:
                    write_json({"query": next(answered), "hits": [_shown(hit) for hit in some]}, indent=None)
            return
        else:
            hits = opened.search(query or "", k, mode, where, group=not passages, snippets=not no_snippets)
    if as_json:
        write_json([_shown(hit) for hit in hits])
        return
    if not hits:
        console.note(f"no hits in {archive}")
    width = max((len(printable(hit.id)) for hit in hits), default=0)
    for hit in hits:
        click.echo(f"{hit.score:6.3f}  {printable(hit.id):<{width}}  {printable(hit.snippet)}".rstrip())


def _shown(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "score": hit.score,
        "scores": hit.scores,
        "metadata": hit.metadata,
        "snippet": hit.snippet,
        "span": hit.span,
    }


@click.command()
@click.argument("archive")
@click.argument("id")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    help="How far from the record: the share of its words that change. 0 is its gist reading. [default: 0.3]",
)
@click.option("--fill", is_flag=True, help="Instead, take patches of the gist away and fill them in anew.")
@click.option(
    "--missing",
    metavar="WHICH",
    help="With --fill: a share of the patches, such as 0.3, or their numbers from 0, such as 3,5-8,12. "
    "[default: 0.3]",
)
@click.option(
    "--continue",
    "more",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Instead, write as many tokens of how the record might go on.",
)
@click.option(
    "--by",
    type=click.Choice(WRITERS),
    help="Who writes: the coder, which codes the gist token by token, or the diffusion prior. "
    "[default: coder]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, MAX_TEMPERATURE),
    help="Of what is drawn token by token: 0 takes the likeliest each time. [default: 0.8]",
)
@sampling_options
@model_options
@console_options
def regenerate(
    archive: str,
    id: str,
    strength: float | None,
    fill: bool,
    missing: str | None,
    more: int | None,
    by: str | None,
    temperature: float | None,
    sampling: Sampling,
    model: str | None,
    console: Console,
) -> None:
    """Write a variant of a record: its gist reading with a share of the words written anew.

    --by prior has the latents noised and denoised by the model's diffusion prior instead: the strength is
    then the share of the tokens that the noise changes. --steps, --solver and --guidance are the prior's. A
    patch is a few neighbouring tokens, four in the model of the package.
    """
    if sum((strength is not None, fill, more is not None)) > 1:
        raise UsageError("--strength, --fill and --continue exclude each other; give one")
    if missing is not None and not fill:
        raise UsageError("--missing says what to fill in; add --fill")
    if by == PRIOR and more is None and temperature is not None:
        raise UsageError("--temperature: the prior draws token by token with --continue only; leave it out")
    if by != PRIOR:
        check_sampling("steps", "solver", "guidance", advice="add --by prior")
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    which = _missing("0.3" if missing is None else missing)
    with open_archive(archive, model) as opened:
        if id not in opened:
            raise RecordNotFoundError(f"{archive}: no record {id!r}; it has {_known_ids(opened)}")
        if fill:
            text = opened.fill(id, missing=which, by=by or CODER, options=sampling)
        elif more is not None:
            text = opened.proceed(id, tokens=more, by=by or CODER, options=sampling)
        else:
            share = 0.3 if strength is None else strength
            text = opened.regenerate(id, strength=share, by=by or CODER, options=sampling)
    click.echo(text)


def _missing(which: str) -> float | list[int]:
    """`0.3` -> 0.3; `3,5-8` -> [3, 5, 6, 7, 8]. A lone number with a point is a share, any other a patch."""
    try:
        if "." in which:
            return float(which)
        numbers: list[int] = []
        for item in which.split(","):
            first, _, last = item.partition("-")
            span = range(int(first), int(last or first) + 1)
            if not span or span[-1] >= _MOST_PATCHES:
                raise ValueError
            numbers += span
        return numbers
    except ValueError:
        raise UsageError(
            f"--missing {which!r}: give a share such as 0.3, or patches such as 3,5-8,12"
        ) from None


def _read(archive: Archive, key: str, layer: str) -> bytes:
    return archive.get(key) if layer == "exact" else archive.gist(key).encode("utf-8", "replace")


def _json_line(archive: Archive, key: str, layer: str) -> bytes:
    from colazip.archive.record import Record
    from colazip.tables.common import decode_text, json_text

    text = decode_text(Record(_read(archive, key, layer), key), advice="leave out --json")
    return json_text({"id": key, "text": text, "metadata": archive.metadata(key)}) + b"\n"


def _known_ids(archive: Archive) -> str:
    """A few ids, as help for one that isn't there."""
    shown = [repr(key[:40]) for key, _ in zip(archive.ids(), range(3), strict=False)]
    more = len(archive) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "") if shown else "none"
