"""One text in, one blob out, with the embedded default model or another."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from colazip.layers import EXACT, GIST
from colazip.presets import SMALL

if TYPE_CHECKING:
    from colazip.codec import Codec


@lru_cache(maxsize=1)
def default_codec() -> Codec:
    """The codec of the embedded default model, loaded once a process."""
    from colazip.codec import Codec

    return Codec.from_pretrained()


@lru_cache(maxsize=1)
def _codec_of(folder: str) -> Codec:
    from colazip.codec import Codec

    return Codec.from_pretrained(folder)


def _codec(model: str | os.PathLike[str] | None) -> Codec:
    return default_codec() if model is None else _codec_of(os.fspath(model))


def compress(
    data: str | bytes,
    preset: str = SMALL,
    *,
    detail: int = 0,
    model: str | os.PathLike[str] | None = None,
) -> bytes:
    """A self-contained blob that `decompress` turns back into exactly these bytes; at most 8 bytes longer.

    preset: `small`, or `balanced` and `fast`, which run no network. detail: of the gist, 0 the most. model:
    folder of another model than the embedded one. Raises UsageError for another detail, ModelError.
    """
    from colazip.codec import Codec

    codec = _codec(model)
    codec = Codec(codec.model, detail=detail) if detail else codec
    return codec.encode([data], (GIST, EXACT) if preset == SMALL else None, preset)[0]


def decompress(blob: bytes, *, model: str | os.PathLike[str] | None = None) -> bytes:
    """The bytes of a blob. model: folder of the one that it was written with, if not the embedded one.
    Raises FormatError, VersionError, ModelMismatchError or ModelError."""
    return _codec(model).decode([blob])[0]
