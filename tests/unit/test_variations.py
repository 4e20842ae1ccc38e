"""What the prior makes of stored text: readings, variants, holes filled, texts that go on, scores."""

from __future__ import annotations

import numpy as np
import pytest

from colazip.codec import Codec, Gist
from colazip.errors import UsageError
from colazip.layers import Block
from colazip.prior import Prior
from colazip.sampling import Sampling
from colazip.variations import (
    _noise_that_changes,
    _patches,
    _pieces,
    _text,
    _tokens,
    choose_missing,
    denoise,
    fill,
    proceed,
    regenerate,
    reread,
    rewrite,
    score,
    text_tokens,
)
from tests.tiny_model import passages, tiny_codec

QUICK = Sampling(steps=1, solver="euler")
LONG = " ".join(passages()[:3])  # several segments of the tiny model


def block_of(*texts: str, detail: int = 0) -> Block:
    codec = Codec(tiny_codec().model, detail=detail)
    (block,) = codec.encode_blocks([[t.encode() for t in texts]])
    return block


@pytest.mark.parametrize("detail", [0, 1, 2])
def test_strength_zero_is_the_gist_reading(detail: int) -> None:
    codec, block = tiny_codec(), block_of(passages()[0], LONG, detail=detail)
    for slot, reading in enumerate(codec.read_gist([block])[0]):
        assert regenerate(codec, [(block, slot)], strength=0.0) == reading
        assert all(fill(codec, [(block, slot)], missing=0.0, by=by) == reading for by in ("coder", "prior"))


def test_strength_is_the_share_of_tokens_that_noise_changes() -> None:
    """Measured with other noise than the one that the scale was found with."""
    codec = tiny_codec()
    pieces = [np.asarray(t, np.int64)[:64] for t in text_tokens(codec, passages()[:12])]
    latents = [_patches(codec, codec.model.cells.places[p]) for p in pieces]
    prior = Prior.from_codec(codec)
    deviation = prior.network.deviation.cpu().numpy()
    rng, found = np.random.default_rng(5), []
    for share in (0.1, 0.3, 0.5, 0.8):
        noise = _noise_that_changes(codec, prior, pieces, share)
        moved = [
            v + noise / (1 - noise) * deviation * rng.standard_normal(v.shape, np.float32) for v in latents
        ]
        read = [
            codec.model.cells.anywhere(_tokens(codec, m, len(p))) for m, p in zip(moved, pieces, strict=True)
        ]
        found.append(float((np.concatenate(read) != np.concatenate(pieces)).mean()))
    assert found == pytest.approx([0.1, 0.3, 0.5, 0.8], abs=0.08)
    assert _noise_that_changes(codec, prior, pieces, 1.0) == 1.0
    assert _noise_that_changes(codec, prior, [np.zeros(1, np.int64)], 0.4) == 0.4


def test_whole_words_are_written_anew() -> None:
    """A share of them, over all segments, and more of them beside those where the strength is greater."""
    codec = tiny_codec()
    pieces = [np.asarray(t, np.int64)[:64] for t in text_tokens(codec, passages()[:4])]
    units = codec.model.rows.words.units
    changed: list[set[tuple[int, int]]] = []
    for strength in (0.0, 0.2, 0.5, 1.0):
        new = rewrite(codec, pieces, strength, Sampling(seed=4, temperature=3.0))
        words = [
            (at, number)
            for at, (a, b) in enumerate(zip(pieces, new, strict=True))
            for number in np.unique(np.searchsorted(units(a), np.flatnonzero(a != b), "right")).tolist()
        ]
        assert all(len(a) == len(b) for a, b in zip(pieces, new, strict=True))
        changed.append(set(words))
    count = sum(len(units(p)) for p in pieces)
    assert not changed[0] and 0.8 * count < len(changed[3]) <= count
    for few, share in zip(changed[1:3], (0.2, 0.5), strict=True):
        assert 0.7 * share * count < len(few) <= round(share * count)
    assert len(changed[1] - changed[2]) <= 0.1 * len(changed[1])  # what came back as it was has not changed
    with pytest.raises(UsageError, match=r"strength 1\.5"):
        rewrite(codec, pieces, 1.5, Sampling())


