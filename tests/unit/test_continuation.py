"""Text that goes on: the coder draws what it could code in the fewest bits, or as often as it expects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colazip.continuation import _draw, fill_in, go_on
from colazip.memory import recall
from colazip.nn.portable import cumulative
from colazip.nn.vae import token_history
from tests.tiny_model import passages, tiny_codec


def gist_of(text: str, detail: int, count: int) -> np.ndarray:
    codec = tiny_codec()
    (tokens,) = codec.model.tokenizer.encode([text.encode()])
    return codec.model.cells.named(np.asarray(tokens, np.int64)[:count], detail)


def drawn(known: np.ndarray, count: int, *, detail: int = 0, temperature: float, seed: int = 0) -> np.ndarray:
    return go_on(tiny_codec().model, known, count, detail=detail, temperature=temperature, seed=seed)


@pytest.mark.parametrize("detail", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 13, 40])
def test_the_likeliest_tokens_are_those_of_the_parallel_pass(detail: int, start: int) -> None:
    """At temperature 0 every class and slot has the largest logit that torch gives it in one pass."""
    model, known = tiny_codec().model, gist_of(passages()[0], detail, start)
    more = drawn(known, 24, detail=detail, temperature=0.0)
    vae, patch, cells = model.vae, model.config.patch, model.cells
    gist = np.concatenate([known, cells.named(more, detail)])
    padded = np.pad(gist, (0, -len(gist) % patch))
    guess, kind = recall(gist[None], np.zeros(1, np.int64), np.array([len(gist)]))
    tokens = torch.from_numpy(padded)[None]
    patches = tokens.unflatten(1, (-1, patch))
    with torch.inference_mode():
        valid = torch.ones(patches.shape[:2], dtype=torch.bool)
        slots = vae.coder.patches(vae.embed_patches(patches), valid, detail).flatten(0, 2)[: len(gist)]
        sides = torch.from_numpy(guess[0]), torch.from_numpy(kind[0])
        states = vae.coder.tokens(slots, token_history(tokens)[0, : len(gist)], *sides, vae.embed)
        weighed = vae.coder.weigh(states, *sides)
        classes = torch.from_numpy(cells.class_of[gist].astype(np.int64))
        by_class = vae.readout.class_logits(states, weighed).numpy()
        by_slot = vae.readout.gist_logits(states, classes, detail, weighed).numpy()
    at = np.arange(len(known), len(gist))
    chosen = (by_class, cells.class_of[gist]), (by_slot, cells.slot_of[gist])
    for logits, said in chosen:
        tables = np.diff(cumulative(logits))
        assert np.array_equal(tables[at].max(1), tables[at, said[at]])


def test_what_the_gist_leaves_open_is_drawn_among_the_rarer_tokens() -> None:
    model, detail = tiny_codec().model, 2  # classes alone: every token is open
    known = gist_of(passages()[1], detail, 10)
    for seed in range(3):
        more = drawn(known, 60, detail=detail, temperature=1.0, seed=seed)
        assert more.shape == (60,) and ((more >= 0) & (more < model.config.vocabulary)).all()
        assert len(set(more.tolist())) > 5
        slots = model.cells.slot_of[more]
        assert (slots >= model.cells.limits[detail][model.cells.class_of[more]]).all()


def test_draws_are_as_often_as_expected() -> None:
    tables = np.repeat(np.cumsum([[0, 1, 4097, 12289, 1]], 1), 20000, 0).astype(np.int32)
    rng = np.random.default_rng(0)
    for temperature, share in ((1.0, [0.0, 0.25, 0.75, 0.0]), (0.5, [0.0, 0.1, 0.9, 0.0])):
        found = np.bincount(_draw(tables, temperature, rng), minlength=4) / len(tables)
        assert found == pytest.approx(share, abs=0.01)
        assert found[0] == found[3] == 0.0  # there only so that it can be coded
    assert set(_draw(tables, 0.0, rng)) == {2}
    assert set(_draw(tables, 1e-3, rng)) == {2}


def test_gaps_are_filled_and_nothing_else_changes() -> None:
    model = tiny_codec().model
    for detail, share in ((0, 0.1), (0, 0.6), (2, 0.3)):
        gist = gist_of(passages()[3], detail, 90)
        missing = np.random.default_rng(detail).random(len(gist)) < share
        filled = [
            fill_in(model, gist, missing, detail=detail, temperature=1.0, seed=seed, candidates=5)
            for seed in (0, 0, 1)
        ]
        for tokens in filled:
            assert np.array_equal(tokens[~missing], gist[~missing])
            assert ((tokens >= 0) & (tokens < model.config.vocabulary)).all()
        assert np.array_equal(filled[0], filled[1])
        assert (filled[0] != filled[2])[missing].any()
    nothing = np.zeros(len(gist), bool)
    assert np.array_equal(fill_in(model, gist, nothing, detail=2, temperature=1.0, seed=0), gist)


def test_what_is_missing_decides_nothing() -> None:
    """Whatever stands at a gap, the same is written there; at temperature 0 what a text would go on with."""
    model, gist = tiny_codec().model, gist_of(passages()[2], 0, 64)
    missing = np.zeros(64, bool)
    missing[20:24] = missing[41:47] = True
    blank = np.where(missing, 0, gist)
    one, other = (fill_in(model, t, missing, detail=0, temperature=0.7, seed=3) for t in (gist, blank))
    assert np.array_equal(one, other)
    likeliest = fill_in(model, gist, missing, detail=0, temperature=0.0, seed=0)
    more = drawn(gist[:20], 4, temperature=0.0)
    assert np.array_equal(model.cells.named(likeliest[20:24], 0), model.cells.named(more, 0))


def test_what_follows_a_gap_chooses_what_stands_in_it() -> None:
    """Texts whose gaps were filled in by the best of many candidates are likelier than by the only one."""
    codec, bits = tiny_codec(), []
    for candidates in (1, 12):
        texts = []
        for at, text in enumerate(passages()[:10]):
            gist = gist_of(text, 0, 80)
            missing = np.arange(80) % 20 < 4
            filled = fill_in(
                codec.model, gist, missing, detail=0, temperature=1.0, seed=at, candidates=candidates
            )
            texts.append(codec.model.tokenizer.decode(filled.tolist()))
        bits.append(codec.bits(texts).sum())
    assert bits[1] < bits[0]
