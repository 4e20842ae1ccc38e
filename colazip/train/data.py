"""Corpus files -> tokens on disk -> batches of segments, in an order fixed by the seed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colazip.errors import InputError
from colazip.tokenizer import Tokenizer

_CHUNK = 4096  # records read and tokenized at once


def read_texts(
    paths: Sequence[Path], text_column: str = "text", skip_sources: Sequence[str] = ()
) -> Iterator[str]:
    """Texts of Parquet, JSONL and plain text files, in order.

    skip_sources: prefixes of the `source` column to leave out, for instance for their licence. Raises
    InputError on a file that can't be read or has no texts in that column.
    """
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name its files")
        try:
            if path.suffix == ".parquet":
                yield from _read_parquet(path, text_column, tuple(skip_sources))
            elif path.suffix in (".jsonl", ".ndjson"):
                yield from _read_jsonl(path, text_column, tuple(skip_sources))
            else:
                yield path.read_text(encoding="utf-8", errors="replace")
        except OSError as e:
            raise InputError(f"{path}: can't be read ({e.strerror or type(e).__name__})") from e


def _read_parquet(path: Path, column: str, skip: tuple[str, ...]) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise InputError(
                    f"{path}: no column {column!r}; the file has {', '.join(schema.names)[:200]}"
                )
            kind = schema.field(column).type
            plain = kind.value_type if pa.types.is_dictionary(kind) else kind
            if plain not in (pa.string(), pa.large_string(), pa.string_view()):
                raise InputError(f"{path}: column {column!r} holds {str(kind)[:50]}, not text")
            columns = [column, "source"] if "source" in schema.names and skip else [column]
            for batch in file.iter_batches(_CHUNK, columns=columns):
                texts = batch.column(column).to_pylist()
                sources = batch.column("source").to_pylist() if len(columns) == 2 else [""] * len(texts)
                for text, source in zip(texts, sources, strict=True):
                    if text and not (skip and str(source).startswith(skip)):
                        yield text
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise InputError(f"{path}: not a readable Parquet file ({reason})") from e


def _read_jsonl(path: Path, column: str, skip: tuple[str, ...]) -> Iterator[str]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                text = row[column]
                if not isinstance(text, str | None):
                    raise TypeError(f"{column!r} is not text")
            except (ValueError, KeyError, TypeError, RecursionError) as e:
                raise InputError(f"{path}: line {number} is not a JSON object with a text {column!r}") from e
            if text and not (skip and str(row.get("source", "")).startswith(skip)):
                yield text


@dataclass(frozen=True)
class TokenStore:
    """Tokens of all records back to back, and where each record ends.

    tokens: uint16 or uint32 [N], memory-mapped. ends: int64 [R].
    """

    tokens: np.ndarray
    ends: np.ndarray
    text_bytes: int

    @classmethod
    def build(cls, folder: Path, texts: Iterator[str], tokenizer: Tokenizer) -> TokenStore:
        """Tokenize once and keep the result in `folder`; a finished folder is opened instead."""
        if (folder / "meta.json").exists():
            return cls.open(folder)
        folder.mkdir(parents=True, exist_ok=True)
        dtype = np.uint16 if tokenizer.size <= 65536 else np.uint32
        ends: list[int] = []
        total = text_bytes = 0
        with (folder / "tokens.bin").open("wb") as out:
            for chunk in _chunks(texts):
                data = [t.encode("utf-8", "surrogatepass") for t in chunk]
                text_bytes += sum(map(len, data))
                for tokens in tokenizer.encode(data):
                    out.write(tokens.astype(dtype).tobytes())
                    total += len(tokens)
                    ends.append(total)
                print(f"\rtokenized {text_bytes / 1e6:.0f} MB", end="", file=sys.stderr)
        print(file=sys.stderr)
        if not ends:
            raise InputError("the training files hold no text")
        np.save(folder / "ends.npy", np.array(ends, np.int64))
        (folder / "meta.json").write_text(
            json.dumps({"dtype": np.dtype(dtype).name, "text_bytes": text_bytes})
        )
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Open what `build` wrote. Raises InputError if it is damaged."""
        try:
            meta = json.loads((folder / "meta.json").read_text())
            tokens = np.memmap(folder / "tokens.bin", meta["dtype"], "r")
            ends = np.load(folder / "ends.npy")
            if ends.ndim != 1 or ends[-1] != len(tokens) or (np.diff(ends) < 0).any():
                raise ValueError("tokens and ends do not fit each other")
            return cls(tokens, ends, meta["text_bytes"])
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as e:
            raise InputError(f"{folder}: the tokenized text is damaged; delete that folder") from e

    def segments(self, length: int) -> np.ndarray:
        """Cut records every `length` tokens as the codec does: int64 [S, 2] of start and end."""
        starts = np.concatenate([[0], self.ends[:-1]])
        counts = -(-(self.ends - starts) // length)
        record = np.repeat(np.arange(len(self.ends)), counts)
        within = np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts, counts)
        lo = starts[record] + within * length
        return np.stack([lo, np.minimum(lo + length, self.ends[record])], 1)


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@dataclass(frozen=True)
class Batch:
    """Segments padded to one length. tokens int64 [B, P * K]; counts int64 [B] tokens of each."""

    tokens: np.ndarray
    counts: np.ndarray


