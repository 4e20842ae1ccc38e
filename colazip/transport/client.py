"""Reads and searches archives that `colazip serve` serves. Needs no model."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.flight as fl

from colazip import errors
from colazip.archive.record import Hit
from colazip.errors import ColazipError, InputError, UsageError
from colazip.layers import EXACT
from colazip.remote import RemoteFile
from colazip.transport.answers import FILE_BYTES, HITS, from_batch
from colazip.transport.requests import (
    MAX_READ_BYTES,
    BytesRequest,
    RecordsRequest,
    Request,
    SearchRequest,
    check_token,
    one_line,
    spell,
)

_SCHEMES = ("grpc://", "grpc+tcp://", "grpc+tls://", "grpc+unix://")
_TIMEOUT = 120.0
_MAX_ARCHIVES = 100_000
_MAX_BATCHES = 10_000  # of hits; empty ones among them
_MAX_DESCRIPTION = 1 << 16
_MAX_PEM = 1 << 20
_MAX_MESSAGE = 1000
# Errors that a server may name, by their names.
_RAISED = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ColazipError)
}


@dataclass(frozen=True)
class ArchiveInfo:
    """What a server says of an archive. size: of its file, in bytes. fingerprint: SHA-256 in hex that stands
    for all that is in it. model: id of what it was packed with. decoded: whether the server has that model,
    so that it can send text and search by meaning. text_bytes: of the records' texts."""

    name: str
    size: int
    fingerprint: str
    layers: tuple[str, ...]
    model: str
    records: int
    text_bytes: int
    decoded: bool


def connect(
    location: str,
    token: str | None = None,
    tls_root: str | os.PathLike[str] | None = None,
    *,
    timeout: float | None = _TIMEOUT,
) -> ArchiveClient:
    """A client of the server at `location`: `grpc://host:port`, or `grpc+tls://` where it has a certificate.

    token: what the server asks for. tls_root: file in PEM of the authority that signed the certificate, or of
    that itself; None for those that are known publicly. timeout: seconds that a call may take, but for
    records, which come for as long as they are read; None for no limit. Connects with the first call. Raises
    UsageError for what is no location or token, InputError for a file that can't be read.
    """
    return ArchiveClient(location, token, tls_root, timeout=timeout)


