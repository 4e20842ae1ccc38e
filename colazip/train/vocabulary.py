"""The tokenizer of a run, and samples of a corpus that is too large to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from colazip.errors import InputError
from colazip.tokenizer import Tokenizer

Texts = Callable[[Sequence[Path]], Iterator[str]]


def make_tokenizer(
    vocabulary: int, megabytes: int, texts: Texts, data: Sequence[Path], path: Path
) -> Tokenizer:
    """The tokenizer kept in `path`, trained on `megabytes` of the texts if there is none yet.

    texts: reads files. Raises InputError if the text has too few different pieces for `vocabulary`.
    """
    if path.exists():
        return Tokenizer(path.read_text(encoding="utf-8"))
    tokenizer = Tokenizer.train(spread(texts(data), texts(data), megabytes), vocabulary)
    if tokenizer.size != vocabulary:
        raise InputError(
            f"the training text gives {tokenizer.size} tokens only,"
            f" the recipe asks for {vocabulary}: add text"
        )
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    return tokenizer


def spread(first_pass: Iterator[str], second_pass: Iterator[str], megabytes: int) -> Iterator[str]:
    """About `megabytes` of text, evenly from everywhere: the texts are read twice, once to learn how much
    there is."""
    total = sum(map(len, first_pass))
    share = min(1.0, megabytes * 1e6 / max(total, 1))
    taken = seen = 0
    for text in second_pass:
        seen += len(text)
        if taken <= seen * share:
            taken += len(text)
            yield text
