"""A file that appears whole or not at all: written beside its name under a lock, synced, then renamed."""

from __future__ import annotations

import fcntl
import os
import stat
from types import TracebackType

from colazip.errors import InputError, LockedError, UsageError
from colazip.files import check_here


class AtomicFile:
    """Context manager for writing `path`; without `commit`, or on any exception, nothing is left behind.

    The bytes go to `path + ".partial"`, which also carries the lock. A killed writer leaves that file, but no
    lock on it: the next writer takes it over. Raises UsageError if `path` exists and `overwrite` is false,
    LockedError if another process is writing it, InputError for what the system refuses.
    """

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        check_here(path)
        self.path = os.path.realpath(os.fspath(path))  # a link keeps pointing to the archive
        self.partial = self.path + ".partial"
        self.size = 0
        self._overwrite = overwrite
        self._fd = -1

    def __enter__(self) -> AtomicFile:
        self._check_target()
        try:
            self._fd = self._open_locked()
            os.ftruncate(self._fd, 0)
            if os.path.exists(self.path):
                os.fchmod(self._fd, stat.S_IMODE(os.stat(self.path).st_mode))
        except OSError as error:
            self._discard()
            raise self._explain(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        left = memoryview(data)
        try:
            while left:
                written = os.write(self._fd, left)
                self.size += written
                left = left[written:]
        except OSError as error:
            raise self._explain(error) from error

    def commit(self) -> None:
        """Make the file appear under its name, on disk."""
        self._check_target()  # it may have appeared while we wrote
        try:
            os.fsync(self._fd)
            os.replace(self.partial, self.path)
            os.close(self._fd)
            self._fd = -1
            _sync_folder(os.path.dirname(self.path))
        except OSError as error:
            raise self._explain(error) from error

    def _check_target(self) -> None:
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._explain(error) from error
        if not stat.S_ISREG(mode):
            raise InputError(f"{self.path}: not a regular file; an archive can't be written there")
        if not self._overwrite:
            raise UsageError(f"{self.path}: exists already; choose another name or ask to overwrite it")

    def _open_locked(self) -> int:
        """Open the partial file and lock it, whichever of us created it."""
        while True:
            fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between our open and our lock another writer may have renamed or removed the file: then the
                # lock is on somebody's finished archive, and must not be written to.
                if os.path.exists(self.partial) and os.path.samestat(os.fstat(fd), os.stat(self.partial)):
                    return fd
            except BlockingIOError as error:
                os.close(fd)
                raise LockedError(f"{self.path}: another process is writing this archive") from error
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _discard(self) -> None:
        if self._fd < 0:
            return
        try:
            # Removed before the lock goes, so it's never another writer's; after a commit it isn't ours.
            if os.path.exists(self.partial) and os.path.samestat(os.fstat(self._fd), os.stat(self.partial)):
                os.unlink(self.partial)
        except OSError:
            pass  # an error is on its way already, and a stale partial file is harmless
        finally:
            os.close(self._fd)
            self._fd = -1

    def _explain(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: can't be written: {error.strerror or error}")


def _sync_folder(folder: str) -> None:
    """Make a rename durable, where the file system lets folders be synced."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)
