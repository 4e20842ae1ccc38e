"""Progress on one line of stderr, only when stderr is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from colazip.cli.console import Console, amount, size

SECONDS_BETWEEN = 0.1


class Progress:
    """Context manager; call it with (records, text bytes) done so far. Erases its line at the end.

    fraction: asked at each update for the part done, 0 to 1, or None where the end isn't known. counted:
    whether there are records.
    """

    def __init__(
        self,
        console: Console,
        label: str,
        fraction: Callable[[], float | None] | None = None,
        *,
        counted: bool = True,
    ) -> None:
        self.shown = not console.quiet and sys.stderr.isatty()
        self.label = label
        self.fraction = fraction
        self.counted = counted
        self.started = self.last = time.monotonic()
        self.width = 0
        self.records = 0

    def __enter__(self) -> Progress:
        return self

    def __call__(self, records: int, text_bytes: int) -> None:
        self.records = records
        now = time.monotonic()
        if not self.shown or now - self.last < SECONDS_BETWEEN:
            return
        self.last = now
        line = self._line(records, text_bytes, now - self.started)
        sys.stderr.write("\r" + line.ljust(self.width))
        sys.stderr.flush()
        self.width = len(line)

    def _line(self, records: int, text_bytes: int, seconds: float) -> str:
        speed = size(text_bytes / seconds) if seconds else "-"
        count = f"  {amount(records, 'record')}" if self.counted else ""
        line = f"{self.label}{count}  {size(text_bytes)}  {speed}/s"
        done = self.fraction() if self.fraction else None
        if not done:
            return line
        left = seconds / done * (1 - min(done, 1))
        return f"{line}  {min(done, 1):4.0%}  {left // 60:.0f}:{left % 60:02.0f} left"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.width:
            sys.stderr.write("\r" + " " * self.width + "\r")
            sys.stderr.flush()
