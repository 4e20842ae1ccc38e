"""Corpus files -> tokens on disk -> batches of segments, in an order fixed by the seed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from colazip.config import ModelConfig
from colazip.errors import InputError
from colazip.lanes import lay_out
from colazip.layers import BLOCK_BYTES, BLOCK_PARTS
from colazip.memory import recall
from colazip.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 4096  # records read and tokenized at once
_BLOCKS_AT_ONCE = 64
_PROBED = 1 << 16  # bytes of a plain text that tell whether it is one


def check_start(out: Path, files: Sequence[Path], *, resume: bool) -> None:
    """InputError if `out` holds a run that is not to be resumed, or one of the files is not there."""
    if (out / "recipe.json").exists() and not resume:
        raise InputError(
            f"{out}: holds a training run already; --resume goes on with it, or name another folder"
        )
    for path in files:
        if not path.exists():
            raise InputError(f"{path}: no such file")


def read_texts(
    paths: Sequence[Path], text_column: str = "text", skip_sources: Sequence[str] = ()
) -> Iterator[str]:
    """Texts of Parquet, JSONL, CSV and plain text files, in order; a plain text is one.

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
            elif path.suffix in (".csv", ".tsv"):
                yield from _read_csv(path, text_column, tuple(skip_sources))
            else:
                yield _read_plain(path)
        except OSError as e:
            raise InputError(f"{path}: can't be read ({e.strerror or type(e).__name__})") from e


def _wanted(batch: pa.RecordBatch, column: str, skip: tuple[str, ...]) -> Iterator[str]:
    """Texts of a batch, but for empty ones and those whose source is to be left out."""
    texts = batch.column(column).to_pylist()
    has_source = skip and "source" in batch.schema.names
    sources = batch.column("source").to_pylist() if has_source else [""] * len(texts)
    for text, source in zip(texts, sources, strict=True):
        if text and not (skip and str(source).startswith(skip)):
            yield text


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
                yield from _wanted(batch, column, skip)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise InputError(f"{path}: not a readable Parquet file ({reason})") from e


def _read_csv(path: Path, column: str, skip: tuple[str, ...]) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.csv as csv

    parse = csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True)
    try:
        names = csv.open_csv(path, parse_options=parse).schema.names
        if column not in names:
            raise InputError(f"{path}: no column {column!r}; it has {', '.join(names)}")
        wanted = [column, *(["source"] if skip and "source" in names else [])]
        strings = csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()))
        for batch in csv.open_csv(path, parse_options=parse, convert_options=strings):
            yield from _wanted(batch, column, skip)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
        raise InputError(f"{path}: not readable as CSV ({str(e).splitlines()[0]})") from e


