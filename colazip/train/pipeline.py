"""Corpus files to a model folder: every stage in order, each resumable on its own."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from colazip.pretrained import save_pretrained
from colazip.tokenizer import Tokenizer
from colazip.train.card import render
from colazip.train.data import TokenStore, Vocabulary, check_start, read_texts
from colazip.train.dictionary import train_dictionary
from colazip.train.distributed import joined, one_after_another, set_up, share_of, wait
from colazip.train.prior import train_prior
from colazip.train.recipes import Recipe
from colazip.train.search_encoder import train_encoder
from colazip.train.search_head import fit_search_head, load_search_head, save_search_head
from colazip.train.search_rows import train_rows
from colazip.train.side import Teller
from colazip.train.teacher import Embed, Pairs, read_lexicon, read_pairs, write_lexicon, write_pairs
from colazip.train.vae import new_vae, train_vae
from colazip.train.vocabulary import make_tokenizer, spread
from colazip.vectors import SearchRows


def run(
    recipe: Recipe,
    *,
    data: Sequence[Path],
    validation: Sequence[Path],
    out: Path,
    text_column: str = "text",
    skip_sources: Sequence[str] = (),
    device: str = "cpu",
    resume: bool = False,
    initial: Path | None = None,
    teacher: Embed | None = None,
) -> str | None:
    """Train everything and write `out/model`; returns the model's id. Started by torchrun, all processes call
    this; coder and prior train on all of them, the rest is the first one's, and only that returns the id.

    initial: `vae/checkpoint.pt` of another run to start from. teacher: an embedder that the search head
    learns from, texts -> unit vectors float32 [N, T]; without one it learns from the text alone. With
    `resume`, finished stages are taken as they are and the one under way goes on from its checkpoint. Raises
    InputError when there is nothing to read, or when `out` already holds a run and `resume` is not given;
    UsageError when the processes can't share a batch.
    """
    check_start(out, (*data, *validation), resume=resume)
    with joined(device) as place:
        wait()  # every process has looked whether there is a run before the first one starts it
        for schedule in (recipe.vae, recipe.prior):
            share_of(schedule.micro_batches, place)  # raises before anything is written
        set_up(place)
        with one_after_another(place):
            corpus = _prepare(recipe, data, validation, out, text_column, skip_sources)

        def started(stage: str) -> bool:
            return resume and (out / stage / "checkpoint.pt").exists()

        # Before the coder, which a conditional model gives search codes to.
        with one_after_another(place):
            if place.first:
                search, search_figures = _train_search(
                    recipe, corpus, teacher, out, device=place.device, resumed=started
                )
            else:
                search, search_figures = load_search_head(out / "search" / "head.pt", recipe.model)
        teller = None
        if recipe.model.conditional:
            teller = Teller.of_search(recipe.model, search, corpus.tokenizer)
        going_on = started("vae")
        vae = new_vae(
            recipe.model, recipe.vae, corpus.vocabulary, teller, initial=None if going_on else initial
        )
        train_vae(
            vae,
            recipe.vae,
            train=corpus.train,
            validation=corpus.held_out,
            lengths=corpus.tokenizer.lengths,
            folder=_folder(out / "vae"),
            place=place,
            resume=going_on,
            teller=teller,
        )
        prior, prior_figures = train_prior(
            vae,
            recipe.prior,
            train=corpus.train,
            validation=corpus.held_out,
            folder=_folder(out / "prior"),
            place=place,
            resume=started("prior"),
        )
        identity = None
        if place.first:
            figures: dict[str, Any] = {
                "vae": last_figures(out / "vae" / "metrics.jsonl"),
                "prior": prior_figures,
                "search": search_figures,
                "taught": teacher is not None,
                "train_bytes": corpus.train.text_bytes,
                "train_tokens": len(corpus.train.tokens),
                "validation_bytes": corpus.held_out.text_bytes,
                "parameters": {
                    "vae": sum(p.numel() for p in vae.parameters()),
                    "prior": sum(p.numel() for p in prior.parameters()),
                    "search": search.rows.size + _count(search.encoder),
                },
            }
            command = "colazip " + shlex.join(portable(sys.argv[1:]))
            identity = save_pretrained(
                out / "model",
                config=recipe.model,
                tokenizer=corpus.tokenizer,
                vae=vae,
                search=search,
                prior=prior,
                card=render(recipe, figures, command, [p.name for p in data], skip_sources),
                figures=figures,
                dictionary=corpus.dictionary,
            )
        wait()
    return identity


@dataclass(frozen=True)
class _Corpus:
    """What all stages read."""

    tokenizer: Tokenizer
    dictionary: bytes | None
    train: TokenStore
    held_out: TokenStore
    vocabulary: Vocabulary


def _prepare(
    recipe: Recipe,
    data: Sequence[Path],
    validation: Sequence[Path],
    out: Path,
    text_column: str,
    skip_sources: Sequence[str],
) -> _Corpus:
    """Made by the process that comes first and read by the others."""

    def texts(paths: Sequence[Path]) -> Iterator[str]:
        return read_texts(paths, text_column, skip_sources)

    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    tokenizer = make_tokenizer(
        recipe.model.vocabulary, recipe.tokenizer_megabytes, texts, data, out / "tokenizer.json"
    )
    dictionary = _dictionary(recipe, texts, data, out / "dictionary.bin")
    lane = recipe.model.segment * recipe.model.patch
    held_out = TokenStore.build(out / "validation", texts(validation), tokenizer)
    train = TokenStore.build(out / "train", texts(data), tokenizer)
    vocabulary = Vocabulary.build(out / "tokens.npz", train, recipe.model, recipe.vae.seed)
    named = vocabulary.named(recipe.vae.named[0])
    held_out = held_out.guessed(out / "validation", tokenizer.lengths, lane, named)
    train = train.guessed(out / "train", tokenizer.lengths, lane, named)
    return _Corpus(tokenizer, dictionary, train, held_out, vocabulary)


def _train_search(
    recipe: Recipe,
    corpus: _Corpus,
    teacher: Embed | None,
    out: Path,
    *,
    device: torch.device,
    resumed: Callable[[str], bool],
) -> tuple[SearchRows, dict[str, float]]:
    """Pairs, rows, encoder and codes: what ships, and validation figures. resumed: whether a stage is."""
    head = out / "search" / "head.pt"
    if resumed("vae") and head.exists():  # a coder that is given codes has learned these
        return load_search_head(head, recipe.model)
    schedule, tokenizer = recipe.rows, corpus.tokenizer
    taught = teacher is not None
    drawn: dict[str, Pairs] = {}
    for name, store, count, with_vectors in (
        ("train", corpus.train, schedule.pairs, schedule.taught),
        ("validation", corpus.held_out, schedule.held_out, schedule.held_out),
    ):
        folder = out / "pairs" / name
        write_pairs(folder, store, tokenizer, teacher, pairs=count, taught=with_vectors, seed=schedule.seed)
        drawn[name] = read_pairs(folder, count, with_vectors if taught else 0)
    lexicon = out / "pairs" / "lexicon.npz"
    write_lexicon(lexicon, corpus.train, tokenizer, teacher, words=schedule.words)
    rows, row_figures = train_rows(
        recipe.model,
        schedule,
        tokenizer=tokenizer,
        lexicon=read_lexicon(lexicon, taught=taught),
        train=drawn["train"],
        validation=drawn["validation"],
        folder=_folder(out / "rows"),
        device=device,
        resume=resumed("rows"),
    )
    encoder = None
    if recipe.model.search_encoder is not None:
        rows, encoder, encoder_figures = train_encoder(
            recipe.model,
            recipe.encoder,
            rows=rows,
            tokenizer=tokenizer,
            train=drawn["train"],
            validation=drawn["validation"],
            folder=_folder(out / "encoder"),
            device=device,
            resume=resumed("encoder"),
        )
        row_figures = {**row_figures, **encoder_figures}
    search, search_figures = fit_search_head(
        recipe.model,
        recipe.search,
        rows=rows,
        tokenizer=tokenizer,
        train=drawn["train"],
        validation=drawn["validation"],
        folder=_folder(out / "search"),
        encoder=encoder,
    )
    search_figures = {**row_figures, **search_figures}
    save_search_head(head, search, search_figures)
    return search, search_figures


def _count(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def portable(arguments: Sequence[str]) -> list[str]:
    """The command as another reader can use it: file names without the folders of this machine."""
    return [Path(a).name if "/" in a else a for a in arguments if a != "--resume"]


def _dictionary(recipe: Recipe, texts: Any, data: Sequence[Path], path: Path) -> bytes | None:
    if path.exists():
        return path.read_bytes()
    if not recipe.dictionary_bytes:
        return None
    sample = spread(texts(data), texts(data), recipe.dictionary_megabytes)
    dictionary = train_dictionary(sample, recipe.dictionary_bytes)
    if dictionary is not None:
        partial = path.with_suffix(".partial")
        partial.write_bytes(dictionary)
        partial.replace(path)
    return dictionary


def last_figures(path: Path) -> dict[str, float]:
    """The newest validation entry of a metrics file."""
    figures: dict[str, float] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if "validation" in entry:
            figures = {k: v for k, v in entry.items() if k not in ("validation", "step")}
    return figures
