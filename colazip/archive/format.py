"""The container on disk: header, sections, manifest, footer. docs/FORMAT.md says the same in words.

    header | section | section | ... | codebook | manifest | footer

Sections lie back to back, so only their lengths are stored: an offset is the sum of the lengths before it,
and sections can neither overlap nor leave holes.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from colazip.errors import FormatError, VersionError
from colazip.layers import EXACT, GIST, LAYERS, PLAIN

_T = TypeVar("_T")

FORMAT_VERSION = 2  # written
OLDEST_VERSION = 1  # read

# The first byte isn't ASCII and the line end is Windows's, so a transfer in text mode shows at once.
MAGIC = b"\x8eCOLA\r\n"
HEADER = MAGIC + bytes([FORMAT_VERSION])

FOOTER = struct.Struct("<II8s")  # bytes of the manifest, its CRC-32, END
END = b"COLA\x1aEND"

MAX_MANIFEST_BYTES = 64 << 20
MAX_TABLE_BYTES = 256 << 20  # of one Arrow table, after decompression; its section isn't longer either

MAX_VECTOR_WIDTH = 1 << 16  # of another embedder's vectors
MAX_ABRIDGED = 100  # characters of what a manifest says of gists

BLOCKS = "blocks"
ROWS = "rows"
CODEBOOK = "codebook"  # one an archive, after all groups
SECTION_KINDS: tuple[str, ...] = (*LAYERS, PLAIN, BLOCKS, ROWS)  # the order inside a group


@dataclass(frozen=True)
class Section:
    """A run of bytes of the file. offset: from the start of the file; crc: CRC-32 of the bytes."""

    kind: str
    offset: int
    length: int
    crc: int


@dataclass(frozen=True)
class Group:
    """Blocks that share tables. A record never spans two groups. named: some record has an id of its own."""

    records: int
    parts: int
    blocks: int
    named: bool
    sections: Mapping[str, Section]


@dataclass(frozen=True)
class EmbedderInfo:
    """Whose vectors the search codes stand for, where they aren't the codec's own.

    width: of a vector, D. code_bytes: of a code, M. kind, section: how the codebook is kept, and where
    (`colazip.quantizer`).
    """

    name: str
    width: int
    code_bytes: int
    kind: str
    section: Section


@dataclass(frozen=True)
class Manifest:
    """All that a reader knows of the archive before it reads a section. version: of the file's format.

    code_bytes: of the codec's own search codes, where it knows several sizes. abridged: what the writer was
    told to leave out of gists, for people; None: nothing. conditional: whether gists were coded given the
    search codes beside them.
    """

    writer: str
    codec_id: str
    codec_name: str
    layers: tuple[str, ...]
    text_bytes: int
    source: dict[str, Any]
    groups: tuple[Group, ...]
    embedder: EmbedderInfo | None = None
    code_bytes: int | None = None
    abridged: str | None = None
    conditional: bool = False
    version: int = FORMAT_VERSION

    @property
    def records(self) -> int:
        return sum(group.records for group in self.groups)

    @property
    def parts(self) -> int:
        return sum(group.parts for group in self.groups)

    @property
    def blocks(self) -> int:
        return sum(group.blocks for group in self.groups)

    @property
    def end(self) -> int:
        """Offset of the first byte after the last section."""
        codebook = self.embedder.section.length if self.embedder else 0
        return _groups_end(self.groups) + codebook


def _groups_end(groups: Sequence[Group]) -> int:
    return len(HEADER) + sum(s.length for group in groups for s in group.sections.values())


def text_crc(parts: Iterable[bytes]) -> int:
    """CRC-32 over every part's length (u32, little-endian) and bytes: text moved between parts shows too."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, zlib.crc32(struct.pack("<I", len(part)), value))
    return value