def _read_plain(path: Path) -> str:
    data = path.read_bytes()
    if b"\0" in data[:_PROBED]:
        raise InputError(f"{path}: is binary; name Parquet, JSONL, CSV or plain text")
    return data.decode("utf-8", "replace")


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
    """Tokens of all records back to back, where each record ends, and what a block's memory guesses at each.

    tokens: uint16 or, of more than 65,536, uint32 [N]; guess: uint16 [N], kind: uint8 [N]; all memory-mapped.
    ends: int64 [R].
    """

    tokens: np.ndarray
    ends: np.ndarray
    text_bytes: int
    guess: np.ndarray
    kind: np.ndarray

    @classmethod
    def build(cls, folder: Path, texts: Iterator[str], tokenizer: Tokenizer) -> TokenStore:
        """Tokenize once and keep the result in `folder`; a finished folder is opened instead. Nothing is
        guessed yet."""
        if (folder / "meta.json").exists():
            return cls.open(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ends: list[int] = []
        total = text_bytes = 0
        kind = _token_type(tokenizer.size)
        with (folder / "tokens.bin").open("wb") as out:
            for chunk in _chunks(texts):
                data = [t.encode("utf-8", "surrogatepass") for t in chunk]
                text_bytes += sum(map(len, data))
                for tokens in tokenizer.encode(data):
                    out.write(tokens.astype(kind).tobytes())
                    total += len(tokens)
                    ends.append(total)
                print(f"\rtokenized {text_bytes / 1e6:.0f} MB", end="", file=sys.stderr)
        if ends:
            print(file=sys.stderr)
        if not ends:
            raise InputError("the training files hold no text")
        np.save(folder / "ends.npy", np.array(ends, np.int64))
        (folder / "meta.json").write_text(
            json.dumps({"text_bytes": text_bytes, "vocabulary": tokenizer.size})
        )
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Open what `build` wrote. Raises InputError if it is damaged."""
        try:
            meta = json.loads((folder / "meta.json").read_text())
            tokens = np.memmap(folder / "tokens.bin", _token_type(meta.get("vocabulary", 0)), "r")
            guess: np.ndarray = np.broadcast_to(np.zeros(1, np.uint16), len(tokens))
            kind: np.ndarray = np.broadcast_to(np.zeros(1, np.uint8), len(tokens))
            if (folder / "kind.bin").exists():
                guess = np.memmap(folder / "guess.bin", np.uint16, "r")
                kind = np.memmap(folder / "kind.bin", np.uint8, "r")
            ends = np.load(folder / "ends.npy")
            if ends.ndim != 1 or ends[-1] != len(tokens) or (np.diff(ends) < 0).any():
                raise ValueError("tokens and ends do not fit each other")
            if len(guess) != len(tokens) or len(kind) != len(tokens):
                raise ValueError("tokens and guesses do not fit each other")
            return cls(tokens, ends, meta["text_bytes"], guess, kind)
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as e:
            raise InputError(f"{folder}: the tokenized text is damaged; delete that folder") from e

    def guessed(self, folder: Path, lengths: np.ndarray, lane: int, named: np.ndarray) -> TokenStore:
        """The store of `folder` with the guesses that a block's memory makes in the gist of most detail;
        computed once.

        lengths: bytes of each token. lane: tokens of a lane, as the codec will cut records. named: uint16
        [V], what stands for each token in that gist.
        """
        if not (folder / "kind.bin").exists():
            _write_guesses(folder, self.tokens, self.ends, lengths, lane, named)
        return self.open(folder)

    def segments(self, length: int) -> np.ndarray:
        """Cut records every `length` tokens as the codec does: int64 [S, 2] of start and end."""
        starts = np.concatenate([[0], self.ends[:-1]])
        counts = -(-(self.ends - starts) // length)
        record = np.repeat(np.arange(len(self.ends)), counts)
        within = np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts, counts)
        lo = starts[record] + within * length
        return np.stack([lo, np.minimum(lo + length, self.ends[record])], 1)


def _token_type(vocabulary: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def _write_guesses(
    folder: Path, tokens: np.ndarray, ends: np.ndarray, lengths: np.ndarray, lane: int, named: np.ndarray
) -> None:
    """What the memory of a block guesses at each token, the records in blocks as a writer fills them."""
    starts = np.concatenate([[0], ends[:-1]])
    partial = folder / "kind.partial"
    with (folder / "guess.bin").open("wb") as guesses, partial.open("wb") as kinds:
        blocks: list[list[tuple[int, int]]] = [[]]
        room = BLOCK_BYTES

        def flush() -> None:
            guess, kind = _recall_blocks(tokens, blocks, lane, named)
            guesses.write(guess.tobytes())
            kinds.write(kind.tobytes())
            print(f"\rguessed {blocks[-1][-1][1] / len(tokens):.0%}", end="", file=sys.stderr)

        for lo, end in zip(starts.tolist(), ends.tolist(), strict=True):
            while lo < end:
                size = np.cumsum(lengths[np.asarray(tokens[lo : min(end, lo + BLOCK_BYTES)])])
                hi = lo + max(1, int(np.searchsorted(size, BLOCK_BYTES, side="right")))
                if size[hi - lo - 1] > room or len(blocks[-1]) == BLOCK_PARTS:
                    if len(blocks) == _BLOCKS_AT_ONCE:
                        flush()
                        blocks.clear()
                    blocks.append([])
                    room = BLOCK_BYTES
                blocks[-1].append((lo, hi))
                room -= int(size[hi - lo - 1])
                lo = hi
        flush()
    partial.replace(folder / "kind.bin")
    print(file=sys.stderr)


def _recall_blocks(
    tokens: np.ndarray, blocks: list[list[tuple[int, int]]], lane: int, named: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Guesses (uint16) and kinds (uint8) of consecutive spans of tokens, block by block."""
    lanes = lay_out([[hi - lo for lo, hi in spans] for spans in blocks], lane, 1)
    first = np.array([blocks[b][p][0] for b, p in zip(lanes.block, lanes.part, strict=True)]) + lanes.start
    table = np.zeros((len(lanes), int(lanes.count.max(initial=0))), np.int64)
    for row, (lo, count) in enumerate(zip(first, lanes.count, strict=True)):
        table[row, :count] = named[tokens[lo : lo + count]]
    guess, kind = recall(table, lanes.block, lanes.count)
    order = np.argsort(first, kind="stable")
    return (
        np.concatenate([guess[row, : lanes.count[row]] for row in order]).astype(np.uint16),
        np.concatenate([kind[row, : lanes.count[row]] for row in order]).astype(np.uint8),
    )


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
    """Segments padded to one length. tokens int64 [B, P * K]; counts int64 [B] tokens of each; guesses int64
    [2, B, P * K]: what the block memory expects, and how (kinds)."""

    tokens: np.ndarray
    counts: np.ndarray
    guesses: np.ndarray


def batches(
    store: TokenStore,
    segments: np.ndarray,
    *,
    patch: int,
    patches: int,
    seed: int,
    skip: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Endless batches of about `patches` patches each, segments of like length together.

    The order depends on the seed alone, so `skip` batches in is where a resumed run goes on. Of `world`
    processes each gets every `world`-th batch of that one order, from its `rank` on; `skip` counts the
    batches of all of them.
    """
    epoch = index = 0
    while True:
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(segments))
        for pool_at in range(0, len(order), 8192):
            pool = order[pool_at : pool_at + 8192]
            lengths = -(-(segments[pool, 1] - segments[pool, 0]) // patch)
            pool = pool[np.argsort(lengths, kind="stable")]
            plan = _plan(np.sort(lengths, kind="stable"), patches)
            for i in rng.permutation(len(plan)):
                index += 1
                if index <= skip or (index - 1) % world != rank:
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
    guesses = np.zeros((2, *tokens.shape), np.int64)
    for row, (lo, hi) in enumerate(segments):
        tokens[row, : hi - lo] = store.tokens[lo:hi]
        guesses[0, row, : hi - lo] = store.guess[lo:hi]
        guesses[1, row, : hi - lo] = store.kind[lo:hi]
    return Batch(tokens, counts, guesses)


def company(
    store: TokenStore, vocabulary: int, seed: int, sample: int = 20_000_000
) -> tuple[np.ndarray, np.ndarray]:
    """Where tokens stand by the company they keep: (unit vectors float32 [V, 64], counts int64 [V]).

    Neighbours are counted against the commonest tokens, weighted by pointwise mutual information, and reduced
    by a truncated SVD.
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
    return torch.nn.functional.normalize(u * s.sqrt(), dim=1).numpy(), frequency


def cluster_tokens(points: np.ndarray, frequency: np.ndarray, classes: int) -> np.ndarray:
    """Group tokens into classes of equal size, int64 [V], by k-means with full classes closed."""
    import torch

    spots = torch.from_numpy(points)
    rank = np.argsort(-frequency, kind="stable")
    centres = spots[torch.from_numpy(rank[:classes].copy())].clone()
    size = len(points) // classes
    for _ in range(12):
        near = (spots @ centres.t()).argmax(1)
        for c in range(classes):
            if (near == c).any():
                centres[c] = torch.nn.functional.normalize(spots[near == c].mean(0), dim=0)
    similarity = (spots @ centres.t()).numpy()
    room = np.full(classes, size)
    result = np.full(len(points), -1)
    for token in rank:  # common tokens choose first
        for c in np.argsort(-similarity[token], kind="stable"):
            if room[c]:
                result[token] = c
                room[c] -= 1
                break
    return result


@dataclass(frozen=True)
class Vocabulary:
    """How tokens stand to each other. token_of: int64 [classes, slots], the common tokens of a class first;
    rank: int64 [V], 0 for the commonest; places: float32 [V, C], a vector a token."""

    token_of: np.ndarray
    rank: np.ndarray
    places: np.ndarray

    @classmethod
    def build(cls, path: Path, store: TokenStore, config: ModelConfig, seed: int) -> Vocabulary:
        """From the text of `store`, once; kept in `path`."""
        if not path.exists():
            points, frequency = company(store, config.vocabulary, seed)
            class_of = cluster_tokens(points, frequency, config.classes)
            rank = np.empty(len(frequency), np.int64)
            rank[np.argsort(-frequency, kind="stable")] = np.arange(len(frequency))
            order = np.lexsort((rank, class_of))
            # The leading axes of the company that tokens keep.
            centred = points - points.mean(0)
            _, axes = np.linalg.eigh(centred.T @ centred)
            np.savez(
                path,
                token_of=order.reshape(config.classes, config.slots),
                rank=rank,
                places=(centred @ axes[:, ::-1][:, : config.channels]).astype(np.float32),
            )
        found = np.load(path)
        return cls(found["token_of"], found["rank"], found["places"])

    def limits(self, named: Sequence[int]) -> np.ndarray:
        """How many slots of each class are among the `named` commonest tokens: int64 [details, classes]."""
        return np.stack([(self.rank[self.token_of] < count).sum(1) for count in named]).astype(np.int64)

    def named(self, count: int) -> np.ndarray:
        """What stands for each token where the `count` commonest are named: uint16 [V]."""
        slots = self.token_of.shape[1]
        last = np.minimum(self.limits([count])[0], slots - 1)
        slot = np.minimum(np.arange(slots)[None], last[:, None])
        result = np.empty(self.token_of.size, np.uint16)
        result[self.token_of] = np.take_along_axis(self.token_of, slot, 1)
        return result
