"""Any exception -> one line for stderr and an exit code."""

from __future__ import annotations

import errno
import os

import click

from colazip.errors import ColazipError

DEBUG_VARIABLE = "COLAZIP_DEBUG"

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_TERMINATED = 143  # 128 + SIGTERM

HINTS = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "check the path",
    errno.ENOSPC: "free some space or write elsewhere; nothing half-written was left",
    errno.EDQUOT: "free some of the quota or write elsewhere; nothing half-written was left",
    errno.EROFS: "write elsewhere",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: unwind as an interrupt does, so that unfinished files are removed."""


def explain(error: BaseException) -> tuple[str, int]:
    """(message without the `colazip: error:` in front, exit code). The message is one line."""
    message, code = _explain(error)
    return " ".join(message.split()), code


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, ColazipError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return _explain_click(error), error.exit_code
    if isinstance(error, Terminated):
        return "terminated; nothing half-written was left", EXIT_TERMINATED
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted; nothing half-written was left", EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return "the reader of the output went away before all of it was written", EXIT_FAILED
    if isinstance(error, OSError):
        return _explain_os(error), EXIT_FAILED
    if isinstance(error, UnicodeError):
        return f"text is not valid Unicode: {error}; convert it to UTF-8", EXIT_FAILED
    if isinstance(error, MemoryError):
        return "out of memory; lower --batch-size or pack in pieces", EXIT_FAILED
    if isinstance(error, ImportError):
        return f"a part of the installation is missing: {error}; install colazip again", EXIT_FAILED
    kind = type(error).__name__
    return f"unexpected {kind}: {error}; set {DEBUG_VARIABLE}=1 for the traceback and report it", EXIT_FAILED


def _explain_click(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message}; see '{context.command_path} --help'" if context else message


def _explain_os(error: OSError) -> str:
    # The path a temporary file would be renamed to (filename2) tells a user more than the temporary one.
    path = error.filename2 or error.filename
    what = error.strerror or str(error) or type(error).__name__
    where = f": {os.fsdecode(path)}" if isinstance(path, str | bytes | os.PathLike) else ""
    hint = HINTS.get(error.errno or 0)
    return f"{what[:1].lower()}{what[1:]}{where}" + (f"; {hint}" if hint else "")