def dump_manifest(manifest: Manifest) -> bytes:
    """Manifest and footer, ready to be written after the last section."""
    embedder: dict[str, Any] = {}
    if (own := manifest.embedder) is not None:
        embedder["embedder"] = {
            "name": own.name,
            "width": own.width,
            "code_bytes": own.code_bytes,
            "kind": own.kind,
            "codebook": [own.section.length, own.section.crc],
        }
    told = {
        "code_bytes": manifest.code_bytes,
        "abridged": manifest.abridged,
        "conditional": manifest.conditional or None,
    }
    packed = msgpack.packb(
        {
            "format": manifest.version,
            "writer": manifest.writer,
            "codec": {"id": manifest.codec_id, "name": manifest.codec_name},
            "layers": list(manifest.layers),
            "records": manifest.records,
            "parts": manifest.parts,
            "blocks": manifest.blocks,
            "text_bytes": manifest.text_bytes,
            "source": manifest.source,
            **embedder,
            **{name: value for name, value in told.items() if value is not None},
            "groups": [
                [
                    g.records,
                    g.parts,
                    g.blocks,
                    g.named,
                    [[s.kind, s.length, s.crc] for s in g.sections.values()],
                ]
                for g in manifest.groups
            ],
        }
    )
    assert isinstance(packed, bytes)
    return packed + FOOTER.pack(len(packed), zlib.crc32(packed), END)


def check_header(header: bytes) -> int:
    """The format version; tells a foreign file, a cut one and one of a newer format apart.

    header: the first bytes of the file.
    """
    if not header:
        raise FormatError("the file is empty, not a colazip archive")
    if header[: len(MAGIC)] != MAGIC[: len(header)]:
        raise FormatError("not a colazip archive (or its first bytes are damaged)")
    if len(header) < len(HEADER):
        raise FormatError("truncated: the file ends inside the header")
    version = header[len(MAGIC)]
    if version > FORMAT_VERSION:
        raise VersionError(
            f"format version {version} is newer than this release reads ({FORMAT_VERSION}); upgrade colazip"
        )
    if version < OLDEST_VERSION:
        raise FormatError(f"unknown format version {version}")
    return version


def check_footer(footer: bytes, file_bytes: int) -> tuple[int, int]:
    """(length, CRC-32) of the manifest. footer: the last FOOTER.size bytes of a file of file_bytes."""
    if file_bytes < len(HEADER) + FOOTER.size:
        raise FormatError("truncated: the file ends before the manifest")
    length, crc, end = FOOTER.unpack(footer)
    if end != END:
        raise FormatError("truncated (or its last bytes are damaged): the end mark is missing")
    if length > min(MAX_MANIFEST_BYTES, file_bytes - len(HEADER) - FOOTER.size):
        raise FormatError("damaged: the footer gives the manifest an impossible length")
    return length, crc


def load_manifest(packed: bytes, crc: int, file_bytes: int, version: int) -> Manifest:
    """Parse and check a manifest. crc: the footer's; file_bytes: of the whole file; version: the header's."""
    if zlib.crc32(packed) != crc:
        raise FormatError("damaged: the checksum of the manifest doesn't match")
    try:
        raw = msgpack.unpackb(packed, strict_map_key=True)
        json.dumps(raw)  # only JSON-like values: no timestamps, no extension types
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FormatError("damaged: the manifest can't be parsed") from error
    fields = _Fields(raw)
    fields.number("format", minimum=version, maximum=version)
    codec = _Fields(fields.get("codec", dict))
    layers = fields.get("layers", list)
    if (
        not all(isinstance(layer, str) for layer in layers)
        or [x for x in (*LAYERS, PLAIN) if x in layers] != layers
    ):
        raise FormatError("damaged: the manifest names unknown layers")
    if PLAIN in layers and (GIST in layers or EXACT in layers):
        raise FormatError("damaged: the manifest names layers that exclude each other")
    groups = _load_groups(fields.get("groups", list), layers)
    manifest = Manifest(
        writer=fields.get("writer", str),
        codec_id=codec.get("id", str),
        codec_name=codec.get("name", str),
        layers=tuple(layers),
        text_bytes=fields.number("text_bytes"),
        source=fields.get("source", dict),
        groups=groups,
        embedder=_load_embedder(fields, _groups_end(groups)),
        code_bytes=fields.number("code_bytes", 1, MAX_VECTOR_WIDTH) if "code_bytes" in fields else None,
        abridged=_load_abridged(fields),
        conditional=fields.get("conditional", bool) if "conditional" in fields else False,
        version=version,
    )
    for name in ("records", "parts", "blocks"):
        if fields.number(name) != getattr(manifest, name):
            raise FormatError(f"damaged: the groups don't add up to the manifest's number of {name}")
    if manifest.end + len(packed) + FOOTER.size != file_bytes:
        raise FormatError("damaged or truncated: the sections don't add up to the size of the file")
    return manifest


