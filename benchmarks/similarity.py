"""How well search vectors say what a reader says of two sentences: Spearman's rank correlation on pairs.

python -m benchmarks.similarity FILE... [--model PATH]

A file is Parquet with sentence1, sentence2 and score, such as those of the STS benchmark.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colazip.errors import ColazipError, InputError
from colazip.evaluate.table import markdown

_COLUMNS = ("sentence1", "sentence2", "score")


def read(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Sentences and scores. Raises InputError."""
    try:
        table = pq.read_table(path, columns=list(_COLUMNS))
    except (OSError, pa.ArrowInvalid) as e:
        raise InputError(f"{path}: not a Parquet file with {', '.join(_COLUMNS)}") from e
    first, second, score = (table.column(c).to_pylist() for c in _COLUMNS)
    return first, second, np.array(score, np.float64)


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, float64 [N]; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
def similarity(files: tuple[Path, ...], model: Path | None) -> None:
    """Print Spearman's correlation for each FILE: of float vectors, and with one sentence's code."""
    from colazip.codec import Codec
    from colazip.vectors import assign_codes

    try:
        codec = Codec.from_pretrained(model)
        book = codec.codebook
        rows = [("set", "vectors", "Spearman")]
        for path in files:
            one, other, score = read(path)
            a, b = codec.vectors(one), codec.vectors(other)
            codes = assign_codes(b, book)
            stored = np.concatenate([part[codes[:, m]] for m, part in enumerate(book)], axis=1)
            stored /= np.maximum(np.linalg.norm(stored, axis=1, keepdims=True), 1e-12)
            for name, vectors in (("float32", b), ("codes", stored)):
                rows.append((path.stem, name, f"{spearman((a * vectors).sum(1), score):.3f}"))
    except ColazipError as e:
        raise click.ClickException(str(e)) from e
    click.echo(markdown(rows))


if __name__ == "__main__":
    similarity()
