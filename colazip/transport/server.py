"""An Arrow Flight server that lets other machines read and search archives. It writes nothing."""

from __future__ import annotations

import hmac
import json
import logging
import os
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.flight as fl

from colazip.archive import Archive
from colazip.archive.selection import Places
from colazip.arrow import VECTOR, Columns, batches_of, columns_of, records_for
from colazip.errors import ColazipError, FormatError, InputError, ModelError, ModelMismatchError, UsageError
from colazip.layers import EXACT, ArchiveCodec, in_batches
from colazip.oneshot import default_codec
from colazip.remote import absolute
from colazip.transport.answers import FILE_BYTES, HITS, to_batch
from colazip.transport.requests import (
    BytesRequest,
    RecordsRequest,
    Request,
    SearchRequest,
    check_token,
    one_line,
    parse,
    spell,
)

DESCRIBE = "describe"

_RANGE_RECORDS = 16_384  # of an endpoint, more where that made more than so many endpoints:
_MAX_ENDPOINTS = 256
_BATCH_ROWS = 1024
_BATCH_BYTES = 1 << 20  # of text, about: clients in some languages take no message over 4 MiB
_BLOCKS_AT_ONCE = 4  # others wait as long; a codec that decodes all it can together is a tenth faster
_MAX_MESSAGE = 400  # characters of an error: gRPC sends it several times over, in 8 KiB
_MAX_NAME = 200

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class ArchiveServer(fl.FlightServerBase):
    """Serves archives from the moment it is made until `stop`; a context manager.

    archives: name -> path. They stay open, so a file that is removed or replaced is served as it was. host,
    port: where to listen; port 0 lets the system pick (`location` tells). codec: decodes those archives that
    were packed with its model, None for the default model of the package; the others can be read as bytes
    and, without the text, as records (`undecoded` names them). token: what clients must send as
    `authorization: Bearer TOKEN`. tls: files in PEM, of the certificate and its key.

    Calls run side by side in threads, but one at a time uses archives and codec, a block's worth of decoding
    or a search long. Raises UsageError for a bad name, token or port, InputError if it can't listen there or
    the certificate doesn't load, and what `Archive` raises.
    """

    def __init__(
        self,
        archives: Mapping[str, str | os.PathLike[str]],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        codec: ArchiveCodec | None = None,
        token: str | None = None,
        tls: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
    ) -> None:
        middleware = {} if token is None else {"token": _TokenCheck(check_token(token))}
        certificates = None if tls is None else [_certificate(*tls)]
        _check_address(host, port)
        self._archives: dict[str, Archive] = {}
        self._columns: dict[tuple[str, bool], Columns] = {}
        self._lock = threading.Lock()  # of archives and codec, whose caches and networks have none
        self._stopping = False
        try:
            for name, path in archives.items():
                # Absolute, so that it can be told from other words where an error names it.
                self._archives[_check_name(name)] = _opened(absolute(path), codec)
            self._scheme = "grpc" if tls is None else "grpc+tls"
            self.host = host
            try:
                super().__init__(
                    self._location(port),
                    tls_certificates=certificates,
                    middleware=middleware,
                )
            except pa.ArrowException as error:
                raise InputError(
                    f"{host}:{port}: can't listen there: {one_line(str(error), _MAX_MESSAGE)}"
                ) from None
        except BaseException:
            self._close_archives()
            raise

    @property
    def location(self) -> str:
        """Where clients find it: `grpc://host:port`, or `grpc+tls://`."""
        return self._location(self.port)

    def _location(self, port: int) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{port}"

    @property
    def names(self) -> list[str]:
        """Of the archives."""
        return list(self._archives)

    @property
    def undecoded(self) -> dict[str, str]:
        """Name -> why not, for archives whose text can't be decoded and that can't be searched here."""
        return {
            name: f"packed with model {archive.manifest.codec_name} ({archive.model_id[:16]})"
            for name, archive in self._archives.items()
            if archive._codec is None
        }

    def stop(self, grace: float = 5.0) -> bool:
        """Take no more calls, end streams at their next batch, and close the archives. False if calls are
        still running after `grace` seconds, as where a client holds a stream without reading it. Arrow then
        waits for that client, also at the end of the program; `os._exit` does not."""
        self._stopping = True
        ending = threading.Thread(target=super().shutdown, daemon=True)
        ending.start()
        ending.join(grace)
        if ending.is_alive():
            return False
        self._close_archives()
        return True

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def list_flights(self, context: fl.ServerCallContext, criteria: bytes) -> Iterator[fl.FlightInfo]:
        """A flight for each archive. One whose columns can't be told has none, and no endpoints."""
        with self._flight_errors():
            if criteria:
                raise UsageError("listing takes no criteria; leave them out")
            return iter([self._listed(name) for name in self._archives])

    def get_flight_info(
        self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor
    ) -> fl.FlightInfo:
        """The schema, and tickets that give all of what a path [name] or a command (a request) asks for."""
        with self._flight_errors():
            return self._info(descriptor, _requested(descriptor))

    def get_schema(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> fl.SchemaResult:
        """The schema alone."""
        with self._flight_errors():
            return fl.SchemaResult(self._schema(_requested(descriptor)))

    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:
        """What the request in the ticket asks for."""
        with self._flight_errors():
            request = parse(ticket.ticket)
            archive = self._archive(request)
            if isinstance(request, RecordsRequest):
                columns = self._columns_of(request)
                return fl.GeneratorStream(columns.schema, self._records(archive, columns, request))
            batch = (
                self._hits(archive, request)
                if isinstance(request, SearchRequest)
                else self._bytes(archive, request)
            )
            return fl.RecordBatchStream(pa.Table.from_batches([batch]))

    def list_actions(self, context: fl.ServerCallContext) -> list[tuple[str, str]]:
        """The one there is."""
        return [(DESCRIBE, "JSON about the archive named in the body, or about each where it is empty.")]

    def do_action(self, context: fl.ServerCallContext, action: fl.Action) -> Iterator[bytes]:
        """`describe`: what `docs/transport.md` says of an archive, as JSON."""
        with self._flight_errors():
            if action.type != DESCRIBE:
                raise UsageError(f"there is no action {action.type[:80]!r}, only {DESCRIBE!r}")
            named = action.body.to_pybytes()
            names = [self._named(named)] if named else list(self._archives)
            return iter([json.dumps(_described(name, self._archives[name])).encode() for name in names])

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Refused: a server of archives only gives."""
        raise _refusal("archives are read here, not written; pack them where they lie", UsageError)

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Refused, as `do_put`."""
        raise _refusal("archives are read here by tickets; there is no exchange", UsageError)

    def _records(
        self, archive: Archive, columns: Columns, request: RecordsRequest
    ) -> Iterator[pa.RecordBatch]:
        with self._flight_errors():
            records = records_for(
                archive,
                columns,
                start=request.start,
                stop=request.stop,
                where=request.where,
                layer=request.layer,
            )
            found = batches_of(
                self._one_at_a_time(records),
                columns,
                layer=request.layer,
                rows=_BATCH_ROWS,
                text_bytes=_BATCH_BYTES,
            )
        while True:
            with self._flight_errors():
                batch = next(found, None)
            if batch is None:
                return
            yield batch

    def _one_at_a_time(self, items: Iterator[_T]) -> Iterator[_T]:
        """The items, each made while no other call uses archives or codec, none once the server stops."""
        while True:
            with self._lock:
                self._check_open()
                item = next(items, None)
            if item is None:
                return
            yield item

    def _hits(self, archive: Archive, request: SearchRequest) -> pa.RecordBatch:
        with self._lock:
            self._check_open()
            if request.like is not None:
                hits = archive.similar(request.like, request.k, request.where, snippets=request.snippets)
            else:
                hits = archive.search(
                    request.query or "",
                    request.k,
                    request.mode,
                    request.where,
                    group=request.group,
                    snippets=request.snippets,
                )
        return to_batch(hits)

    def _bytes(self, archive: Archive, request: BytesRequest) -> pa.RecordBatch:
        if request.fingerprint not in (None, archive._store.fingerprint):
            raise InputError(f"{request.archive}: is not the archive it was; open it again")
        size = archive._store.file_bytes
        if request.offset + request.length > size:
            raise UsageError(
                f"{request.archive}: has {size:,} bytes, not {request.length:,} from {request.offset:,} on"
            )
        data = archive._store.read(request.offset, request.length)
        return pa.RecordBatch.from_arrays([pa.array([data], pa.binary())], schema=FILE_BYTES)

    def _listed(self, name: str) -> fl.FlightInfo:
        descriptor = fl.FlightDescriptor.for_path(name)
        try:
            return self._info(descriptor, RecordsRequest(name))
        except ColazipError:
            return fl.FlightInfo(pa.schema([]), descriptor, [], len(self._archives[name]), -1)

    def _info(self, descriptor: fl.FlightDescriptor, request: Request) -> fl.FlightInfo:
        schema = self._schema(request)
        if not isinstance(request, RecordsRequest):
            return fl.FlightInfo(schema, descriptor, [fl.FlightEndpoint(spell(request), [])], -1, -1)
        records = total = -1
        tickets = [request]
        if request.where is None:
            archive = self._archive(request)
            span = range(len(archive))[request.start : request.stop]
            tickets = [replace(request, start=part.start, stop=part.stop) for part in _parts(span)]
            records = len(span)
            whole = records == len(archive) and request.layer == EXACT
            total = archive.manifest.text_bytes if whole and self._columns_of(request).reads_text else -1
        endpoints = [fl.FlightEndpoint(spell(ticket), []) for ticket in tickets]
        return fl.FlightInfo(schema, descriptor, endpoints, records, total)

    def _schema(self, request: Request) -> pa.Schema:
        self._archive(request)
        if isinstance(request, RecordsRequest):
            return self._columns_of(request).schema
        return HITS if isinstance(request, SearchRequest) else FILE_BYTES

    def _columns_of(self, request: RecordsRequest) -> Columns:
        key = (request.archive, request.binary)
        with self._lock:
            self._check_open()
            if key not in self._columns:  # reads the row tables of all groups
                self._columns[key] = columns_of(self._archives[request.archive], binary=request.binary)
            columns = self._columns[key]
            if request.columns is not None and VECTOR in request.columns:
                columns = columns.with_vectors(self._archives[request.archive].vector_width)
        return columns if request.columns is None else columns.only(request.columns, request.archive)

    def _archive(self, request: Request) -> Archive:
        return self._archives[self._named(request.archive)]

    def _named(self, name: str | bytes) -> str:
        """The name of an archive, if it is one."""
        known = name.decode(errors="replace") if isinstance(name, bytes) else name
        if known not in self._archives:
            some = ", ".join(map(repr, list(self._archives)[:3])) or "none"
            more = f" and {len(self._archives) - 3:,} more" if len(self._archives) > 3 else ""
            raise UsageError(f"no archive {known[:80]!r} is served here; there is {some}{more}")
        return known

    def _check_open(self) -> None:
        if self._stopping:
            raise fl.FlightUnavailableError("the server is stopping")

    @contextmanager
    def _flight_errors(self) -> Iterator[None]:
        """Within, any failure becomes an error of Flight; pyarrow sends all others with their traceback."""
        try:
            yield
        except fl.FlightError:
            raise
        except ColazipError as error:
            raise _refusal(self._without_paths(str(error)), type(error)) from None
        except Exception as error:
            _log.exception("a request failed")
            raise fl.FlightInternalError(
                f"unexpected {type(error).__name__}; the server's log has more"
            ) from None

    def _without_paths(self, message: str) -> str:
        """Archives by their names: where they lie is no client's business."""
        for name, archive in self._archives.items():
            message = message.replace(archive.path, name)
        return message

    def _close_archives(self) -> None:
        for archive in self._archives.values():
            archive.close()


class _SharedArchive(Archive):
    """Decodes few blocks at a time, so that other calls come in between."""

    def _batches(self, places: Iterable[tuple[int, int]]) -> Iterator[Places]:
        return in_batches(places, min(self._model().read_batch, _BLOCKS_AT_ONCE))


class _TokenCheck(fl.ServerMiddlewareFactory):
    """Refuses every call without the token."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    def start_call(self, info: fl.CallInfo, headers: dict[str, list[str | bytes]]) -> None:
        given = headers.get("authorization", [])
        sent = [value.encode() if isinstance(value, str) else value for value in given]
        if len(sent) != 1 or not hmac.compare_digest(sent[0], self._expected):
            what = "another token than this server's" if sent else "no token"
            raise fl.FlightUnauthenticatedError(f"the call came with {what}", UsageError.__name__.encode())


def _check_name(name: str) -> str:
    if not 1 <= len(name) <= _MAX_NAME or not name.isprintable():
        raise UsageError(f"{name[:80]!r}: no name for an archive; give 1 to {_MAX_NAME} printable characters")
    return name


def _check_address(host: str, port: int) -> None:
    """Raises as `ArchiveServer` does where nothing can listen; gRPC would not say why."""
    if not 0 <= port < 1 << 16:
        raise UsageError(f"port {port}: give one from 0 to 65,535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as trial:
            if os.name == "posix":  # elsewhere it would let two listen on one port
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(
            f"{host}:{port}: can't listen there: {reason}; choose another host or port"
        ) from None


def _certificate(certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> tuple[bytes, bytes]:
    """Certificate and key in PEM, if they belong together."""
    where = f"{os.fspath(certificate)}, {os.fspath(key)}"
    try:
        # An empty password, or OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        with open(certificate, "rb") as cert_file, open(key, "rb") as key_file:
            return cert_file.read(), key_file.read()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InputError(f"{where}: no certificate and its key in PEM: {reason}") from None


def _opened(path: str, codec: ArchiveCodec | None) -> Archive:
    """The archive with the codec that reads it: the one given, or the default, or none."""
    for choose in (lambda: codec, default_codec):
        with suppress(ModelError, ModelMismatchError):
            chosen = choose()
            if chosen is not None:
                return _SharedArchive(path, chosen)
    return _SharedArchive(path)


def _requested(descriptor: fl.FlightDescriptor) -> Request:
    if descriptor.descriptor_type == fl.DescriptorType.CMD:
        return parse(descriptor.command)
    path = descriptor.path if descriptor.descriptor_type == fl.DescriptorType.PATH else []
    if len(path) != 1:
        raise UsageError("a descriptor is a path of one name, or a command of JSON")
    return RecordsRequest(path[0].decode(errors="replace"))


def _parts(span: range) -> list[range]:
    """Ranges that make up `span`, at most _MAX_ENDPOINTS, at least one."""
    step = max(_RANGE_RECORDS, -(-len(span) // _MAX_ENDPOINTS))
    return [span[at : at + step] for at in range(0, max(len(span), 1), step)]


def _described(name: str, archive: Archive) -> dict[str, Any]:
    manifest = archive.manifest
    return {
        "archive": name,
        "size": archive._store.file_bytes,
        "fingerprint": archive._store.fingerprint,
        "layers": list(archive.layers),
        "model": {"name": manifest.codec_name, "id": manifest.codec_id},
        "records": manifest.records,
        "text_bytes": manifest.text_bytes,
        "decoded": archive._codec is not None,
    }


def _refusal(message: str, kind: type[ColazipError]) -> fl.FlightError:
    """An error of Flight that a client of `colazip.transport` raises as `kind` again."""
    error = fl.FlightInternalError if issubclass(kind, FormatError | ModelError) else fl.FlightServerError
    return error(one_line(message, _MAX_MESSAGE), kind.__name__.encode())
