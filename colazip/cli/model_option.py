"""Which model, on how many threads: the options and the one place that loads a codec."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from colazip.errors import UsageError

if TYPE_CHECKING:
    from colazip.archive import Archive
    from colazip.layers import ArchiveCodec

F = TypeVar("F", bound=Callable[..., Any])


def _use_threads(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
    if value is None:
        return
    # torch, faiss and Arrow read these once, when they are loaded: which is later, inside the command.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(value)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(value)


threads_option = click.option(
    "-T",
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="N",
    expose_value=False,
    callback=_use_threads,
    help="Threads to compute with. [default: one a core]",
)


def model_options(function: F) -> F:
    """Adds --model (the command gets `model`) and -T (takes effect before anything heavy is imported)."""
    model = click.option(
        "--model", metavar="PATH", help="Folder of the model. [default: the one in the package]"
    )
    return model(threads_option(function))


def coding_options(function: F) -> F:
    """Adds --device and --workers: the command gets both."""
    device = click.option(
        "--device",
        metavar="NAME",
        default="cpu",
        show_default=True,
        help="What runs the networks: cpu or cuda.",
    )
    workers = click.option(
        "--workers",
        type=click.IntRange(1, 256),
        metavar="N",
        default=1,
        show_default=True,
        help="Processes that code blocks side by side, with a share of the threads or of the GPU each; "
        "what is written is the same.",
    )
    return device(workers(function))


def load_codec(
    model: str | None,
    *,
    detail: int = 0,
    brief: float | None = None,
    price: float | None = None,
    code_bytes: int | None = None,
    device: str = "cpu",
    workers: int = 1,
) -> ArchiveCodec:
    """The codec of the model folder `model` (None: the embedded default), writing gists of this detail, at
    this price, or briefs, and search codes of this size, on this device, by so many processes.

    A program that runs commands in its own process may hand a codec over: `main(argv, codec)`. It writes as
    it was made: UsageError for another detail than 0, a brief, a price, a size of codes, a device or workers.
    """
    given = given_codec()
    if given is not None:
        if detail:
            raise UsageError(f"--detail {detail}: the codec of this program was made for one detail")
        for name, value in (("--brief", brief), ("--price", price)):
            if value is not None:
                raise UsageError(f"{name} {value:g}: the codec of this program was made to write as it does")
        if code_bytes is not None:
            raise UsageError(f"--code-bytes {code_bytes}: the codec of this program was made for one size")
        if device != "cpu" or workers != 1:
            raise UsageError("--device, --workers: the codec of this program runs as it was made to")
        return given
    from colazip.codec import Codec

    codec = Codec.from_pretrained(
        model, detail=detail, brief=brief, price=price, code_bytes=code_bytes, device=device
    )
    if workers == 1:
        return codec
    from colazip.pool import PooledCodec

    pooled = PooledCodec(codec, workers)
    click.get_current_context().call_on_close(pooled.close)
    return pooled


def open_archive(path: str, model: str | None = None, *, device: str = "cpu", workers: int = 1) -> Archive:
    """An archive for reading. Without a choice a codec is loaded by the archive, if a call needs it at
    all."""
    from colazip.archive import Archive

    chosen = model is not None or device != "cpu" or workers != 1
    codec = load_codec(model, device=device, workers=workers) if chosen else given_codec()
    return Archive(path, codec=codec)


def given_codec() -> ArchiveCodec | None:
    """The codec that the program handed over, as `load_codec` says."""
    context = click.get_current_context(silent=True)
    given = context.find_root().obj if context else None
    return given.get("codec") if isinstance(given, dict) else None
