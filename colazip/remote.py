"""Files at URLs, read in ranges that are fetched when they are asked for.

URLs are those that fsspec knows, https://, s3://, gs://, memory://, if its package for the protocol is
installed (aiohttp, s3fs, gcsfs).
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from colazip.errors import InputError

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]*://")

SERVED = ("grpc://", "grpc+tcp://", "grpc+tls://")  # URLs of archives that `colazip serve` serves

_WHOLE = 128 << 10  # a file up to this size is fetched at once
_TAIL = 64 << 10  # of a file, fetched at once: what tells of its parts is there
_LEAST = 16 << 10  # fetched at once of anything: less would not come sooner
_MOST = 4 << 20  # fetched ahead where somebody reads on and on
_CONNECT, _SILENCE = 15.0, 60.0  # seconds that a web server may take to be reached, and to say more
_WINDOWS = 8  # places that are read on from side by side: layers of an archive lie apart


def is_url(path: str) -> bool:
    """Whether a path is a URL: `scheme://...`, or `scheme::scheme://...`, a chain of them."""
    return _URL.match(path) is not None


def named(path: str) -> str:
    """What names a file: a path, or that of a URL, without what may be a secret in its query."""
    return urlsplit(path).path if is_url(path) else path


def absolute(path: str | os.PathLike[str]) -> str:
    """A path that means the same in any folder, or the URL that it is."""
    given = os.fspath(path)
    return given if is_url(given) else os.path.abspath(given)


def open_url(url: str) -> tuple[BinaryIO, int]:
    """The file at a URL as a stream that can seek, and its size in bytes. Raises InputError, also in
    reading."""
    if url.startswith(SERVED):
        raise InputError(f"{url}: is an archive that is served, and no source to pack; see colazip select")
    remote = open_remote(url)
    return cast(BinaryIO, io.BufferedReader(_Stream(remote), _LEAST)), remote.size


class RemoteFile:
    """The `size` bytes of the file at `url`, by way of `fetch(first, stop)`, which raises InputError, as
    reading then does. Any thread may call. closing: called by `close`."""

    def __init__(
        self,
        url: str,
        size: int,
        fetch: Callable[[int, int], bytes],
        closing: Callable[[], None] | None = None,
    ) -> None:
        self.url = url
        self.size = size
        self._ahead = ReadAhead(size, fetch)
        self._closing = closing
        self._lock = threading.Lock()
        self._closed = False

    def read(self, offset: int, length: int, run: range | None = None) -> bytes:
        """`length` bytes from `offset` on; fewer where there are no more. run: what is read on in, if
        anything is: nothing outside of it is fetched ahead of being asked for."""
        with self._lock:
            if self._closed:
                raise InputError(f"{self.url}: can't be read: it was closed")
            return self._ahead.read(offset, length, run)

    def close(self) -> None:
        """Free what was fetched; no more can be read."""
        with self._lock:
            self._ahead.forget()
            if self._closing is not None and not self._closed:
                self._closing()
            self._closed = True


def open_remote(url: str, storage_options: Mapping[str, Any] | None = None) -> RemoteFile:
    """The file at a URL. storage_options: what the file system of its protocol takes. Raises InputError."""
    import fsspec

    def lost(error: Exception) -> InputError:
        # Of web servers fsspec has all failures be FileNotFoundError, from what they were.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        if cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) == 404:
            return InputError(f"{url}: can't be read: no such file")
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        return InputError(f"{url}: can't be read: {reason}")

    def fetch(first: int, stop: int) -> bytes:
        try:
            data = bytes(files.cat_file(path, start=first, end=stop))
        except Exception as error:  # each file system has exceptions of its own
            raise lost(error) from error
        if len(data) > stop - first:
            raise InputError(f"{url}: its server doesn't give parts of a file; download it first")
        return data

    options = dict(storage_options or {})
    web = url.startswith(("http://", "https://"))
    try:
        if web and "client_kwargs" not in options:
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
            options["client_kwargs"] = {"timeout": timeout}
        files, path = fsspec.core.url_to_fs(url, **options)
        size = files.info(path).get("size")
    except ImportError as error:
        advice = "; pip install 'colazip[http]'" if web else ""
        raise InputError(f"{url}: can't be read: {error}{advice}") from error
    except Exception as error:  # as above
        raise lost(error) from error
    if not isinstance(size, int):
        raise InputError(f"{url}: its server doesn't say how long it is; download it first")
    return RemoteFile(url, size, fetch)


@dataclass
class _Window:
    """Bytes that were fetched, from `first` on. run: what they are of, as of `ReadAhead.read`. step: bytes
    fetched last. read: the place up to which they were asked for."""

    first: int
    data: bytes
    run: range
    step: int
    read: int = 0

    @property
    def end(self) -> int:
        return self.first + len(self.data)


class ReadAhead:
    """Ranges of `size` bytes by way of `fetch(first, stop)`: long ones where somebody reads on from where
    they stopped, short ones elsewhere."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._fetch = fetch
        self._windows: list[_Window] = []  # the one last read from last

    def read(self, offset: int, length: int, run: range | None = None) -> bytes:
        """As `RemoteFile.read`."""
        stop = min(offset + length, self._size)
        if offset >= stop:
            return b""
        run = range(self._size) if run is None else range(run.start, max(stop, min(run.stop, self._size)))
        window = self._window(offset) or self._begin(offset, stop, run)
        found = window.data[offset - window.first : stop - window.first]
        if stop > window.end:
            step = min(2 * window.step, _MOST)
            first = window.end
            more = self._fetch(first, max(stop, min(first + step, run.stop)))
            found += more[: stop - first]
            window = _Window(first, more, run, step)
        window.read = stop
        self._windows.append(window)
        del self._windows[:-_WINDOWS]
        return found

    def forget(self) -> None:
        """Free what was fetched."""
        self._windows = []

    def _window(self, offset: int) -> _Window | None:
        """Takes out what was fetched around `offset`, or just before it and read to its end."""
        for at, window in enumerate(self._windows):
            if window.first <= offset < window.end or offset == window.end == window.read:
                return self._windows.pop(at)
        return None

    def _begin(self, offset: int, stop: int, run: range) -> _Window:
        """What is fetched where nothing was."""
        step = _LEAST
        first = offset
        if self._size <= _WHOLE:
            first, stop = 0, self._size
        elif offset >= self._size - _TAIL:
            first, stop = self._size - _TAIL, self._size
        elif offset == run.start and (before := self._finished(offset)) is not None:
            step = min(2 * before.step, _MOST)
        return _Window(first, self._fetch(first, max(stop, min(first + step, run.stop))), run, step)

    def _finished(self, offset: int) -> _Window | None:
        """Takes out one that was read to the end of its run: who read it may now read the next one."""
        for at, window in enumerate(self._windows):
            if window.read == window.end == window.run.stop <= offset:
                return self._windows.pop(at)
        return None


class _Stream(io.RawIOBase):
    """A remote file with a position."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()
