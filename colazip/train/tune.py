"""`colazip tune`: a model that exists goes on learning, from somebody's own text.

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
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from colazip.errors import InputError
from colazip.nn.vae import TextVAE
from colazip.pretrained import Model, thawed, with_coder, write
from colazip.train.card import render_tuned
from colazip.train.data import TokenStore, check_start, read_texts
from colazip.train.dictionary import smaller_dictionary, train_dictionary
from colazip.train.distributed import joined, set_up, share_of
from colazip.train.pipeline import last_figures, portable
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
    _check_folder(out, model, schedule, resume=resume)
    read = partial(read_texts, text_column=text_column, skip_sources=skip_sources)
    own: Texts = partial(read, data)
    texts: Texts = own if validation else partial(_apart, own, held_out=False)
    held: Texts = partial(read, validation) if validation else partial(_apart, own, held_out=True)
    if next(held(), None) is None:
        lack = "no text in what is held out" if validation else f"fewer than {HELD_OUT} pieces of text"
        raise InputError(f"{lack}, so nothing could be judged; name more, or other text with --validation")
    with joined(device) as place:
        share_of(schedule.micro_batches, place)  # raises where there are several processes
        set_up(place)
        try:
            vae, train, held_out = _prepare(model, out, texts, held)
        except BaseException:
            if not resume:
                shutil.rmtree(out, ignore_errors=True)  # it was empty, and half of a text is none
            raise
        about = {"tune": model.id, "vae": asdict(schedule)}
        (out / "recipe.json").write_text(json.dumps(about, indent=2) + "\n")
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
    command = "colazip " + shlex.join(portable(sys.argv[1:]))
    write(
        out / "model",
        tuned,
        render_tuned(tuned.config, schedule, figures, command, [p.name for p in data]),
        figures,
    )
    return tuned.id


def _check_folder(out: Path, model: Model, schedule: VAESchedule, *, resume: bool) -> None:
    """Raises InputError unless a run can begin in `out`, or go on as it began."""
    recipe = out / "recipe.json"
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: is not an empty folder; name another")
        return
    try:
        began = json.loads(recipe.read_text())
        base, settings = began["tune"], began["vae"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{out}: holds no run of tune to go on with; leave out --resume") from e
    if base != model.id:
        raise InputError(f"{out}: a run from model {base}, not from {model.id}; name that with --model")
    if settings != json.loads(json.dumps(asdict(schedule))):
        told = ", ".join(f"--{name} {settings.get(key)}" for name, key in _SETTINGS.items())
        raise InputError(f"{out}: a run with {told}; go on with the same")


def _prepare(model: Model, out: Path, texts: Texts, held: Texts) -> tuple[TextVAE, TokenStore, TokenStore]:
    """Networks as they begin, and the text."""
    out.mkdir(parents=True, exist_ok=True)
    held_out = TokenStore.build(out / "validation", held(), model.tokenizer)
    train = TokenStore.build(out / "train", texts(), model.tokenizer)
    vae, config = thawed(model), model.config
    named = vae.readout.named(torch.arange(config.vocabulary), 0).numpy().astype(np.uint16)
    lengths, lane = model.tokenizer.lengths, config.segment * config.patch
    held_out = held_out.guessed(out / "validation", lengths, lane, named)
    return vae, train.guessed(out / "train", lengths, lane, named), held_out


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
