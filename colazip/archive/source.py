"""The bytes of an archive, in ranges: of a file here, or of one at a URL."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from colazip.errors import InputError, UsageError
from colazip.remote import SERVED, is_url, open_remote


class ByteSource(Protocol):
    """size: bytes in all."""

    size: int

    def read(self, offset: int, length: int, run: range | None = None) -> bytes:
        """`length` bytes from `offset` on; fewer where there are no more. run: what is read on in, if
        anything is. Any thread may call. Raises InputError."""

    def close(self) -> None: ...


def open_source(path: str, storage_options: Mapping[str, Any] | None = None) -> ByteSource:
    """The bytes of `path`. storage_options: for a URL, what the file system of its protocol takes; for one of
    an archive that is served (`grpc://host:port/name`), `token` and `tls_root`. Raises InputError if they
    can't be read, UsageError for options of a file."""
    if path.startswith(SERVED):
        from colazip.transport.client import open_served

        return open_served(path, storage_options)
    if is_url(path):
        return open_remote(path, storage_options)
    if storage_options:
        raise UsageError(f"{path}: storage_options are for a URL, such as s3://bucket/corpus.cola")
    return LocalFile(path)


class LocalFile:
    """A `ByteSource` of a file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()  # of the file position
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise InputError(f"{path}: can't be opened: {error.strerror or error}") from error
        try:
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            self._file.close()
            raise InputError(f"{path}: can't be read: {error.strerror or error}") from error

    def read(self, offset: int, length: int, run: range | None = None) -> bytes:
        data = bytearray()
        try:
            with self._lock:
                self._file.seek(offset)
                while len(data) < length and (chunk := self._file.read(length - len(data))):
                    data += chunk
        except (OSError, ValueError) as error:  # ValueError: the archive was closed
            reason = error.strerror if isinstance(error, OSError) else "the archive was closed"
            raise InputError(f"{self.path}: can't be read: {reason or error}") from error
        return bytes(data)

    def close(self) -> None:
        self._file.close()