def batches(
    store: TokenStore, segments: np.ndarray, *, patch: int, patches: int, seed: int, skip: int = 0
) -> Iterator[Batch]:
    """Endless batches of about `patches` latents each, segments of like length together.

    The order depends on the seed alone, so `skip` batches in is where a resumed run goes on.
    """
    epoch = 0
    while True:
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(segments))
        for pool_at in range(0, len(order), 8192):
            pool = order[pool_at : pool_at + 8192]
            lengths = -(-(segments[pool, 1] - segments[pool, 0]) // patch)
            pool = pool[np.argsort(lengths, kind="stable")]
            plan = _plan(np.sort(lengths, kind="stable"), patches)
            for i in rng.permutation(len(plan)):
                if skip:
                    skip -= 1
                    continue
                lo, hi = plan[i]
                yield gather(store, segments[pool[lo:hi]], patch)
        epoch += 1


def _plan(lengths: np.ndarray, patches: int) -> list[tuple[int, int]]:
    """Cut ascending lengths into runs whose padded size stays within `patches`."""
    plan, lo = [], 0
    for i in range(1, len(lengths) + 1):
        if i == len(lengths) or (i - lo + 1) * lengths[i] > patches:
            plan.append((lo, i))
            lo = i
    return plan


def gather(store: TokenStore, segments: np.ndarray, patch: int) -> Batch:
    """Read segments [B, 2] into one padded batch."""
    counts = segments[:, 1] - segments[:, 0]
    width = int(-(-counts.max() // patch)) * patch
    tokens = np.zeros((len(segments), width), np.int64)
    for row, (lo, hi) in enumerate(segments):
        tokens[row, : hi - lo] = store.tokens[lo:hi]
    return Batch(tokens, counts)


def cluster_tokens(
    store: TokenStore, vocabulary: int, classes: int, seed: int, sample: int = 20_000_000
) -> np.ndarray:
    """Group tokens that keep like company into classes of equal size: int64 [V].

    Neighbours are counted against the commonest tokens, weighted by pointwise mutual information, reduced by
    a truncated SVD, and clustered by k-means with full classes closed.
    """
    import torch

    tokens = np.asarray(store.tokens[:sample]).astype(np.int64)
    frequency = np.bincount(tokens, minlength=vocabulary)
    common = np.argsort(-frequency, kind="stable")[:1024]
    column = np.full(vocabulary, -1)
    column[common] = np.arange(len(common))
    sides = []
    for shift in (-1, 1):
        here, there = (tokens[1:], tokens[:-1]) if shift < 0 else (tokens[:-1], tokens[1:])
        keep = column[there] >= 0
        pairs = here[keep] * len(common) + column[there[keep]]
        sides.append(np.bincount(pairs, minlength=vocabulary * len(common)).reshape(vocabulary, -1))
    counts = torch.from_numpy(np.concatenate(sides, 1)).float()
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    pmi = torch.log1p(counts / (expected + 0.5))
    torch.manual_seed(seed)
    u, s, _ = torch.svd_lowrank(pmi, q=64, niter=4)
    points = torch.nn.functional.normalize(u * s.sqrt(), dim=1)
    rank = np.argsort(-frequency, kind="stable")
    centres = points[torch.from_numpy(rank[:classes].copy())].clone()
    size = vocabulary // classes
    for _ in range(12):
        near = (points @ centres.t()).argmax(1)
        for c in range(classes):
            if (near == c).any():
                centres[c] = torch.nn.functional.normalize(points[near == c].mean(0), dim=0)
    similarity = (points @ centres.t()).numpy()
    room = np.full(classes, size)
    result = np.full(vocabulary, -1)
    for token in rank:  # common tokens choose first
        for c in np.argsort(-similarity[token], kind="stable"):
            if room[c]:
                result[token] = c
                room[c] -= 1
                break
    return result
