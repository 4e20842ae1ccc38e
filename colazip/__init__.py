"""colazip: latent compression and semantic storage of text.

    import colazip

    with colazip.open("corpus.cola") as archive:
        for hit in archive.search("how bread rises"):
            print(hit.id, hit.snippet)

Names load what they need when they are first used: `import colazip` alone is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from colazip.version import __version__

if TYPE_CHECKING:
    from colazip.archive import Archive as Archive
    from colazip.archive import Hit as Hit
    from colazip.archive import Record as Record
    from colazip.archive import open_archive as open
    from colazip.codec import Codec as Codec
    from colazip.embedder import Embedder as Embedder
    from colazip.oneshot import compress as compress
    from colazip.oneshot import decompress as decompress
    from colazip.pool import PooledCodec as PooledCodec
    from colazip.prior import Prior as Prior
    from colazip.sampling import Sampling as Sampling
    from colazip.stream import compress_stream as compress_stream
    from colazip.stream import decompress_stream as decompress_stream

_WHERE = {
    "Archive": "colazip.archive:Archive",
    "Codec": "colazip.codec:Codec",
    "Embedder": "colazip.embedder:Embedder",
    "Hit": "colazip.archive:Hit",
    "PooledCodec": "colazip.pool:PooledCodec",
    "Prior": "colazip.prior:Prior",
    "Record": "colazip.archive:Record",
    "Sampling": "colazip.sampling:Sampling",
    "compress": "colazip.oneshot:compress",
    "compress_stream": "colazip.stream:compress_stream",
    "decompress": "colazip.oneshot:decompress",
    "decompress_stream": "colazip.stream:decompress_stream",
    "open": "colazip.archive:open_archive",
}

__all__ = [
    "Archive",
    "Codec",
    "Embedder",
    "Hit",
    "PooledCodec",
    "Prior",
    "Record",
    "Sampling",
    "__version__",
    "compress",
    "compress_stream",
    "decompress",
    "decompress_stream",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'colazip' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