class ArchiveClient:
    """Archives of one server; a context manager. `connect` makes it.

    Every method raises InputError where the server can't be reached or sends what it should not, UsageError
    for a request that it refuses, and what `Archive` raises where the server does.
    """

    def __init__(
        self,
        location: str,
        token: str | None = None,
        tls_root: str | os.PathLike[str] | None = None,
        *,
        timeout: float | None = _TIMEOUT,
        max_message: int | None = None,
    ) -> None:
        if not isinstance(location, str) or not location.startswith(_SCHEMES):
            raise UsageError(f"{location!r} is no location; give one like grpc://127.0.0.1:8815")
        self.location = location
        headers = [] if token is None else [(b"authorization", f"Bearer {check_token(token)}".encode())]
        self._options = fl.FlightCallOptions(timeout=timeout, headers=headers)
        self._stream_options = fl.FlightCallOptions(headers=headers)
        limits = [] if max_message is None else [("grpc.max_receive_message_length", max_message)]
        roots = None if tls_root is None else _pem(tls_root)
        try:
            self._client = fl.FlightClient(location, tls_root_certs=roots, generic_options=limits)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{location!r} is no location: {_message(error)}") from None

    def __enter__(self) -> ArchiveClient:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def names(self) -> list[str]:
        """Names of the archives."""
        return [info.name for info in self._described(b"")]

    def info(self, name: str) -> ArchiveInfo:
        """What there is to know about one of them."""
        found = self._described(name.encode("utf-8", "replace"))
        if len(found) != 1:
            raise InputError(f"{self.location}: described {len(found)} archives in place of {name!r}")
        return found[0]

    def to_arrow(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
        *,
        where: str | None = None,
        layer: str = EXACT,
        binary: bool = False,
    ) -> pa.RecordBatchReader:
        """Records as `Archive.to_arrow` has them, decoded by the server while they are read."""
        if isinstance(columns, str):
            raise UsageError(f"columns are a list of names, not the text {columns!r}")
        chosen = None if columns is None else tuple(columns)
        request = RecordsRequest(name, chosen, start, stop, where, layer, binary)
        with self._telling():
            reader = self._client.do_get(fl.Ticket(spell(request)), self._stream_options)
            schema = reader.schema
        if chosen is not None and tuple(schema.names) != chosen:
            reader.cancel()
            raise InputError(f"{self.location}: sent other columns than were asked for: {schema.names}")
        return pa.RecordBatchReader.from_batches(schema, self._batches(reader))

    def search(
        self,
        name: str,
        query: str,
        k: int = 10,
        mode: str | None = None,
        where: str | None = None,
        *,
        group: bool = True,
        snippets: bool = True,
    ) -> list[Hit]:
        """Hits as `Archive.search` has them, but that metadata are what JSON has: a date is a text."""
        return self._hits(SearchRequest(name, query, None, k, mode, where, group=group, snippets=snippets))

    def similar(
        self, name: str, id: str, k: int = 10, where: str | None = None, *, snippets: bool = True
    ) -> list[Hit]:
        """Hits as `Archive.similar` has them."""
        return self._hits(SearchRequest(name, None, id, k, None, where, snippets=snippets))

    def read(self, name: str, offset: int, length: int, fingerprint: str | None = None) -> bytes:
        """`length` bytes of an archive's file, at most 16 MiB. fingerprint: of `info`; the server refuses if
        the archive is another by now."""
        batches = self._get(BytesRequest(name, offset, length, fingerprint), FILE_BYTES, 1)
        data = b"".join(value.as_py() or b"" for batch in batches for value in batch.column(0))
        if len(data) != length:
            raise InputError(f"{self.location}: sent other than the {length:,} bytes of {name!r} asked for")
        return data

    def _described(self, body: bytes) -> list[ArchiveInfo]:
        found: list[ArchiveInfo] = []
        with self._telling():
            for result in self._client.do_action(fl.Action("describe", body), self._options):
                if len(found) >= _MAX_ARCHIVES:
                    raise InputError(f"{self.location}: describes over {_MAX_ARCHIVES:,} archives")
                found.append(self._info(result.body.to_pybytes()))
        return found

    def _info(self, data: bytes) -> ArchiveInfo:
        try:
            if len(data) > _MAX_DESCRIPTION:
                raise ValueError
            value = json.loads(data)
            info = ArchiveInfo(
                name=_typed(value["archive"], str),
                size=_typed(value["size"], int),
                fingerprint=_typed(value["fingerprint"], str),
                layers=tuple(_typed(layer, str) for layer in _typed(value["layers"], list)),
                model=_typed(value["model"]["id"], str),
                records=_typed(value["records"], int),
                text_bytes=_typed(value["text_bytes"], int),
                decoded=_typed(value["decoded"], bool),
            )
            if min(info.size, info.records, info.text_bytes) < 0:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{self.location}: its description of an archive can't be read") from None
        return info

    def _hits(self, request: SearchRequest) -> list[Hit]:
        batches = self._get(request, HITS, request.k)
        try:
            return [hit for batch in batches for hit in from_batch(batch)]
        except InputError as error:
            raise InputError(f"{self.location}: {error}") from None

    def _get(self, request: Request, schema: pa.Schema, rows: int) -> list[pa.RecordBatch]:
        """All that a ticket gives: batches of that schema, of at most so many rows together."""
        with self._telling():
            reader = self._client.do_get(fl.Ticket(spell(request)), self._options)
            found = reader.schema
        if found != schema:
            reader.cancel()
            raise InputError(f"{self.location}: sent other columns than were asked for")
        batches: list[pa.RecordBatch] = []
        with closing(self._batches(reader)) as sent:
            for batch in sent:
                batches.append(batch)
                rows -= batch.num_rows
                if rows < 0 or len(batches) > _MAX_BATCHES:
                    raise InputError(f"{self.location}: sent more rows than were asked for")
        return batches

    def _batches(self, reader: fl.FlightStreamReader) -> Generator[pa.RecordBatch, None, None]:
        try:
            while True:
                with self._telling():
                    try:
                        batch = reader.read_chunk().data
                    except StopIteration:
                        return
                    if batch is None:
                        raise InputError(f"{self.location}: sent a message without records")
                    batch.validate(full=True)  # offsets that point outside would crash who reads them
                yield batch
        finally:
            reader.cancel()  # where it was not read to its end, the server need not go on

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Within, errors of Flight become those of colazip."""
        try:
            yield
        except fl.FlightUnauthenticatedError as error:
            raise UsageError(f"{self.location}: refused: {_message(error)}; give its token") from None
        except fl.FlightUnavailableError as error:
            raise InputError(f"{self.location}: can't be reached: {_message(error)}") from None
        except fl.FlightTimedOutError:
            raise InputError(f"{self.location}: did not answer in time") from None
        except (pa.ArrowException, OSError) as error:
            kind = _RAISED.get(getattr(error, "extra_info", b"").decode("ascii", "replace"), InputError)
            raise kind(f"{self.location}: {_message(error)}") from None


class RemoteBytes:
    """The bytes of an archive's file on a server: what reads them needs no codec there.

    name: of the archive. token, tls_root, timeout: as of `connect`. size: of the file, in bytes. Raises
    InputError where the server can't be reached, refuses, or serves another archive of the name than it did
    when this was made. Threads may share it.
    """

    def __init__(
        self,
        location: str,
        name: str,
        token: str | None = None,
        tls_root: str | os.PathLike[str] | None = None,
        *,
        timeout: float | None = _TIMEOUT,
    ) -> None:
        self.name = name
        # So that a server can't send more than is asked for.
        most = MAX_READ_BYTES + (1 << 20)
        self._client = ArchiveClient(location, token, tls_root, timeout=timeout, max_message=most)
        try:
            with _as_input_error():
                self.info = self._client.info(name)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        return self.info.size

    def __enter__(self) -> RemoteBytes:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on, by as many tickets as it takes."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InputError(f"{self.name}: has {self.size:,} bytes, not {length:,} from {offset:,} on")
        pieces = []
        for start in range(offset, offset + length, MAX_READ_BYTES):
            some = min(MAX_READ_BYTES, offset + length - start)
            with _as_input_error():
                pieces.append(self._client.read(self.name, start, some, self.info.fingerprint))
        return b"".join(pieces)


def open_served(url: str, options: Mapping[str, Any] | None = None) -> RemoteFile:
    """The file of the archive at `grpc://host:port/name`, for `Archive` to read. options: token and tls_root,
    as of `connect`; where there are none, those that the environment has in COLAZIP_TOKEN and
    COLAZIP_TLS_ROOT. Raises UsageError for a URL or an option that is none, InputError as `RemoteBytes`."""
    given = {
        "token": os.environ.get("COLAZIP_TOKEN") or None,
        "tls_root": os.environ.get("COLAZIP_TLS_ROOT") or None,
    } | dict(options or {})
    if unknown := given.keys() - {"token", "tls_root"}:
        raise UsageError(f"{url}: takes the options token and tls_root, not {', '.join(sorted(unknown))}")
    location, _, name = url.partition("://")
    host, _, name = name.partition("/")
    if not host or not name:
        raise UsageError(f"{url}: names no archive on a server; give one like grpc://127.0.0.1:8815/corpus")
    remote = RemoteBytes(f"{location}://{host}", unquote(name), given["token"], given["tls_root"])
    return RemoteFile(url, remote.size, lambda first, stop: remote.read(first, stop - first), remote.close)


@contextmanager
def _as_input_error() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise InputError(str(error)) from None


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError
    return value


def _pem(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_PEM + 1)
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: can't be read: {error.strerror or error}") from None
    if len(data) > _MAX_PEM or b"-----BEGIN CERTIFICATE-----" not in data:
        raise InputError(f"{os.fspath(path)}: holds no certificate in PEM")
    return data


def _message(error: Exception) -> str:
    """What the server said, on one line, without what gRPC and Arrow put around it."""
    text = str(error).split(". gRPC client debug context", 1)[0]
    text = text.split(". Detail: Python exception", 1)[0]
    text = text.removeprefix("Flight returned unavailable error, with message: ")
    before, separator, detail = text.rpartition(". Detail: ")
    text = before if separator and detail.isalpha() else text
    return one_line(text, _MAX_MESSAGE) or type(error).__name__
