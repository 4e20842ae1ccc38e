"""Standard streams that the calling process has closed: to use one is an error, not to need it is none."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class _Closed(io.RawIOBase):
    """Fails when it is first read or written. What was not written is flushed again at the interpreter's end,
    and goes nowhere then: it has been said."""

    def __init__(self, what: str) -> None:
        self._what, self._said = what, False

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise self._error()

    def write(self, data: Any) -> int:
        if self._said:
            return len(data)
        raise self._error()

    def _error(self) -> OSError:
        self._said = True
        return OSError(errno.EBADF, f"{self._what} is closed")


def complete() -> None:
    """Put something in the place of streams that are None.

    Their numbers are taken, too: a file that is opened later would get them, and whatever a library prints
    would land in it.
    """
    missing = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for _ in missing:
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if "stdin" in missing:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Closed("standard input")))
    if "stdout" in missing:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Closed("standard output")))
    if "stderr" in missing:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  nobody is there to read it
