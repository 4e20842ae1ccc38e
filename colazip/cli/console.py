"""What reaches the user: data on stdout, messages on stderr, nothing binary on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, BinaryIO, cast

import click

from colazip.errors import UsageError


class Console:
    """Messages of one command, by how much the user wants to hear: -q nothing but errors, -v also details."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        if quiet and verbose:
            raise UsageError("-q and -v exclude each other; give one")
        self.quiet = quiet
        self.verbose = verbose

    def note(self, message: str) -> None:
        """One line on stderr, unless quiet."""
        if not self.quiet:
            click.echo(f"colazip: {printable(message)}", err=True)

    def warn(self, message: str) -> None:
        """A warning on stderr, unless quiet."""
        self.note(f"warning: {message}")

    def detail(self, message: str) -> None:
        """One line on stderr if verbose."""
        if self.verbose:
            self.note(message)


@contextmanager
def hushed(console: Console) -> Iterator[None]:
    """Within, what training writes to stderr about itself is not shown, if quiet."""
    if not console.quiet:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


def data_output(*, binary: bool = False, force: bool = False) -> BinaryIO:
    """Standard output for data.

    binary: the data is never text, so a terminal is refused at once (UsageError); else a terminal gets only
    what is text. force: no such check.
    """
    stream = sys.stdout.buffer
    if force or not sys.stdout.isatty():
        return stream
    if binary:
        raise UsageError("binary data is not written to a terminal; name a file with -o, or force it with -f")
    return cast(BinaryIO, TerminalText(stream))


class TerminalText:
    """The part of a binary stream that writers here use; refuses what is not UTF-8 text."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def write(self, data: bytes) -> int:
        try:
            is_text = "\0" not in data.decode()
        except UnicodeDecodeError:
            is_text = False
        if not is_text:
            raise UsageError(
                "binary data is not written to a terminal; name a file with -o, or force it with -f"
            )
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


def write_json(value: Any, *, indent: int | None = 2) -> None:
    """JSON on stdout, in UTF-8 whatever the locale. What JSON doesn't know (dates, bytes) is text."""
    from colazip.tables.common import json_text

    sys.stdout.flush()
    sys.stdout.buffer.write(json_text(value, indent=indent) + b"\n")


def printable(text: str) -> str:
    """`text` on one line, without what would move the cursor or change a terminal's state."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text)


def amount(count: int, noun: str) -> str:
    """`1 record`, `1,234 records`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Bytes for people, in powers of 1,000: `999 B`, `4.20 MB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.2f} {units[0]}" if count < 100 and units[0] != "B" else f"{count:.0f} {units[0]}"
