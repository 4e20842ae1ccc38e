"""Several archives into one: their groups copied as they are, nothing coded anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from colazip.archive.format import FORMAT_VERSION, MAX_ABRIDGED, ROWS, Manifest
from colazip.archive.output import AtomicFile
from colazip.archive.reader import Archive
from colazip.archive.record import PackSummary
from colazip.archive.rows import with_ids
from colazip.archive.writer import Container, KnownIds, check_source, own_ids
from colazip.errors import InputError, UsageError
from colazip.version import __version__

# What one reader has to know of all groups alike, and how a person calls it.
_SAME = (
    ("codec_id", "model"),
    ("layers", "layers"),
    ("code_bytes", "size of search codes"),
    ("conditional", "way to code gists"),
)
_ORIGINS = ("files", "table")  # what still describes the records of several sources of one kind


Progress = Callable[[int, int], None]


def merge(
    out: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    overwrite: bool,
    progress: Progress | None,
    source: Mapping[str, Any] | None = None,
) -> PackSummary:
    """What `Archive.merge` does. One archive is open at a time: there may be more than a process may open."""
    if isinstance(paths, str | bytes | os.PathLike) or not paths:
        raise UsageError("a merge takes a list of archives, at least one")
    manifests = _manifests(paths)
    origin = _common_source(manifests) if source is None else check_source(source)
    known = KnownIds()
    records = text_bytes = 0
    with AtomicFile(out, overwrite) as file:
        container = Container(file)
        embedder = manifests[0].embedder
        for path, manifest in zip(paths, manifests, strict=True):
            with Archive(path) as archive:
                if archive.manifest != manifest:
                    raise InputError(f"{archive.path}: was changed meanwhile; merge again")
                for number in range(len(manifest.groups)):
                    records += copy_group(container, archive, number, records, known)
                    if progress is not None:
                        progress(records, text_bytes)
                text_bytes += manifest.text_bytes
        if embedder is not None:
            with Archive(paths[0]) as first:
                embedder = container.copy_codebook(first._store, embedder)
        abridged = "; ".join(dict.fromkeys(m.abridged for m in manifests if m.abridged))
        merged = replace(
            manifests[0],
            writer=__version__,
            text_bytes=text_bytes,
            source=origin,
            groups=tuple(container.groups),
            embedder=embedder,
            abridged=abridged[:MAX_ABRIDGED] or None,
        )
        container.finish(merged)
        return PackSummary(records, merged.parts, merged.blocks, text_bytes, file.size)


def _manifests(paths: Sequence[str | os.PathLike[str]]) -> list[Manifest]:
    """Of all, which go together. Raises UsageError, or as opening an archive does."""
    found: list[Manifest] = []
    for path in paths:
        with Archive(path) as archive:
            found.append(archive.manifest)
            _check_alike(os.fspath(paths[0]), found[0], archive.path, archive.manifest)
    return found


def _check_alike(first: str, mine: Manifest, other: str, its: Manifest) -> None:
    """Raises UsageError unless a reader can take the groups of both for those of one archive."""
    if its.version != FORMAT_VERSION:
        raise UsageError(f"{other}: is of format {its.version}, an older one; pack its source again")
    for name, called in _SAME:
        if getattr(mine, name) != getattr(its, name):
            its_own, own = (_said(getattr(manifest, name)) for manifest in (its, mine))
            raise UsageError(
                f"{other}: has another {called} than {first} ({its_own}, not {own});"
                " what is merged has to be packed alike"
            )
    if (mine.embedder is None) != (its.embedder is None) or (
        mine.embedder is not None
        and its.embedder is not None
        and (replace(mine.embedder, section=its.embedder.section), mine.embedder.section.crc)
        != (its.embedder, its.embedder.section.crc)
    ):
        raise UsageError(
            f"{other}: its search codes have another codebook than those of {first}, as each"
            " archive of one's own embedder has; pack all records into one"
        )


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value)[:16]


def _common_source(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What all say of where the records came from, but for its name; nothing unless it still holds of all."""
    named, *others = ({k: v for k, v in m.source.items() if k != "name"} for m in manifests)
    if len(manifests) == 1:
        return manifests[0].source
    alike = all(other == named for other in others)
    return named if alike and named.get("kind") in _ORIGINS else {}


def copy_group(
    container: Container,
    archive: Archive,
    number: int,
    first: int,
    known: KnownIds,
    numbers_are_ids: bool = False,
) -> int:
    """One group behind the records that are there, `first` of them; returns how many it has.

    numbers_are_ids: records that go by their numbers keep those; else they are numbered on.
    """
    store, group = archive._store, archive.manifest.groups[number]
    own = store.tables(number)[1].own_ids(0, group.records)
    # Where records have ids of their own, those that happen to be their numbers are such, too.
    if numbers_are_ids or group.named or "id_column" in archive.source:
        names = store.names(number, 0, group.records)
        own = own_ids(names, first)
    try:
        named = known.add(own, first)
    except InputError as error:
        raise InputError(f"{archive.path}: {error}") from error
    moved = first != store.first_records[number]
    for section in group.sections.values():
        if section.kind != ROWS or not moved:
            container.add_section(section.kind, store.read_chunks(section))
    if moved:
        rows = store.read_section(group.sections[ROWS]) if ROWS in group.sections else None
        changed = with_ids(rows, group.records, own if named else None)
        if changed is not None:
            container.add_section(ROWS, [changed])
    container.end_group(group.records, group.parts, group.blocks, named)
    return group.records