def _load_abridged(fields: _Fields) -> str | None:
    if "abridged" not in fields:
        return None
    told = fields.get("abridged", str)
    if len(told) > MAX_ABRIDGED or not told.isprintable():
        raise FormatError("damaged: field 'abridged' of the manifest is malformed")
    return told


class _Fields:
    """Typed access to a parsed map; a missing or mistyped field is damage."""

    def __init__(self, raw: Any) -> None:
        if not isinstance(raw, dict):
            raise FormatError("damaged: the manifest isn't a map")
        self._raw = raw

    def get(self, name: str, kind: type[_T]) -> _T:
        value = self._raw.get(name)
        if type(value) is not kind:
            raise FormatError(f"damaged: field {name!r} of the manifest is missing or malformed")
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def number(self, name: str, minimum: int = 0, maximum: int = (1 << 63) - 1) -> int:
        value = self.get(name, int)
        if not minimum <= value <= maximum:
            raise FormatError(f"damaged: field {name!r} of the manifest is out of range")
        return value


def _load_embedder(fields: _Fields, offset: int) -> EmbedderInfo | None:
    """The entry about another embedder, if there is one. offset: where its codebook begins."""
    if "embedder" not in fields:
        return None
    own = _Fields(fields.get("embedder", dict))
    width = own.number("width", 1, MAX_VECTOR_WIDTH)
    match own.get("codebook", list):
        case [int(length), int(crc)] if 0 <= length <= 1 << 30 and 0 <= crc < 1 << 32:
            section = Section(CODEBOOK, offset, length, crc)
        case _:
            raise FormatError("damaged: the codebook of the manifest is malformed")
    code_bytes = own.number("code_bytes", 1, width)
    return EmbedderInfo(own.get("name", str), width, code_bytes, own.get("kind", str), section)


def _load_groups(raw: list[Any], layers: Sequence[str]) -> tuple[Group, ...]:
    groups = []
    offset = len(HEADER)
    for item in raw:
        match item:
            case [int(records), int(parts), int(blocks), bool(named), list(sections)]:
                pass
            case _:
                raise FormatError("damaged: a group of the manifest is malformed")
        # Every record has a part and every block holds one; bool is an int to Python, but not here.
        if {type(records), type(parts), type(blocks)} != {int} or not (1 <= records <= parts >= blocks >= 1):
            raise FormatError("damaged: a group of the manifest has impossible counts")
        table: dict[str, Section] = {}
        for entry in sections:
            match entry:
                case [str(kind), int(length), int(crc)] if type(length) is int and type(crc) is int:
                    pass
                case _:
                    raise FormatError("damaged: a section of the manifest is malformed")
            if not 0 <= length < 1 << 62 or not 0 <= crc < 1 << 32:
                raise FormatError("damaged: a section of the manifest is out of range")
            table[kind] = Section(kind, offset, length, crc)
            offset += length
        kinds = [kind for kind in SECTION_KINDS if kind in table]
        if len(table) != len(sections) or list(table) != kinds or BLOCKS not in table:
            raise FormatError("damaged: a group of the manifest has unknown, repeated or missing sections")
        if any(kind in LAYERS and kind not in layers for kind in kinds):
            raise FormatError("damaged: a group has a layer that the manifest doesn't list")
        if any(table[kind].length > MAX_TABLE_BYTES for kind in (BLOCKS, ROWS) if kind in table):
            raise FormatError("damaged: a table of the archive is too long")
        groups.append(Group(records, parts, blocks, named, table))
    return tuple(groups)
