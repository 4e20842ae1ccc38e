"""What client and server say: a request is one JSON object, in a ticket or a command, checked before anything
is done; a token stands in a header; an error is one line.

`docs/transport.md` has the table of fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, NoReturn

from colazip.errors import UsageError
from colazip.layers import EXACT, GIST

MAX_REQUEST_BYTES = 1 << 16
MAX_HITS = 1000
MAX_SHOWN = 100  # hits with snippets: text is decoded for each
MAX_READ_BYTES = 1 << 24  # of one ticket of the kind bytes
_MAX_NUMBER = 1 << 62

RECORDS, SEARCH, BYTES = "records", "search", "bytes"


@dataclass(frozen=True)
class RecordsRequest:
    """Records as `Archive.to_arrow` has them."""

    kind: ClassVar[str] = RECORDS
    archive: str
    columns: tuple[str, ...] | None = None
    start: int = 0
    stop: int | None = None
    where: str | None = None
    layer: str = EXACT
    binary: bool = False


@dataclass(frozen=True)
class SearchRequest:
    """Hits of `Archive.search` for `query`, or of `Archive.similar` for the record `like`: one of the two."""

    kind: ClassVar[str] = SEARCH
    archive: str
    query: str | None = None
    like: str | None = None
    k: int = 10
    mode: str | None = None
    where: str | None = None
    group: bool = True
    snippets: bool = True

    def __post_init__(self) -> None:
        if (self.query is None) == (self.like is None):
            raise UsageError("search: give either 'query' or 'like'")
        if self.snippets and self.k > MAX_SHOWN:
            raise UsageError(f"search: 'k' over {MAX_SHOWN} goes with 'snippets' false")
        if self.like is not None and (self.mode not in (None, "semantic") or not self.group):
            raise UsageError("search: 'like' finds records by meaning; leave out 'mode' and 'group'")


@dataclass(frozen=True)
class BytesRequest:
    """`length` bytes of the archive's file. fingerprint: that `describe` gave, to be told if it changed."""

    kind: ClassVar[str] = BYTES
    archive: str
    offset: int
    length: int
    fingerprint: str | None = None


Request = RecordsRequest | SearchRequest | BytesRequest
_KINDS: dict[str, type[Request]] = {kind.kind: kind for kind in (RecordsRequest, SearchRequest, BytesRequest)}


def parse(data: bytes) -> Request:
    """The request that `data` spells. Raises UsageError, naming the field, for anything else."""
    found = _object(data)
    kind = found.pop("kind", RECORDS)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UsageError(f"the request is of kind {_shown(kind)}; there are {', '.join(_KINDS)}")
    known = {field.name: field for field in fields(_KINDS[kind])}
    for name in found:
        if name not in known:
            raise UsageError(f"{kind}: has no field {_shown(name)}; it has {', '.join(known)}")
    for name, field in known.items():
        if name not in found and field.default is MISSING:
            raise UsageError(f"{kind}: lacks the field {name!r}")
    values = {name: _checked(kind, name, value, known[name].default) for name, value in found.items()}
    return _KINDS[kind](**values)


def spell(request: Request) -> bytes:
    """The JSON of a request, without fields that have their defaults. Raises UsageError if it is too long."""
    given = ((field, getattr(request, field.name)) for field in fields(request))
    values = {field.name: value for field, value in given if value != field.default}
    try:
        data = json.dumps({"kind": request.kind, **values}, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{request.kind}: can't be sent as JSON: {error}") from None
    if len(data) > MAX_REQUEST_BYTES:
        raise UsageError(f"the request has {len(data):,} bytes; at most {MAX_REQUEST_BYTES:,} are read")
    return data


def _object(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_REQUEST_BYTES:
        raise UsageError(f"the request has {len(data):,} bytes; at most {MAX_REQUEST_BYTES:,} are read")
    try:
        found = json.loads(data.decode(), object_pairs_hook=_without_repeats, parse_constant=_no_number)
    except (ValueError, RecursionError):  # RecursionError: brackets by the thousand
        raise UsageError('the request is no JSON in UTF-8; send an object like {"archive": "NAME"}') from None
    if not isinstance(found, dict):
        raise UsageError('the request is JSON, but no object; send one like {"archive": "NAME"}')
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UsageError("the request names a field twice; give each once")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _checked(kind: str, name: str, value: Any, default: Any) -> Any:
    if value is None and default is None:
        return None
    what, fits = _FIELDS[name]
    if not fits(value):
        raise UsageError(f"{kind}: field {name!r} is {what}, not {_shown(value)}")
    return tuple(value) if isinstance(value, list) else value


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        return False
    return True


def _is_names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(map(_is_text, value))
        and len(set(value)) == len(value)
    )


def _is_whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_TEXT = ("a text", _is_text)
_FLAG = ("true or false", _is_flag)
_PLACE = ("a whole number", _is_whole(-_MAX_NUMBER, _MAX_NUMBER))
# What a field has to be, in words and as a check; names mean the same in every kind.
_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "archive": _TEXT,
    "columns": ("a list of names, each once", _is_names),
    "start": _PLACE,
    "stop": _PLACE,
    "where": _TEXT,
    "layer": ("exact or gist", lambda value: isinstance(value, str) and value in (EXACT, GIST)),
    "binary": _FLAG,
    "query": _TEXT,
    "like": _TEXT,
    "k": (f"a number from 1 to {MAX_HITS:,}", _is_whole(1, MAX_HITS)),
    "mode": _TEXT,
    "group": _FLAG,
    "snippets": _FLAG,
    "offset": ("a number from 0", _is_whole(0, _MAX_NUMBER)),
    "length": (f"a number from 1 to {MAX_READ_BYTES:,}", _is_whole(1, MAX_READ_BYTES)),
    "fingerprint": _TEXT,
}


def _shown(value: Any) -> str:
    """The beginning of what was sent, for a message."""
    text = ascii(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_token(token: str) -> str:
    """The token, if it can stand in a header: UsageError unless it is 1 to 1,000 visible ASCII characters."""
    fits = isinstance(token, str) and 1 <= len(token) <= 1000
    if not fits or not all("!" <= char <= "~" for char in token):
        raise UsageError("a token is 1 to 1,000 characters of ASCII, without spaces")
    return token


def one_line(text: str, most: int) -> str:
    """At most so many characters of `text`, all printable, on one line."""
    start = text[: 2 * most]
    line = " ".join("".join(char if char.isprintable() else " " for char in start).split())
    line = line.encode("utf-8", "replace").decode()
    return line if len(line) <= most else line[: most - 3] + "..."
