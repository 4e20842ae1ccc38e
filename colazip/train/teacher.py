"""Pairs for the search head as files, with a teacher's vectors of them if there is one: computed once, then
read.

The teacher is all-MiniLM-L6-v2 (Apache-2.0), which colazip.evaluate.embedder runs. It is needed while a
model is trained, and only if the run asks for it; a trained model holds nothing of it but what its search
head learned.
"""

from __future__ import annotations

import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colazip.errors import InputError
from colazip.tokenizer import Tokenizer
from colazip.train.data import TokenStore
from colazip.train.pairs import TextPairs
from colazip.words import WordHash

PART = 4096  # pairs of one file
_COUNTED = 20_000_000  # tokens in which words are counted
_CHUNK = 4096  # words embedded at once
Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Pairs:
    """Tokens of queries and passages, N rows of uint16 each; the teacher's unit vectors of the first M.

    query_vectors, passage_vectors: float16 [M, T], M <= N; None without a teacher.
    """

    queries: list[np.ndarray]
    passages: list[np.ndarray]
    query_vectors: np.ndarray | None
    passage_vectors: np.ndarray | None


@dataclass(frozen=True)
class Lexicon:
    """How common each token is, and the teacher's unit vectors of tokens and of common words of several
    tokens.

    frequency: share of each token, float64 [V]. token_vectors: float16 [V, T]. word_hash: uint32 [N],
    word_count: int64 [N], word_vectors: float16 [N, T]. Vectors are None without a teacher.
    """

    frequency: np.ndarray
    word_hash: np.ndarray
    word_count: np.ndarray
    token_vectors: np.ndarray | None
    word_vectors: np.ndarray | None


def write_pairs(
    folder: Path,
    store: TokenStore,
    tokenizer: Tokenizer,
    embed: Embed | None,
    *,
    pairs: int,
    taught: int,
    seed: int,
) -> None:
    """Draw `pairs` pairs into files of PART in `folder`; finished files stay.

    embed: texts -> float32 [N, T], unit vectors, of the first `taught` pairs (whole files); None: no teacher.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = TextPairs(store, tokenizer, seed)
    started, fresh = time.monotonic(), 0
    for part in range(-(-pairs // PART)):
        path = _part(folder, part)
        if path.exists():
            continue
        texts = [text for pair in source.draw(part, min(PART, pairs - part * PART)) for text in pair]
        tokens = tokenizer.encode([text.encode("utf-8", "surrogatepass") for text in texts])
        arrays = {
            "tokens": np.concatenate(tokens).astype(np.uint16),
            "ends": np.cumsum([len(t) for t in tokens]),
        }
        if embed and part * PART < taught:
            arrays["vectors"] = embed(texts).astype(np.float16)
        _save(path, arrays)
        fresh += len(texts)
        speed = fresh / (time.monotonic() - started)
        print(f"pairs {min(pairs, (part + 1) * PART)} of {pairs}  texts/s {speed:.0f}", file=sys.stderr)


def read_pairs(folder: Path, pairs: int, taught: int) -> Pairs:
    """What `write_pairs` left in `folder`. Raises InputError if files are missing, damaged, or lack the
    teacher's vectors though `taught` asks for them."""
    rows: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    for part in range(-(-pairs // PART)):
        with_vectors = part * PART < taught
        names = ("tokens", "ends", "vectors") if with_vectors else ("tokens", "ends")
        arrays = _load(_part(folder, part), names)
        rows.extend(np.split(arrays["tokens"], arrays["ends"][:-1]))
        if with_vectors:
            vectors.append(arrays["vectors"])
    queries, passages = rows[::2], rows[1::2]
    if not vectors:
        return Pairs(queries, passages, None, None)
    both = np.concatenate(vectors)
    return Pairs(queries, passages, both[::2], both[1::2])


def write_lexicon(
    path: Path, store: TokenStore, tokenizer: Tokenizer, embed: Embed | None, *, words: int
) -> None:
    """Count tokens and the `words` most common words of several tokens, and have the teacher embed them."""
    if path.exists():
        return
    tokens = np.asarray(store.tokens[:_COUNTED]).astype(np.int64)
    share = np.bincount(tokens, minlength=tokenizer.size) / max(1, len(tokens))
    hashes, first, length = WordHash(tokenizer.table).words(tokens)
    kinds, example, count = np.unique(hashes, return_index=True, return_counts=True)
    common = np.argsort(-count, kind="stable")[:words]
    arrays = {"frequency": share, "word_hash": kinds[common], "word_count": count[common]}
    if embed:
        spelled = [
            tokenizer.decode(tokens[first[i] : first[i] + length[i]].tolist())
            for i in example[common].tolist()
        ]
        arrays["token_vectors"] = _embed_words(tokenizer.table, embed)
        arrays["word_vectors"] = _embed_words(spelled, embed)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, arrays)


def read_lexicon(path: Path, *, taught: bool) -> Lexicon:
    """What `write_lexicon` left. Raises InputError as `read_pairs` does."""
    names = ("frequency", "word_hash", "word_count")
    arrays = _load(path, (*names, "token_vectors", "word_vectors") if taught else names)
    return Lexicon(
        arrays["frequency"],
        arrays["word_hash"],
        arrays["word_count"],
        arrays.get("token_vectors"),
        arrays.get("word_vectors"),
    )


def _embed_words(words: Sequence[bytes], embed: Embed) -> np.ndarray:
    """Unit vectors of words or tokens, whatever bytes those are: float16 [N, T]."""
    texts = [word.decode("utf-8", "replace").strip() or "." for word in words]
    parts = [embed(texts[lo : lo + _CHUNK]).astype(np.float16) for lo in range(0, len(texts), _CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, embed(["."]).shape[1]), np.float16)


def _part(folder: Path, part: int) -> Path:
    return folder / f"pairs-{part:05d}.npz"


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def _load(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise InputError(
            f"{path}: damaged, or lacks {', '.join(names)} ({type(e).__name__}); delete it and go on"
        ) from e
