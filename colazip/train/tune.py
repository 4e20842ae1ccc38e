"""`colazip tune`: a model that exists goes on learning, from somebody's own text; or its prior does.

Tokenizer, search head and prior stay as they are, so that search codes say what they said before and queries
find the same passages. Coder, decoder and pointer learn the text, and the zstd dictionary is made anew where
that helps. A gist goes on naming the tokens that it named: to name those that are common in the text costs
more than it gains (docs/experiments.md, 49).
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from colazip.errors import InputError
from colazip.nn.vae import TextVAE
from colazip.pretrained import Model, thawed, with_coder, with_prior, write
from colazip.train.card import render_tuned, render_tuned_prior
from colazip.train.data import TokenStore, check_start, read_texts
from colazip.train.dictionary import smaller_dictionary, train_dictionary
from colazip.train.distributed import joined, set_up, share_of
from colazip.train.loop import Schedule
from colazip.train.pipeline import last_figures, portable
from colazip.train.prior import (
    PriorSchedule,
    evaluate_prior,
    held_out_batches,
    telling_of,
    train_prior,
)
from colazip.train.side import Teller
from colazip.train.vae import VAESchedule, evaluate, held_out_sample, train_vae
from colazip.train.vocabulary import spread

HELD_OUT = 50  # of so many records one is kept apart where no held-out text is named
_DICTIONARY_SHARE = 16  # a dictionary is made from at least so many times its size
_DICTIONARY_MEGABYTES = 32  # and from so much text at most
_LONG = 8192  # characters of a piece of text that is held out whole or not at all
_SETTINGS = {"steps": "steps", "patches": "patches", "rate": "lr"}  # options, and what schedules call them
_TRIED = 2000  # held-out texts that dictionaries are tried on

Texts = Callable[[], Iterator[str]]


def schedule(steps: int, patches: int, rate: float, details: int) -> VAESchedule:
    """How a model goes on learning. The rate is well below that of a first training and falls early: what is
    known shall not be lost."""
    return VAESchedule(
        steps,
        warmup=max(1, min(60, steps // 10)),
        decay_from=0.1,
        drawn=(1.0,) * details,
        patches=patches,
        lr=rate,
        muon_lr=rate,
        weight_decay=0.01,
        evaluate_every=max(1, steps // 4),
        save_every=100,
    )


def prior_schedule(steps: int, patches: int, rate: float) -> PriorSchedule:
    """How a prior goes on learning."""
    return PriorSchedule(
        steps,
        warmup=max(1, min(60, steps // 10)),
        decay_from=0.2,
        patches=patches,
        lr=rate,
        muon_lr=rate,
        evaluate_every=max(1, steps // 4),
        save_every=100,
    )


def tune(
    model: Model,
    schedule: VAESchedule,
    *,
    data: Sequence[Path],
    out: Path,
    validation: Sequence[Path] = (),
    text_column: str = "text",
    skip_sources: Sequence[str] = (),
    device: str = "cpu",
    resume: bool = False,
) -> str:
    """Train `model` on, in one process, and write `out/model`; returns the id of what it has become.

    validation: held-out text; without any, one record of HELD_OUT is kept apart. Raises InputError where
    there is nothing to read or to hold out, where `out` holds a run and `resume` is not given, and where that
    run began from another model.
    """
    check_start(out, (*data, *validation), resume=resume)
    _check_folder(out, model, "vae", schedule, resume=resume)
    texts, held = _sides(data, validation, text_column, skip_sources)
    with joined(device) as place:
        share_of(schedule.micro_batches, place)  # raises where there are several processes
        set_up(place)
        with _all_or_nothing(out, resume):
            vae = thawed(model)
            train, held_out = _guessed(model, out, vae, *_stores(model, out, texts, held))
        _begin(out, model, "vae", schedule)
        teller = Teller.of_model(model) if model.config.conditional else None
        if not (out / "before.json").exists():
            _measure(out / "before.json", vae.to(place.device), model.tokenizer.lengths, held_out, teller)
        (out / "vae").mkdir(exist_ok=True)
        train_vae(
            vae,
            schedule,
            train=train,
            validation=held_out,
            lengths=model.tokenizer.lengths,
            folder=out / "vae",
            place=place,
            resume=resume and (out / "vae" / "checkpoint.pt").exists(),
            teller=teller,
        )
    figures = {
        "vae": last_figures(out / "vae" / "metrics.jsonl"),
        "before": json.loads((out / "before.json").read_text()),
        "tuned_from": model.id,
        "train_bytes": train.text_bytes,
        "train_tokens": len(train.tokens),
        "validation_bytes": held_out.text_bytes,
    }
    name = model.config.name.removesuffix("-tuned") + "-tuned"
    tuned = with_coder(model, vae, name, _dictionary(model.dictionary, texts, held))
    write(
        out / "model",
        tuned,
        render_tuned(tuned.config, schedule, figures, _command(), [p.name for p in data]),
        figures,
    )
    return tuned.id


def tune_prior(
    model: Model,
    schedule: PriorSchedule,
    *,
    data: Sequence[Path],
    out: Path,
    validation: Sequence[Path] = (),
    text_column: str = "text",
    skip_sources: Sequence[str] = (),
    device: str = "cpu",
    resume: bool = False,
) -> str:
    """Train the prior of `model` on and write `out/model`, whose id is that of `model`: what is stored does
    not depend on the prior. Arguments and errors as of `tune`."""
    check_start(out, (*data, *validation), resume=resume)
    _check_folder(out, model, "prior", schedule, resume=resume)
    texts, held = _sides(data, validation, text_column, skip_sources)
    config, cells = model.config, model.cells
    with joined(device) as place:
        share_of(schedule.micro_batches, place)
        set_up(place)
        with _all_or_nothing(out, resume):
            train, held_out = _stores(model, out, texts, held)
        _begin(out, model, "prior", schedule)
        start = model.prior.to(place.device)
        if not (out / "before.json").exists():
            batches = held_out_batches(held_out, config.segment * config.patch, config.patch, start.whole)
            telling = telling_of(cells, place.device) if config.prior_features else None
            found = evaluate_prior(start, cells, batches, schedule, config.patch, telling)
            (out / "before.json").write_text(json.dumps(found))
        (out / "prior").mkdir(exist_ok=True)
        prior, after = train_prior(
            model.vae,
            schedule,
            train=train,
            validation=held_out,
            folder=out / "prior",
            place=place,
            resume=resume and (out / "prior" / "checkpoint.pt").exists(),
            start=start,
        )
    before = json.loads((out / "before.json").read_text())
    files = ", ".join(p.name for p in data)
    text = f"{train.text_bytes / 1e6:.1f} MB ({len(train.tokens):,} tokens) from {files}"
    figures = {"prior": after, "before": before, "tuned_from": model.id}
    tuned = with_prior(model, prior)
    write(
        out / "model", tuned, render_tuned_prior(tuned.config, schedule, figures, _command(), text), figures
    )
    return tuned.id


def _sides(
    data: Sequence[Path], validation: Sequence[Path], text_column: str, skip_sources: Sequence[str]
) -> tuple[Texts, Texts]:
    """What is learned from, and what is held out. Raises InputError where nothing is."""
    read = partial(read_texts, text_column=text_column, skip_sources=skip_sources)
    own: Texts = partial(read, data)
    texts: Texts = own if validation else partial(_apart, own, held_out=False)
    held: Texts = partial(read, validation) if validation else partial(_apart, own, held_out=True)
    if next(held(), None) is None:
        lack = "no text in what is held out" if validation else f"fewer than {HELD_OUT} pieces of text"
        raise InputError(f"{lack}, so nothing could be judged; name more, or other text with --validation")
    return texts, held


@contextmanager
def _all_or_nothing(out: Path, resume: bool) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if not resume:
            shutil.rmtree(out, ignore_errors=True)  # it was empty, and half of a text is none
        raise


def _begin(out: Path, model: Model, part: str, schedule: Schedule) -> None:
    about = {"tune": model.id, part: asdict(schedule)}
    (out / "recipe.json").write_text(json.dumps(about, indent=2) + "\n")


def _command() -> str:
    return "colazip " + shlex.join(portable(sys.argv[1:]))


def _check_folder(out: Path, model: Model, part: str, schedule: Schedule, *, resume: bool) -> None:
    """Raises InputError unless a run can begin in `out`, or go on as it began."""
    recipe = out / "recipe.json"
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: is not an empty folder; name another")
        return
    try:
        began = json.loads(recipe.read_text())
        base, settings = began["tune"], began[part]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{out}: holds no run of tune to go on with; leave out --resume") from e
    if base != model.id:
        raise InputError(f"{out}: a run from model {base}, not from {model.id}; name that with --model")
    if settings != json.loads(json.dumps(asdict(schedule))):
        told = ", ".join(f"--{name} {settings.get(key)}" for name, key in _SETTINGS.items())
        raise InputError(f"{out}: a run with {told}; go on with the same")


def _stores(model: Model, out: Path, texts: Texts, held: Texts) -> tuple[TokenStore, TokenStore]:
    """The text and what is held out."""
    out.mkdir(parents=True, exist_ok=True)
    held_out = TokenStore.build(out / "validation", held(), model.tokenizer)
    return TokenStore.build(out / "train", texts(), model.tokenizer), held_out


def _guessed(
    model: Model, out: Path, vae: TextVAE, train: TokenStore, held_out: TokenStore
) -> tuple[TokenStore, TokenStore]:
    """Both with what block memories guess."""
    config, lengths = model.config, model.tokenizer.lengths
    named = vae.readout.named(torch.arange(config.vocabulary), 0).numpy().astype(np.uint16)
    lane = config.segment * config.patch
    held_out = held_out.guessed(out / "validation", lengths, lane, named)
    return train.guessed(out / "train", lengths, lane, named), held_out


def _apart(texts: Texts, *, held_out: bool) -> Iterator[str]:
    """One record of HELD_OUT, or the others. A long one, such as a book, counts as many."""
    pieces = (piece for text in texts() for piece in _cut(text))
    for index, piece in enumerate(pieces):
        if (index % HELD_OUT == HELD_OUT - 1) == held_out:
            yield piece


def _cut(text: str) -> Iterator[str]:
    """A text in pieces of _LONG characters at most, cut behind an empty line or the end of one, if there is
    one in the second half of a piece."""
    at = 0
    while len(text) - at > _LONG:
        middle, most = at + _LONG // 2, at + _LONG
        ends = (text.rfind(mark, middle, most) + len(mark) for mark in ("\n\n", "\n"))
        end = next((end for end in ends if end > middle), most)
        yield text[at:end]
        at = end
    yield text[at:]


def _measure(
    path: Path, vae: TextVAE, lengths: np.ndarray, held_out: TokenStore, teller: Teller | None
) -> None:
    """Figures of networks that have not learned from the text yet."""
    sample = held_out_sample(held_out, vae.config.segment * vae.config.patch)
    found = evaluate(vae, held_out, lengths, sample, vae.readout.token_of.device, teller)
    path.write_text(json.dumps(found))
    print(f"before the first step: {found['total_bpb']:.4f} bits a byte", file=sys.stderr)


def _dictionary(own: bytes | None, texts: Texts, held: Texts) -> bytes | None:
    """The model's zstd dictionary, or one of the text, if that does better on what is held out."""
    if own is None:
        return None
    total = sum(len(text) for text in texts())
    size = min(len(own), total // _DICTIONARY_SHARE)
    made = train_dictionary(spread(texts(), texts(), _DICTIONARY_MEGABYTES), size)
    if made is None:
        return own
    return smaller_dictionary([own, made], list(islice(held(), _TRIED)))