def test_same_seed_same_text() -> None:
    codec, block = tiny_codec(), block_of(passages()[3])
    for change in (
        lambda seed: regenerate(codec, [(block, 0)], strength=1.0, options=Sampling(seed=seed)),
        lambda seed: regenerate(
            codec, [(block, 0)], strength=1.0, by="prior", options=Sampling(2, seed=seed)
        ),
        lambda seed: fill(codec, [(block, 0)], missing=0.5, options=Sampling(seed=seed)),
        lambda seed: fill(codec, [(block, 0)], missing=0.5, by="prior", options=Sampling(2, seed=seed)),
        lambda seed: proceed(codec, [(block, 0)], tokens=30, options=Sampling(seed=seed)),
        lambda seed: proceed(codec, [(block, 0)], tokens=30, by="prior", options=Sampling(2, seed=seed)),
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


def test_a_thinned_gist_is_read_as_with_these_holes() -> None:
    codec, block = tiny_codec(), block_of(passages()[1])
    (gist,) = codec.gists(block).values()
    pieces, patch = _pieces(codec, gist), codec.model.config.patch
    for share, every in ((0.5, 2), (0.25, 4), (1 / 3, 3)):
        ((text,),) = denoise(codec, [block], missing=share, options=QUICK)
        holes = [np.arange(-(-len(p.tokens) // patch)) % every == every - 1 for p in pieces]
        assert text == _text(codec, reread(codec, pieces, holes, QUICK))
    for share in (-0.1, 1.0):
        with pytest.raises(UsageError, match="share"):
            denoise(codec, [block], missing=share)


@pytest.mark.parametrize("detail", [0, 1, 2])
def test_denoised_readings_keep_to_what_the_gist_says(detail: int) -> None:
    codec, cells, texts = tiny_codec(), tiny_codec().model.cells, [passages()[-1], LONG]
    block = block_of(*texts, detail=detail)
    (read,) = denoise(codec, [block], options=QUICK)
    if detail:  # a gist of more detail is read as one that says no more
        assert read == denoise(codec, [block_of(*texts)], detail=detail, options=QUICK)[0]
    for slot, gist in codec.gists(block).items():
        assert gist.detail == detail and len(gist.tokens) == len(text_tokens(codec, texts)[slot])
        if not cells.is_open(gist.tokens, detail).any():
            assert read[slot] == texts[slot]


def test_a_gist_is_not_read_with_more_detail_than_it_has() -> None:
    block = block_of(passages()[0], detail=1)
    with pytest.raises(UsageError, match="written with detail 1"):
        denoise(tiny_codec(), [block], detail=0)
    for detail in (-1, 3):
        with pytest.raises(UsageError, match="0 to 2"):
            denoise(tiny_codec(), [block], detail=detail)


def test_the_decoder_reads_a_whole_gist_with_a_prior_over_entries() -> None:
    codec, block = tiny_codec(), block_of(*passages()[:4], LONG)
    assert denoise(codec, [block]) == codec.read_gist([block])


def test_what_stood_in_holes_does_not_matter() -> None:
    codec, cells, patch = tiny_codec(), tiny_codec().model.cells, tiny_codec().model.config.patch
    pieces = [Gist(cells.named(t, 1), 1) for t in text_tokens(codec, [p[:150] for p in passages()[:3]])]
    holes = [np.arange(-(-len(p.tokens) // patch)) % 2 == 0 for p in pieces]
    lost = [hole.repeat(patch)[: len(p.tokens)] for hole, p in zip(holes, pieces, strict=True)]
    hidden = [Gist(np.where(m, 0, p.tokens), 1) for m, p in zip(lost, pieces, strict=True)]
    read = reread(codec, pieces, holes)
    for tokens, other, piece, m in zip(read, reread(codec, hidden, holes), pieces, lost, strict=True):
        assert np.array_equal(tokens, other)
        assert np.array_equal(cells.named(tokens, 1)[~m], piece.tokens[~m])


@pytest.mark.parametrize("by", ["coder", "prior"])
def test_a_text_goes_on_by_as_many_tokens(by: str) -> None:
    codec = tiny_codec()
    most = (codec.model.config.segment - 1) * codec.model.config.patch
    for text in (passages()[0], passages()[0][:41], LONG):
        block = block_of(text)
        for tokens in (1, 30, most):
            more = proceed(codec, [(block, 0)], tokens=tokens, by=by, options=QUICK)
            assert isinstance(more, str) and more
    for tokens in (0, most + 1):
        with pytest.raises(UsageError, match="tokens"):
            proceed(codec, [(block, 0)], tokens=tokens, by=by)
    with pytest.raises(UsageError, match="kept plain"):
        proceed(codec, [(block_of("日本"), 0)], tokens=5, by=by)


def test_nobody_else_goes_on() -> None:
    with pytest.raises(UsageError, match="coder, prior"):
        proceed(tiny_codec(), [(block_of(passages()[0]), 0)], by="me")
    with pytest.raises(UsageError, match="temperature"):
        Sampling(temperature=-1.0)


def test_what_is_missing() -> None:
    assert choose_missing(10, 0.3, 0).sum() == 3
    assert np.array_equal(choose_missing(10, 0.3, 1), choose_missing(10, 0.3, 1))
    assert np.flatnonzero(choose_missing(10, [2, 9], 0)).tolist() == [2, 9]
    for wrong in (1.5, -0.1, [10], [-1]):
        with pytest.raises(UsageError, match="missing"):
            choose_missing(10, wrong, 0)


def test_tokens_of_a_text_are_those_that_are_stored() -> None:
    codec, texts = tiny_codec(), [passages()[0], "", LONG, passages()[5]]
    stored = codec.gists(block_of(*texts))
    assert {0, 2, 3} >= set(stored) >= {2}
    for slot, tokens in enumerate(text_tokens(codec, texts)):
        if slot in stored:
            assert np.array_equal(codec.model.cells.named(tokens, 0), stored[slot].tokens)


def test_scores() -> None:
    scores = score(tiny_codec(), [passages()[0], "", LONG], by="prior", draws=2)
    assert np.isfinite(scores[[0, 2]]).all() and np.isnan(scores[1])
    again = score(tiny_codec(), [passages()[0], "", LONG], by="prior", draws=2)
    assert np.array_equal(scores, again, equal_nan=True)
    coded = score(tiny_codec(), [passages()[0], "", LONG])
    tokens = len(tiny_codec().model.tokenizer.encode([LONG.encode()])[0])
    assert np.isnan(coded[1]) and coded[2] == -tiny_codec().bits([LONG])[0] / tokens
    shuffled = " ".join(np.random.default_rng(0).permutation(LONG.split()))
    assert coded[2] > score(tiny_codec(), [shuffled], by="coder")[0]
    with pytest.raises(UsageError, match="coder, prior"):
        score(tiny_codec(), ["text"], by="me")
