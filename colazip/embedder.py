"""Vectors of an embedder that is not colazip's: any function from texts to rows of floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from colazip.errors import UsageError

Encode = Callable[[list[str]], np.ndarray]

_MAX_NAME = 200  # characters; it goes into the manifest


@dataclass(frozen=True)
class Embedder:
    """A function that embeds texts, under the name that archives know it by.

    encode: texts -> float [n, D], one width D for ever. name: what an archive is opened with must carry the
    name it was packed with, so put version and prompt into it. queries: the same for queries, if the embedder
    treats them otherwise. code_bytes: bytes of a search code, a divisor of D; None lets `colazip.quantizer`
    choose, D bytes a code in small archives and about D / 8 in large ones.
    """

    encode: Encode
    name: str
    queries: Encode | None = None
    code_bytes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= _MAX_NAME:
            raise UsageError(f"the name of an embedder must be a string of 1 to {_MAX_NAME} characters")
        for function in (self.encode, *([self.queries] if self.queries is not None else [])):
            if not callable(function):
                raise UsageError(
                    f"embedder {self.name}: {type(function).__name__} can't be called with texts"
                )

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of passages, float32 [n, D]; n is at least 1. A zero row stays zero.

        Raises UsageError if the function returns anything but n rows of finite numbers.
        """
        return self._run(self.encode, texts)

    def query_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """The same of queries."""
        return self._run(self.queries or self.encode, texts)

    def _run(self, encode: Encode, texts: Sequence[str]) -> np.ndarray:
        try:
            rows = np.asarray(encode(list(texts)), dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise UsageError(f"embedder {self.name}: gives no float array: {error}") from error
        if rows.ndim != 2 or len(rows) != len(texts) or not rows.shape[1]:
            raise UsageError(
                f"embedder {self.name}: gives an array {list(rows.shape)} for {len(texts)} texts; "
                f"it must be [{len(texts)}, width]"
            )
        if not np.isfinite(rows).all():
            raise UsageError(f"embedder {self.name}: gives numbers that are not finite")
        norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]
        return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def as_embedder(given: Embedder | Encode) -> Embedder:
    """An Embedder of a bare function: under its attribute `name`, else the name it was defined by.

    Raises UsageError for a function without one, such as a lambda.
    """
    if isinstance(given, Embedder):
        return given
    name = getattr(given, "name", None) or getattr(given, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        raise UsageError("the embedder has no name; pass colazip.Embedder(function, name=...)")
    return Embedder(given, name)
