"""The entry point: the table of commands, and one place where every failure becomes one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from colazip.cli.lazy import LazyCommand, LazyGroup
from colazip.cli.report import DEBUG_VARIABLE, EXIT_USAGE, Terminated, explain
from colazip.cli.streams import complete
from colazip.version import __version__

if TYPE_CHECKING:
    from colazip.layers import ArchiveCodec

COMMANDS = {
    "pack": LazyCommand("colazip.cli.pack:pack", "Pack files, folders or tables into an archive."),
    "unpack": LazyCommand("colazip.cli.unpack:unpack", "Give the packed files or table back."),
    "get": LazyCommand("colazip.cli.query:get", "Write records to standard output."),
    "list": LazyCommand("colazip.cli.query:list_ids", "Write the ids of the records."),
    "search": LazyCommand("colazip.cli.query:search", "Find records by meaning, by words, or both."),
    "index": LazyCommand("colazip.cli.index:index", "Make the index that search by words needs."),
    "regenerate": LazyCommand("colazip.cli.query:regenerate", "Write a variant of a record from its gist."),
    "info": LazyCommand("colazip.cli.inspect:info", "Show what an archive holds and what it costs."),
    "verify": LazyCommand("colazip.cli.inspect:verify", "Check archives: checksums, then decode everything."),
    "strip": LazyCommand("colazip.cli.inspect:strip", "Copy an archive without some of its layers."),
    "select": LazyCommand(
        "colazip.cli.select:select", "Copy some records into another archive, or delete them."
    ),
    "merge": LazyCommand("colazip.cli.inspect:merge", "Put the records of several archives into one."),
    "serve": LazyCommand("colazip.cli.serve:serve", "Let other machines read and search archives."),
    "compress": LazyCommand(
        "colazip.cli.oneshot:compress", "Compress one file or stream, without an archive."
    ),
    "decompress": LazyCommand("colazip.cli.oneshot:decompress", "Decompress what 'compress' wrote."),
    "model": LazyCommand("colazip.cli.model:model", "Describe the model in use."),
    "train": LazyCommand("colazip.cli.train:train", "Train a model on your own text."),
    "tune": LazyCommand("colazip.cli.tune:tune", "Fit a model to your own text."),
    "demo": LazyCommand("colazip.cli.demo:demo", "Show everything on a handbook that comes with colazip."),
}


class RootGroup(LazyGroup):
    """The group `colazip`: keeps interrupts and broken pipes away from click's own handling of them."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            # click would print an empty line, or leave without a word; `main` says what happened.
            raise _CarriedError(error) from error


class _CarriedError(Exception):
    """Carries an exception through click unchanged."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


@click.group(
    cls=RootGroup,
    lazy=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="colazip", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Keep text small, searchable by meaning, and readable again byte for byte.

    An archive holds up to three layers of each record: 'search' (a vector), 'gist' (an approximate reading)
    and 'exact' (the bytes). Data goes to standard output, messages and progress to standard error. '-' stands
    for standard input or output. Exit codes: 0 done, 1 failed or corrupt, 2 wrong usage.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(EXIT_USAGE)


def main(argv: Sequence[str] | None = None, codec: ArchiveCodec | None = None) -> int:
    """Run one command and return the exit code.

    argv: arguments without the program's name (default: those of the process). codec: used in place of any
    that the command would load. A failure is one line on stderr, `colazip: error: what, where, what to do`;
    the environment variable COLAZIP_DEBUG=1 raises it instead, traceback and all.
    """
    complete()
    # gRPC would write lines of its own, about a port in use and the like.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A terminal that can't show a character gets an escape instead of an exception.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code = 0
    try:
        with _unwinding_when_told_to_end():
            result = cli.main(
                args=None if argv is None else list(argv),
                prog_name="colazip",
                standalone_mode=False,
                obj={} if codec is None else {"codec": codec},
            )
            code = result if isinstance(result, int) else 0
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as raised:
        error = raised.error if isinstance(raised, _CarriedError) else raised
        if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            raise error from error.__cause__
        message, code = explain(error)
        print(f"colazip: error: {message}", file=sys.stderr)
    return _close_stdout(code)


def _close_stdout(code: int) -> int:
    """Flush once more; if that fails, point stdout nowhere, or the interpreter would complain at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = code or 1
    return code


@contextmanager
def _unwinding_when_told_to_end() -> Iterator[None]:
    """Within, SIGTERM is an exception, and so is SIGHUP, which a terminal sends as it closes, unless it is
    ignored (nohup): unfinished files are removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    previous = [(number, signal.signal(number, stop)) for number in ends]
    try:
        yield
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
