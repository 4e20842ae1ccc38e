"""Work on whole archives: verify and strip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from colazip.archive.blocks import drop_layers
from colazip.archive.format import BLOCKS
from colazip.archive.output import AtomicFile
from colazip.archive.writer import Container
from colazip.errors import FormatError, MissingLayerError, UsageError
from colazip.layers import EXACT, GIST, LAYERS, PLAIN, SEARCH, check_layers

if TYPE_CHECKING:
    from colazip.archive.reader import Archive


def verify(archive: Archive) -> dict[str, Any]:
    """What `Archive.verify` does."""
    manifest = archive.manifest
    sections = 0
    for number, group in enumerate(manifest.groups):
        # Blocks before sections: their checksums tell which records are hit.
        for block in range(group.blocks):
            archive._store.block(number, block, (*LAYERS, PLAIN))
        for section in group.sections.values():
            for _ in archive._store.read_chunks(section):
                pass
            sections += 1
    decoded = []
    if SEARCH in archive.layers:
        for _ in archive._codes():
            pass
        decoded.append(SEARCH)
    if GIST in archive.layers:
        for _ in archive.gists():
            pass
        decoded.append(GIST)
    if archive.holds_text:
        text_bytes = sum(len(record.data) for record in archive)
        if text_bytes != manifest.text_bytes:
            raise FormatError(f"{archive.path}: holds {text_bytes} bytes of text, not {manifest.text_bytes}")
        decoded.append(EXACT if EXACT in archive.layers else PLAIN)
    counts: dict[str, Any] = {
        "records": manifest.records,
        "parts": manifest.parts,
        "blocks": manifest.blocks,
        "sections": sections,
        "text_bytes": manifest.text_bytes,
        "decoded": decoded,
    }
    if (sidecar := archive._sidecar(strict=False)) is not None:
        counts["index_files"] = sidecar.check()
    return counts


def strip(archive: Archive, layers: Sequence[str], out: str | os.PathLike[str], overwrite: bool) -> None:
    """What `Archive.strip` does."""
    if isinstance(layers, str) or not layers or not set(layers) <= {*LAYERS, PLAIN}:
        raise UsageError(f"layers to strip must be among {', '.join((*LAYERS, PLAIN))}")
    if PLAIN in layers and PLAIN not in archive.layers and GIST in archive.layers:
        raise UsageError(f"{archive.path}: plain stands in for records that its gist does not have; keep it")
    for layer in layers:
        if layer not in archive.layers:
            raise MissingLayerError(f"{archive.path}: has no {layer} layer to strip")
    kept = check_layers([layer for layer in archive.layers if layer not in layers])
    conditional = archive.manifest.conditional and GIST in kept
    if conditional and SEARCH not in kept:
        raise UsageError(
            f"{archive.path}: its gist was coded given its search codes and can't be read without them; "
            "pack the source again without the layer search"
        )
    with AtomicFile(out, overwrite) as file:
        container = Container(file, archive.manifest.version)
        for group in archive.manifest.groups:
            for section in group.sections.values():
                if section.kind == BLOCKS:
                    table = drop_layers(archive._store.read_section(section), group, layers)
                    container.add_section(BLOCKS, [table])
                elif section.kind not in layers:
                    container.add_section(section.kind, archive._store.read_chunks(section))
            container.end_group(group.records, group.parts, group.blocks, group.named)
        embedder = archive.manifest.embedder if SEARCH in kept else None
        embedder = container.copy_codebook(archive._store, embedder)
        manifest = replace(
            archive.manifest,
            layers=kept,
            groups=tuple(container.groups),
            embedder=embedder,
            code_bytes=archive.manifest.code_bytes if SEARCH in kept else None,
            abridged=archive.manifest.abridged if GIST in kept else None,
            conditional=conditional,
        )
        container.finish(manifest)
