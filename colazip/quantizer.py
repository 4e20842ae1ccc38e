"""Codes of vectors that no model made: a codebook for each archive, made from the archive's own vectors.

Two kinds, both a product quantizer in the shape that search knows (float32 [M, 256, D / M]):

- `pq`: slices of about 8 floats, centroids from k-means over at most SAMPLE vectors (Faiss), kept in float16.
- `int8`: a slice is one float, its 256 levels are even steps of one scale. Near lossless; D bytes a code, but
  four bytes of codebook, where that of `pq` takes 512 D.

Unless told, the kind that takes fewer bytes: `int8` below about 600 vectors, and below 256 in any case.
A rotation before the slices (OPQ) would take 2 D**2 bytes more: at D = 384 as much as 6,000 codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colazip.errors import FormatError, UsageError
from colazip.vectors import assign_codes

PQ, INT8 = "pq", "int8"
SAMPLE = 16384  # vectors that centroids are made from: 64 for each of a slice's 256
_SLICE = 8  # floats of a slice, at least


@dataclass(frozen=True)
class Quantizer:
    """kind: PQ or INT8. codebook: float32 [M, 256, D / M]. data: the codebook as it is stored."""

    kind: str
    codebook: np.ndarray
    data: bytes

    @property
    def code_bytes(self) -> int:
        return len(self.codebook)

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, D] -> uint8 [n, M]."""
        if self.kind == INT8:
            scale = self.codebook[0, 255, 0] / np.float32(127)
            steps = np.rint(vectors / scale) if scale > 0 else np.zeros_like(vectors)
            return (np.clip(steps, -127, 127) + 128).astype(np.uint8)
        return assign_codes(vectors, self.codebook)


def train(sample: np.ndarray, total: int, code_bytes: int | None = None) -> Quantizer:
    """A quantizer for `total` vectors of which `sample` float32 [n, D] are some: n = min(total, SAMPLE).

    code_bytes: M, a divisor of D; D itself is `int8`. Raises UsageError for another.
    """
    width = sample.shape[1]
    if code_bytes is not None and (code_bytes < 1 or width % code_bytes):
        raise UsageError(f"codes of {code_bytes} bytes do not divide vectors of {width} floats")
    slices = code_bytes or max(
        m for m in range(1, width + 1) if width % m == 0 and width // m >= min(_SLICE, width)
    )
    enough = len(sample) >= 256
    smaller = 512 * width + slices * total < width * total
    if slices == width or not enough or (code_bytes is None and not smaller):
        return _int8(width, np.float32(np.abs(sample).max(initial=0.0)))
    return _pq(sample, slices)


def load(kind: str, width: int, code_bytes: int, data: bytes) -> Quantizer:
    """A quantizer from its stored bytes. Raises FormatError unless they are whole and sane."""
    if kind == INT8 and code_bytes == width and len(data) == 4:
        (scale,) = np.frombuffer(data, "<f4")
        if np.isfinite(scale) and scale >= 0:
            return _int8(width, scale)
    if kind == PQ and width % code_bytes == 0 and len(data) == 512 * width:
        centroids = np.frombuffer(data, "<f2").astype(np.float32)
        if np.isfinite(centroids).all():
            return Quantizer(PQ, centroids.reshape(code_bytes, 256, -1), data)
    raise FormatError("damaged: the codebook of the search codes can't be read")


def _int8(width: int, scale: np.float32) -> Quantizer:
    levels = (np.arange(256, dtype=np.float32) - 128) / np.float32(127) * scale
    codebook = np.repeat(levels[None, :, None], width, axis=0)
    return Quantizer(INT8, codebook, np.array(scale, "<f4").tobytes())


def _pq(sample: np.ndarray, slices: int) -> Quantizer:
    import faiss

    trained = faiss.ProductQuantizer(sample.shape[1], slices, 8)
    # Faiss warns below 39 vectors a centroid; here the sample then is all there is, and fewer fit it better.
    trained.cp.min_points_per_centroid = 1
    trained.train(np.ascontiguousarray(sample, np.float32))
    centroids = faiss.vector_to_array(trained.centroids).reshape(slices, 256, -1)
    data = centroids.astype("<f2").tobytes()
    return load(PQ, sample.shape[1], slices, data)
