"""Bytes <-> tokens: a byte-level BPE that gives back any byte string, valid UTF-8 or not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from colazip.errors import ModelError

# Words with their leading space, single digits, runs of punctuation, line breaks, other white space.
_SPLIT = (
    r"'(?:[sdmtST]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PAD = 0  # fills the last patch of a text; stands for no bytes


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE uses for the 256 bytes, as character -> byte."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in keep}
    spare = 256
    for b in range(256):
        if b not in keep:
            table[chr(spare)] = b
            spare += 1
    return table


class Tokenizer:
    """Byte-level BPE. Token 0 is padding; every other token stands for at least one byte.

    `to_json()` is the Hugging Face `tokenizers` file. How text is cut into tokens may differ between releases
    of that library without harm: decoding only concatenates the bytes of the tokens.
    """

    def __init__(self, json_text: str) -> None:
        self._json = json_text
        try:
            vocab: dict[str, int] = json.loads(json_text)["model"]["vocab"]
            alphabet = _byte_alphabet()
            table: list[bytes | None] = [None] * len(vocab)
            for text, token in vocab.items():
                table[token] = b"" if token == PAD else bytes(alphabet[c] for c in text)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
            raise ModelError(f"tokenizer.json is damaged ({type(e).__name__}): re-install the model") from e
        if any(t is None for t in table) or any(t == b"" for t in table[1:]):
            raise ModelError("tokenizer.json has holes in its vocabulary: re-install the model")
        self.table: list[bytes] = [t for t in table if t is not None]
        self._byte_token = np.zeros(256, np.int64)
        for token, piece in enumerate(self.table):
            if len(piece) == 1:
                self._byte_token[piece[0]] = token
        if (self._byte_token == PAD).any():
            raise ModelError("tokenizer.json lacks single-byte tokens: re-install the model")

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._json,)

    @property
    def size(self) -> int:
        """Number of tokens, padding included."""
        return len(self.table)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Bytes of each token, int64 [V]."""
        return np.array([len(t) for t in self.table], np.int64)

    @cached_property
    def _bpe(self):
        from tokenizers import Tokenizer as Backend

        try:
            return Backend.from_str(self._json)
        except Exception as e:  # the library raises nothing more specific
            raise ModelError(f"tokenizer.json is damaged ({e}): re-install the model") from e

    def to_json(self) -> str:
        return self._json

    def encode(self, records: Sequence[bytes]) -> list[np.ndarray]:
        """Tokens of each record, int64 [T]. Bytes that are not UTF-8 become single-byte tokens.

        Raises ModelError if tokenizer.json asks for anything that does not give the text back.
        """
        texts: list[str] = []
        plan: list[list[int | np.ndarray]] = []  # for each record: indices into texts, or ready tokens
        for data in records:
            pieces: list[int | np.ndarray] = []
            for run in _utf8_runs(data):
                if isinstance(run, str):
                    pieces.append(len(texts))
                    texts.append(run)
                else:
                    pieces.append(self._byte_token[np.frombuffer(run, np.uint8)])
            plan.append(pieces)
        coded = []
        for text, e in zip(texts, self._bpe.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            # A normalizer, a truncation or an added token in the file would change text without a word.
            if max(e.ids, default=0) >= self.size or self.decode(e.ids) != text.encode():
                raise ModelError("tokenizer.json does not give text back: re-install the model")
            coded.append(np.array(e.ids, np.int64))
        return [
            np.concatenate([coded[p] if isinstance(p, int) else p for p in pieces] or [np.zeros(0, np.int64)])
            for pieces in plan
        ]

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Bytes of a token sequence; padding gives none."""
        table = self.table
        return b"".join([table[t] for t in tokens])

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> Tokenizer:
        """Train a vocabulary of `size` tokens, padding and the 256 bytes included."""
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Backend

        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            max_token_length=24,
        )
        backend.train_from_iterator(texts, trainer)
        # The padding token must never be cut out of a text that happens to contain its name.
        body = json.loads(backend.to_str())
        body["added_tokens"] = []
        return cls(json.dumps(body, ensure_ascii=False, sort_keys=True))


def _utf8_runs(data: bytes) -> list[str | bytes]:
    """Cut bytes into maximal valid UTF-8 runs (str) and the bytes between them (bytes)."""
    runs: list[str | bytes] = []
    at = 0
    while at < len(data):
        try:
            runs.append(data[at:].decode("utf-8"))
            break
        except UnicodeDecodeError as e:
            if e.start:
                runs.append(data[at : at + e.start].decode("utf-8"))
            runs.append(data[at + e.start : at + e.end])
            at += e.end
    return runs
