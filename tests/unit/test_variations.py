"""What the prior makes of stored text: readings, variants, holes filled, texts that go on, scores."""

from __future__ import annotations

import numpy as np
import pytest
from colazip.planes import PLANES

from colazip.errors import UsageError
from colazip.layers import Block
from colazip.sampling import Sampling
from colazip.variations import (
    choose_missing,
    denoise,
    fill,
    proceed,
    regenerate,
    score,
    text_latents,
)
from tests.tiny_model import passages, tiny_codec

QUICK = Sampling(steps=1, solver="euler")
LONG = " ".join(passages()[:3])  # several segments of the tiny model


def block_of(*texts: str) -> Block:
    (block,) = tiny_codec().encode_blocks([[t.encode() for t in texts]])
    return block


def test_strength_zero_is_the_gist_reading() -> None:
    codec, block = tiny_codec(), block_of(passages()[0], LONG)
    for slot, reading in enumerate(codec.read_gist([block])[0]):
        assert regenerate(codec, [(block, slot)], strength=0.0) == reading
        assert fill(codec, [(block, slot)], missing=0.0) == reading


def test_same_seed_same_text() -> None:
    codec, block = tiny_codec(), block_of(passages()[3])
    for change in (
        lambda seed: regenerate(codec, [(block, 0)], strength=1.0, options=Sampling(2, seed=seed)),
        lambda seed: fill(codec, [(block, 0)], missing=0.5, options=Sampling(2, seed=seed)),
        lambda seed: proceed(codec, [(block, 0)], tokens=30, options=Sampling(2, seed=seed)),
    ):
        one, two, other = (change(seed) for seed in (1, 1, 2))
        assert one == two
        assert one != other


def test_parts_of_a_record_are_joined_and_plain_ones_stay() -> None:
    codec, block = tiny_codec(), block_of("日本", passages()[1], "")
    reading = codec.read_gist([block])[0]
    assert reading[0] == "日本" and reading[2] == ""
    parts = [(block, 0), (block, 1), (block, 2)]
    assert regenerate(codec, parts, strength=0.0) == "".join(reading)
    assert regenerate(codec, [(block, 0)], options=QUICK) == "日本"
    assert fill(codec, [(block, 0)], options=QUICK) == "日本"


def test_denoised_readings_are_those_of_the_parts() -> None:
    codec, block = tiny_codec(), block_of("日本", passages()[1], "", LONG)
    (texts,) = denoise(codec, [block], options=QUICK)
    assert len(texts) == 4 and texts[0] == "日本" and texts[2] == ""
    assert texts == denoise(codec, [block, block], options=QUICK)[1]
    with pytest.raises(UsageError, match="nothing to denoise"):
        denoise(codec, [block], planes=PLANES)


def test_a_text_goes_on_by_as_many_tokens() -> None:
    codec = tiny_codec()
    most = (codec.model.config.segment - 1) * codec.model.config.patch
    for text in (passages()[0], passages()[0][:41], LONG):
        block = block_of(text)
        for tokens in (1, 30, most):
            more = proceed(codec, [(block, 0)], tokens=tokens, options=QUICK)
            assert isinstance(more, str) and more
    for tokens in (0, most + 1):
        with pytest.raises(UsageError, match="tokens"):
            proceed(codec, [(block, 0)], tokens=tokens)
    with pytest.raises(UsageError, match="kept plain"):
        proceed(codec, [(block_of("日本"), 0)], tokens=5)


def test_what_is_missing() -> None:
    assert choose_missing(10, 0.3, 0).sum() == 3
    assert np.array_equal(choose_missing(10, 0.3, 1), choose_missing(10, 0.3, 1))
    assert np.flatnonzero(choose_missing(10, [2, 9], 0)).tolist() == [2, 9]
    for wrong in (1.5, -0.1, [10], [-1]):
        with pytest.raises(UsageError, match="missing"):
            choose_missing(10, wrong, 0)


def test_latents_of_a_text_are_those_that_are_stored() -> None:
    codec, texts = tiny_codec(), [passages()[0], "", LONG, passages()[5]]
    stored = codec.latents(block_of(*texts))
    for slot, segments in enumerate(text_latents(codec, texts)):
        assert len(segments) == len(stored.get(slot, []))
        for (levels, count), (wanted, tokens) in zip(segments, stored.get(slot, []), strict=True):
            assert count == tokens and np.array_equal(levels, wanted)


def test_scores() -> None:
    scores = score(tiny_codec(), [passages()[0], "", LONG], draws=2)
    assert np.isfinite(scores[[0, 2]]).all() and np.isnan(scores[1])
    assert np.array_equal(scores, score(tiny_codec(), [passages()[0], "", LONG], draws=2), equal_nan=True)
