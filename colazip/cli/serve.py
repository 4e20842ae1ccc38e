"""`colazip serve`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from colazip.cli.console import Console, amount
from colazip.cli.model_option import given_codec, load_codec, model_options
from colazip.cli.options import console_options
from colazip.errors import InputError, UsageError
from colazip.remote import is_url, named

if TYPE_CHECKING:
    from colazip.transport.server import ArchiveServer

_MAX_TOKEN_FILE = 4096
_TICK = 0.5  # seconds
_LOOPBACK = ("localhost", "::1")


@click.command()
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8815,
    show_default=True,
    help="Port to listen on; 0: the system picks one.",
)
@click.option(
    "--token-file", metavar="FILE", help="Serve only clients that send the token in this file, one line."
)
@click.option("--tls-cert", metavar="FILE", help="Certificate in PEM: serve by TLS. Goes with --tls-key.")
@click.option("--tls-key", metavar="FILE", help="The key of the certificate, in PEM.")
@model_options
@console_options
def serve(
    archives: tuple[str, ...],
    host: str,
    port: int,
    token_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    model: str | None,
    console: Console,
) -> None:
    """Let other machines read and search archives, by Arrow Flight, until interrupted or terminated.

    ARCHIVE is a path, then the archive goes by its file name without suffix, or NAME=PATH. Clients get
    records, hits or bytes of the file (docs/transport.md); nothing is written. Archives stay open: one that
    is replaced is served as it was until the next start.
    """
    tls = None
    if tls_cert is not None and tls_key is not None:
        tls = tls_cert, tls_key
    elif tls_cert is not None or tls_key is not None:
        raise UsageError("--tls-cert and --tls-key go together; give both")
    paths = _named(archives)
    token = None if token_file is None else _token(token_file)
    from colazip.transport.server import ArchiveServer

    codec = given_codec() if model is None else load_codec(model)
    server = ArchiveServer(paths, host, port, codec=codec, token=token, tls=tls)
    try:
        _announce(server, console, open_to_all=token is None, clear=tls is None)
        while True:  # a signal that arrives just before a wait is seen only after it
            time.sleep(_TICK)
    except KeyboardInterrupt:  # SIGTERM too, see `main`
        pass
    finally:
        _end(server)


def _announce(server: ArchiveServer, console: Console, *, open_to_all: bool, clear: bool) -> None:
    for name, why in server.undecoded.items():
        console.warn(f"{name}: {why}; only its bytes and metadata are served: give that with --model")
    if not _is_loopback(server.host) and (open_to_all or clear):
        lacks = "whoever reaches the port can read all" if open_to_all else "all is sent in the clear"
        console.warn(f"{server.host}: {lacks}; see --token-file and --tls-cert")
    console.note(f"serving {amount(len(server.names), 'archive')} at {server.location}")


def _end(server: ArchiveServer) -> None:
    if not server.stop():
        # A client holds a stream that it does not read: Arrow would wait for it without end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _named(archives: Sequence[str]) -> dict[str, str]:
    """Name -> path. Raises UsageError for a name that two have."""
    paths: dict[str, str] = {}
    for argument in archives:
        name, separator, path = argument.partition("=")
        if not separator or os.path.exists(argument) or is_url(argument):
            name, path = Path(named(argument)).stem, argument
        if name in paths:
            raise UsageError(f"{paths[name]} and {path} would both be {name!r}; name one, as in NAME={path}")
        paths[name] = path
    return paths


def _token(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_TOKEN_FILE + 1)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    from colazip.transport.requests import check_token

    try:
        return check_token(data.decode("ascii", "replace").strip())
    except UsageError as error:
        raise InputError(f"{path}: {error}") from None


def _is_loopback(host: str) -> bool:
    return host in _LOOPBACK or host.startswith("127.")
