"""Corpus files to a model folder: every stage in order, each resumable on its own."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colazip.errors import InputError
from colazip.pretrained import save_pretrained
from colazip.train.card import render
from colazip.train.data import TokenStore, cluster_tokens, company, latent_places, read_texts
from colazip.train.dictionary import train_dictionary
from colazip.train.prior import train_prior
from colazip.train.recipes import Recipe
from colazip.train.search_head import train_search_head
from colazip.train.vae import train_vae
from colazip.train.vocabulary import make_tokenizer, spread


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
) -> str:
    """Train everything and write `out/model`; returns the model's id.

    initial: `vae/checkpoint.pt` of another run to start from. With `resume`, finished stages are taken as
    they are and the one under way goes on from its checkpoint. Raises InputError when there is nothing to
    read, or when `out` already holds a run and `resume` is not given.
    """
    if (out / "recipe.json").exists() and not resume:
        raise InputError(
            f"{out}: holds a training run already; --resume goes on with it, or name another folder"
        )
    for path in (*data, *validation):
        if not path.exists():
            raise InputError(f"{path}: no such file")
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    where = torch.device(device)
    if where.type == "cuda":
        # Exact layers add integers in float32; a product through TF32 would drop bits of them.
        torch.backends.cuda.matmul.allow_tf32 = False

    def texts(paths: Sequence[Path]) -> Iterator[str]:
        return read_texts(paths, text_column, skip_sources)

    tokenizer = make_tokenizer(
        recipe.model.vocabulary, recipe.tokenizer_megabytes, texts, data, out / "tokenizer.json"
    )
    dictionary = _dictionary(recipe, texts, data, out / "dictionary.bin")
    lane = recipe.model.segment * recipe.model.patch
    held_out = TokenStore.build(out / "validation", texts(validation), tokenizer, lane)
    train = TokenStore.build(out / "train", texts(data), tokenizer, lane)
    groups = out / "tokens.npz"
    if not groups.exists():
        points, frequency = company(train, tokenizer.size, recipe.vae.seed)
        np.savez(
            groups,
            class_of=cluster_tokens(points, frequency, recipe.model.classes),
            places=latent_places(points, frequency, recipe.model.channels),
        )

    def started(stage: str) -> bool:
        return resume and (out / stage / "checkpoint.pt").exists()

    vae = train_vae(
        recipe.model,
        recipe.vae,
        train=train,
        validation=held_out,
        class_of=np.load(groups)["class_of"],
        places=np.load(groups)["places"],
        lengths=tokenizer.lengths,
        folder=_folder(out / "vae"),
        device=where,
        resume=started("vae"),
        initial=initial,
    )
    prior, prior_figures = train_prior(
        vae,
        recipe.prior,
        train=train,
        validation=held_out,
        folder=_folder(out / "prior"),
        device=where,
        resume=started("prior"),
    )
    search, search_figures = train_search_head(
        vae,
        recipe.search,
        train=train,
        validation=held_out,
        folder=_folder(out / "search"),
        device=where,
        resume=started("search"),
    )
    figures: dict[str, Any] = {
        "vae": _last_figures(out / "vae" / "metrics.jsonl"),
        "prior": prior_figures,
        "search": search_figures,
        "train_bytes": train.text_bytes,
        "train_tokens": len(train.tokens),
        "validation_bytes": held_out.text_bytes,
        "parameters": {
            name: sum(p.numel() for p in part.parameters())
            for name, part in (("vae", vae), ("prior", prior), ("search", search))
        },
    }
    command = "colazip " + shlex.join(_portable(sys.argv[1:]))
    card = render(recipe, figures, command, [p.name for p in data], skip_sources)
    return save_pretrained(
        out / "model",
        config=recipe.model,
        tokenizer=tokenizer,
        vae=vae,
        search=search,
        prior=prior,
        card=card,
        figures=figures,
        dictionary=dictionary,
    )


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _portable(arguments: Sequence[str]) -> list[str]:
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


def _last_figures(path: Path) -> dict[str, float]:
    """The newest validation entry of a metrics file."""
    figures: dict[str, float] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if "validation" in entry:
            figures = {k: v for k, v in entry.items() if k not in ("validation", "step")}
    return figures
