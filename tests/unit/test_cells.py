"""Cells of the latent space: what a gist tells of a token's vector, checked token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.cells import TokenCells
from colazip.nn.vae import TextVAE
from colazip.pretrained import token_cells

CLASSES, SLOTS, CHANNELS = 6, 8, 3


def random_cells(seed: int) -> TokenCells:
    """Tokens in any order; limits from no slot to all of them, fewer with less detail."""
    rng = np.random.default_rng(seed)
    order, size = rng.permutation(CLASSES * SLOTS), CLASSES * SLOTS
    class_of, slot_of = np.empty(size, np.int32), np.empty(size, np.int32)
    class_of[order], slot_of[order] = np.arange(size) // SLOTS, np.arange(size) % SLOTS
    limits = -np.sort(-rng.integers(0, SLOTS + 1, (3, CLASSES)), axis=0)
    limits[:, :3] = SLOTS, SLOTS - 1, 0
    return TokenCells(
        {
            "vae.places.q": rng.integers(-127, 128, (size, CHANNELS)).astype(np.int8),
            "vae.places.scale": rng.random((size, 1)).astype(np.float32) + np.float32(0.01),
            "vae.readout.class_of": class_of,
            "vae.readout.slot_of": slot_of,
            "vae.readout.token_of": order.reshape(CLASSES, SLOTS).astype(np.int32),
            "vae.readout.limits": limits.astype(np.int32),
        }
    )


def can_be(cells: TokenCells, detail: int) -> list[set[int]]:
    """The tokens that each token can be, from its gist alone."""
    named = cells.named(np.arange(len(cells.places)), detail)
    return [set(np.flatnonzero(named == n).tolist()) for n in named]


seeds, details = st.integers(0, 2**31), st.integers(0, 2)


@settings(max_examples=40, deadline=None)
@given(seeds, details)
def test_boxes_are_the_smallest_around_the_places(seed: int, detail: int) -> None:
    cells, tokens = random_cells(seed), np.arange(CLASSES * SLOTS)
    named = cells.named(tokens, detail)
    centre, reach = cells.boxes(named, detail)
    assert centre.dtype == reach.dtype == np.float32 and centre.shape == reach.shape == cells.places.shape
    for token, others in enumerate(can_be(cells, detail)):
        places = cells.places[sorted(others)]
        np.testing.assert_allclose(centre[token] - reach[token], places.min(0), atol=1e-4)
        np.testing.assert_allclose(centre[token] + reach[token], places.max(0), atol=1e-4)
        assert bool(cells.is_open(named, detail)[token]) == (len(others) > 1)
        if len(others) == 1:
            assert not reach[token].any() and np.array_equal(centre[token], cells.places[token])
    shaped = cells.boxes(named.reshape(CLASSES, 2, -1), detail)
    assert all(np.array_equal(a.reshape(b.shape), b) for a, b in zip(shaped, (centre, reach), strict=True))


@settings(max_examples=40, deadline=None)
@given(seeds, details)
def test_the_nearest_token_is_one_of_the_cell(seed: int, detail: int) -> None:
    cells, rng = random_cells(seed), np.random.default_rng(seed)
    tokens = np.arange(CLASSES * SLOTS)
    named = cells.named(tokens, detail)
    latents = (rng.standard_normal(cells.places.shape) * 60).astype(np.float32)
    found = cells.nearest(latents, named, detail)
    for latent, token, others in zip(latents, found.tolist(), can_be(cells, detail), strict=True):
        gaps = {o: float(np.square(cells.places[o] - latent).sum()) for o in others}
        assert token in others and gaps[token] <= min(gaps.values()) * (1 + 1e-5)
    assert np.array_equal(cells.named(found, detail), named)


@settings(max_examples=40, deadline=None)
@given(seeds, details)
def test_a_place_finds_its_token(seed: int, detail: int) -> None:
    cells, tokens = random_cells(seed), np.arange(CLASSES * SLOTS)
    found = cells.nearest(cells.places, cells.named(tokens, detail), detail)
    assert np.array_equal(cells.places[found], cells.places)
    everywhere = cells.anywhere(cells.places)
    np.testing.assert_allclose(cells.places[everywhere], cells.places, atol=0.05)
    assert cells.anywhere(cells.places[:0]).shape == (0,)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_more_detail_is_a_smaller_cell(seed: int) -> None:
    cells, tokens = random_cells(seed), np.arange(CLASSES * SLOTS)
    reach = [cells.boxes(cells.named(tokens, d), d)[1] for d in range(cells.details)]
    assert (reach[0] <= reach[1] + 1e-4).all() and (reach[1] <= reach[2] + 1e-4).all()


@pytest.mark.parametrize("detail", [0, 1, 2])
def test_cells_of_a_network_are_those_it_ships(tiny_vae: TextVAE, detail: int) -> None:
    cells, tokens = token_cells(tiny_vae), np.arange(512)
    assert cells.details == 3 and cells.places.shape == (512, 2)
    centre, reach = cells.boxes(cells.named(tokens, detail), detail)
    assert (np.abs(cells.places - centre) <= reach + 1e-5).all()


@pytest.mark.parametrize("seed", range(5))
def test_sets_hold_what_a_gist_leaves_open(seed: int) -> None:
    cells = random_cells(seed)
    everything, sets = np.arange(len(cells.class_of)), cells.sets()
    assert sets[0].all() and len(sets) == 1 + cells.details * len(cells.token_of)
    for detail in range(cells.details):
        gist = cells.named(everything, detail)
        known = cells.known(gist, detail)
        is_open = cells.is_open(gist, detail)
        assert np.array_equal(known[~is_open], gist[~is_open])
        assert sets[known[is_open] - len(everything), everything[is_open]].all()
        assert (known[is_open] > len(everything)).all()
