"""One text in, one blob out, with the embedded default model."""

from __future__ import annotations

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


def compress(data: str | bytes, preset: str = SMALL, *, detail: int = 0) -> bytes:
    """A self-contained blob that `decompress` turns back into exactly these bytes; at most 8 bytes longer.

    preset: `small`, or `balanced` and `fast`, which run no network. detail: of the gist, 0 the most. Raises
    UsageError for another.
    """
    from colazip.codec import Codec

    default = default_codec()
    codec = Codec(default.model, detail=detail) if detail else default
    return codec.encode([data], (GIST, EXACT) if preset == SMALL else None, preset)[0]


def decompress(blob: bytes) -> bytes:
    """The bytes of a blob. Raises FormatError, VersionError or ModelMismatchError."""
    return default_codec().decode([blob])[0]
