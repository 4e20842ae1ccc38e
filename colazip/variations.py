"""What the model makes of stored text: a denoised reading, a variant, holes filled, a text that goes on; and
how likely a text is. `colazip.prior` works on latents, `colazip.continuation` with the coder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from colazip.codec import Gist, one_at_a_time
from colazip.continuation import fill_in, go_on
from colazip.errors import UsageError
from colazip.layers import Block
from colazip.nn.entries import NOWHERE
from colazip.prior import Prior
from colazip.sampling import CODER, PRIOR, WRITERS, Sampling
from colazip.side import Side

if TYPE_CHECKING:
    from colazip.codec import Codec

_LEAST = 0.1  # probability of a token that the prior names in a hole; below, the commonest token stands
_TRIED = 128  # patches of a text that tell how much noise changes its tokens

Parts = Sequence[tuple[Block, int]]  # a record's parts: block, and slot in it


@one_at_a_time
def denoise(
    codec: Codec,
    blocks: Sequence[Block],
    *,
    detail: int | None = None,
    missing: float = 0.0,
    options: Sampling | None = None,
) -> list[list[str]]:
    """Readings of every part, as `Codec.read_gist` gives them, but with the prior's help (`reread`), inside
    the cells that are known.

    detail: read the gist as if it had been written with this one; None takes it as it is. missing: and as if
    this share of its patches were lost, evenly spread: 0.5 is every other one. Raises UsageError if the gist
    was written with less detail, or there is none such.
    """
    if not 0.0 <= missing < 1.0:
        raise UsageError(f"missing {missing}: a share must be at least 0 and below 1")
    cells = codec.model.cells
    if detail is not None and not 0 <= detail < cells.details:
        raise UsageError(f"detail {detail}: gists of this model have 0 to {cells.details - 1}")
    result = []
    for block in blocks:
        pieces, holes, lengths = [], [], {}
        for slot, gist in codec.gists(block).items():
            if detail is not None and detail < gist.detail:
                raise UsageError(f"detail {detail}: this gist was written with detail {gist.detail}")
            chosen = gist.detail if detail is None else detail
            mine = _pieces(codec, replace(gist, tokens=cells.named(gist.tokens, chosen), detail=chosen))
            pieces += mine
            holes += [_thinned(codec, piece, missing) for piece in mine]
            lengths[slot] = len(mine)
        read = iter(reread(codec, pieces, holes if missing else None, options))
        texts = dict.fromkeys(range(block.count), "")
        texts |= codec.plain_texts(block)
        for slot, count in lengths.items():
            texts[slot] = _text(codec, [next(read) for _ in range(count)])
        result.append([texts[slot] for slot in range(block.count)])
    return result


def _thinned(codec: Codec, piece: Gist, missing: float) -> np.ndarray:
    """Which patches of a gist count as missing, bool [P]."""
    at = np.arange(-(-len(piece.tokens) // codec.model.config.patch) + 1) * missing
    return np.diff(np.floor(at + 1e-9)) > 0  # a third of three is one, whatever floats say


def reread(
    codec: Codec,
    pieces: Sequence[Gist],
    holes: Sequence[np.ndarray] | None = None,
    options: Sampling | None = None,
) -> list[np.ndarray]:
    """Tokens int64 [T] of gists of a segment at most, what they leave open found with the prior's help.

    A prior that knows the tokens names those of holes, the commonest token where it is unsure; what the gist
    leaves open is the decoder's to read, which knows more of it (docs/experiments.md, 35). A prior over
    values alone draws, and the nearest token in the cell stays. holes: bool [P] each, patches of which
    nothing is known.
    """
    if not codec.model.config.prior_features:
        return _drawn(codec, pieces, holes, options or Sampling())
    prior, cells, patch = Prior.from_codec(codec), codec.model.cells, codec.model.config.patch
    sets = cells.sets()
    known = [cells.known(p.tokens, p.detail) for p in pieces]
    tokens = [np.array(p.tokens, np.int64) for p in pieces]
    if holes is not None:
        lost = [_lost(codec, hole, t) for hole, t in zip(holes, tokens, strict=True)]
        for told, missing in zip(known, lost, strict=True):
            told[missing] = len(cells.class_of)
        named = prior.name([_parts(told, patch) for told in known], sets, least=_LEAST)
        for told, read, missing, parts in zip(known, tokens, lost, named, strict=True):
            told[missing] = read[missing] = parts.reshape(-1)[: len(told)][missing]
    filled = [replace(p, tokens=cells.named(t, p.detail)) for t, p in zip(tokens, pieces, strict=True)]
    is_named, read_by = [told < len(cells.class_of) for told in known], codec.read_tokens(filled)
    return [np.where(own, t, r) for own, t, r in zip(is_named, tokens, read_by, strict=True)]


def _parts(known: np.ndarray, patch: int) -> np.ndarray:
    """What is known of tokens [T] -> of their patches [P, K]."""
    return np.pad(known, (0, -len(known) % patch), constant_values=NOWHERE).reshape(-1, patch)


def _drawn(
    codec: Codec, pieces: Sequence[Gist], holes: Sequence[np.ndarray] | None, options: Sampling
) -> list[np.ndarray]:
    """What `reread` does with a prior over values alone."""
    cells = codec.model.cells
    boxes = [cells.boxes(p.tokens, p.detail) for p in pieces]
    centres = [_patches(codec, centre) for centre, _ in boxes]
    reaches = [_patches(codec, reach) for _, reach in boxes]
    if holes is not None:
        reaches = [np.where(h[:, None], np.inf, r) for r, h in zip(reaches, holes, strict=True)]
    drawn = Prior.from_codec(codec).denoise(centres, reaches, options)
    result = []
    for at, (values, piece) in enumerate(zip(drawn, pieces, strict=True)):
        near = _tokens(codec, values, len(piece.tokens))
        read = cells.nearest(near, piece.tokens, piece.detail)
        if holes is not None:
            missing = _lost(codec, holes[at], read)
            read[missing] = cells.anywhere(near[missing])
        result.append(read)
    return result


@one_at_a_time
def regenerate(
    codec: Codec,
    parts: Parts,
    *,
    strength: float = 0.3,
    by: str = CODER,
    options: Sampling | None = None,
) -> str:
    """A variant of a record.

    by: `coder`, which the text is coded with: it writes a share `strength` of the words of the gist reading
    anew (`rewrite`), heeding the search codes that the gist was coded given. Or the diffusion `prior`: the
    latents of the reading are noised and denoised (`vary`). Parts kept in PLAIN have no gist and come back as
    they are. Raises UsageError.
    """
    chosen = options or Sampling()
    _check_writer(by)

    def change(pieces: list[Gist]) -> list[np.ndarray]:
        tokens = [p.tokens for p in pieces]
        if by == PRIOR:
            return vary(codec, tokens, strength, chosen)
        return rewrite(codec, tokens, strength, chosen, [p.side for p in pieces])

    return _changed(codec, parts, change)


def rewrite(
    codec: Codec,
    pieces: Sequence[np.ndarray],
    strength: float,
    options: Sampling,
    sides: Sequence[Side | None] | None = None,
) -> list[np.ndarray]:
    """Tokens int64 [T] of segments, a share `strength` of all their words written anew by the coder in as
    many tokens (`write_in`). Words are those of `WordHash.units`; what stands between them counts as words,
    too. A greater strength takes more words beside those that a smaller one takes. Raises UsageError."""
    _check_strength(strength)
    units = codec.model.rows.words.units
    word, words = [], 0
    for piece in pieces:
        first = np.zeros(len(piece), np.int64)
        first[units(piece)] = 1
        word.append(words + np.cumsum(first) - 1)
        words += int(first.sum())
    taken = choose_missing(words, strength, options.seed)
    return write_in(codec, pieces, [taken[w] for w in word], options, sides)


def _check_strength(strength: float) -> None:
    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"strength {strength}: must lie between 0 and 1")


def vary(codec: Codec, pieces: Sequence[np.ndarray], strength: float, options: Sampling) -> list[np.ndarray]:
    """Tokens int64 [T] of segments, their latents noised and denoised by the prior.

    strength: the share of the tokens that the noise would turn into others if nothing denoised them: 0 gives
    the tokens as they are, 1 starts from noise alone. Shares of noise themselves would be a poor scale: next
    to none up to a tenth, then nearly all of the tokens by a half. Raises UsageError.
    """
    _check_strength(strength)
    if strength == 0.0:
        return list(pieces)
    prior, cells = Prior.from_codec(codec), codec.model.cells
    latents = [_patches(codec, cells.places[p]) for p in pieces]
    drawn = prior.variants(latents, _noise_that_changes(codec, prior, pieces, strength), options)
    return [cells.anywhere(_tokens(codec, d, len(p))) for d, p in zip(drawn, pieces, strict=True)]


def _noise_that_changes(codec: Codec, prior: Prior, pieces: Sequence[np.ndarray], share: float) -> float:
    """The share of noise at which a share of the tokens is nearest to the latents of others, by bisection."""
    if share == 1.0:
        return 1.0
    cells, patch = codec.model.cells, codec.model.config.patch
    tokens = np.concatenate([p[: len(p) // patch * patch] for p in pieces])
    if not len(tokens):  # too short to tell
        return share
    some = np.linspace(0, len(tokens) // patch - 1, min(len(tokens) // patch, _TRIED)).astype(np.int64)
    tokens = tokens.reshape(-1, patch)[some].reshape(-1)
    latents = _patches(codec, cells.places[tokens])
    noise = np.random.default_rng(0).standard_normal(latents.shape, np.float32)
    noise *= prior.network.deviation.cpu().numpy()
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        moved = latents + middle / (1.0 - middle) * noise
        if (cells.anywhere(_tokens(codec, moved, len(tokens))) != tokens).mean() < share:
            low = middle
        else:
            high = middle
    return high


@one_at_a_time
def fill(
    codec: Codec,
    parts: Parts,
    *,
    missing: float | Sequence[int] = 0.3,
    by: str = CODER,
    options: Sampling | None = None,
) -> str:
    """The gist reading of a record whose missing patches are drawn anew, given those on both sides.

    missing: a share of all patches, chosen by the seed, or the numbers of some, counted over the record from
    0. by: `coder`, which the text is coded with, or the diffusion `prior`. Parts kept in PLAIN have no
    patches. Raises UsageError.
    """
    chosen = options or Sampling()
    _check_writer(by)

    def change(pieces: list[Gist]) -> list[np.ndarray]:
        counts = [-(-len(p.tokens) // codec.model.config.patch) for p in pieces]
        every = choose_missing(sum(counts), missing, chosen.seed)
        holes, tokens = np.split(every, np.cumsum(counts)[:-1]), [p.tokens for p in pieces]
        if by == PRIOR:
            return infill(codec, tokens, holes, chosen)
        lost = [_lost(codec, hole, piece) for hole, piece in zip(holes, tokens, strict=True)]
        return write_in(codec, tokens, lost, chosen, [p.side for p in pieces])

    return _changed(codec, parts, change)


def write_in(
    codec: Codec,
    pieces: Sequence[np.ndarray],
    missing: Sequence[np.ndarray],
    options: Sampling,
    sides: Sequence[Side | None] | None = None,
) -> list[np.ndarray]:
    """Tokens int64 [T] of segments with those of `missing`, bool [T], written anew by the coder.

    It takes them as a gist of detail 0 would say them; what is not missing stays as it is. sides: of each
    segment what is known of it by its search codes, if anything.
    """
    result = []
    known = [None] * len(pieces) if sides is None else sides
    for at, (piece, lost, side) in enumerate(zip(pieces, missing, known, strict=True)):
        tokens = np.array(piece, np.int64)
        if lost.any():
            written = fill_in(
                codec.model,
                codec.model.cells.named(tokens, 0),
                lost,
                detail=0,
                temperature=options.temperature,
                seed=options.seed + at,
                side=side,
            )
            tokens[lost] = written[lost]
        result.append(tokens)
    return result


def infill(
    codec: Codec, pieces: Sequence[np.ndarray], holes: Sequence[np.ndarray], options: Sampling
) -> list[np.ndarray]:
    """Tokens int64 [T] of segments with the patches of `holes`, bool [P], filled in by the prior: the
    likeliest ones, or drawn if it is one over values alone."""
    prior, cells, patch = Prior.from_codec(codec), codec.model.cells, codec.model.config.patch
    if codec.model.config.prior_features:
        known = []
        for piece, hole in zip(pieces, holes, strict=True):
            missing = _lost(codec, hole, piece)
            known.append(_parts(np.where(missing, len(cells.class_of), piece), patch))
        named = prior.name(known, cells.sets())
        return [told.reshape(-1)[: len(p)] for told, p in zip(named, pieces, strict=True)]
    latents = [_patches(codec, cells.places[p]) for p in pieces]
    result = []
    for drawn, piece, hole in zip(prior.infill(latents, holes, options), pieces, holes, strict=True):
        missing = _lost(codec, hole, piece)
        tokens = np.array(piece, np.int64)
        tokens[missing] = cells.anywhere(_tokens(codec, drawn, len(piece))[missing])
        result.append(tokens)
    return result


def _lost(codec: Codec, hole: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Which tokens [T] of a segment are of the patches of `hole`, bool [P]: bool [T]."""
    return np.repeat(hole, codec.model.config.patch)[: len(tokens)]


def choose_missing(count: int, missing: float | Sequence[int], seed: int) -> np.ndarray:
    """Which of `count` patches are missing, bool [count]. Raises UsageError."""
    holes = np.zeros(count, bool)
    if isinstance(missing, float | int):
        if not 0.0 <= missing <= 1.0:
            raise UsageError(f"missing {missing}: a share must lie between 0 and 1")
        order = np.random.default_rng(seed).permutation(count)
        holes[order[: round(missing * count)]] = True
        return holes
    for number in missing:
        if not 0 <= number < count:
            raise UsageError(f"missing {number}: the record has {count} patches, counted from 0")
        holes[number] = True
    return holes


@one_at_a_time
def proceed(
    codec: Codec, parts: Parts, *, tokens: int = 200, by: str = CODER, options: Sampling | None = None
) -> str:
    """`tokens` tokens that go on from a record, without the record itself.

    by: `coder`, the autoregressive network that the gist is coded with, or `prior`. Both see as much of the
    record's end as goes with the tokens into a segment. Raises UsageError, also for a record whose end was
    kept in PLAIN.
    """
    config, chosen = codec.model.config, options or Sampling()
    _check_writer(by)
    most = config.segment * config.patch - config.patch
    if not 1 <= tokens <= most:
        raise UsageError(f"{tokens} tokens: between 1 and {most} can be added")
    found = [codec.gists(block).get(slot) for block, slot in parts]
    if not found or found[-1] is None:
        raise UsageError("the record's end is kept plain: it has no gist to go on from")
    gists = [gist for gist in found if gist is not None]
    room = config.segment * config.patch - tokens
    if by == PRIOR:
        known = _end(codec, np.concatenate(codec.read_tokens(gists)), room)
        return _text(codec, [_drawn_on(codec, known, tokens, chosen)])
    detail = gists[-1].detail
    known = _end(codec, np.concatenate([gist.tokens for gist in gists if gist.detail == detail]), room)
    more = go_on(
        codec.model,
        known,
        tokens,
        detail=detail,
        temperature=chosen.temperature,
        seed=chosen.seed,
    )
    return _text(codec, [more])


def _end(codec: Codec, tokens: np.ndarray, room: int) -> np.ndarray:
    """The last `room` tokens at most; whole patches go in front, so that the others stay as they are."""
    patch = codec.model.config.patch
    return tokens[max(0, -(-(len(tokens) - room) // patch)) * patch :]


def _drawn_on(codec: Codec, known: np.ndarray, count: int, options: Sampling) -> np.ndarray:
    """`count` tokens that the prior draws after `known`, int64 both."""
    cells, prior = codec.model.cells, Prior.from_codec(codec)
    if codec.model.config.prior_features:
        missing = np.full(count, len(cells.class_of))
        told = _parts(np.concatenate([known, missing]), codec.model.config.patch)
        (entries,) = prior.draw([told], cells.sets(), options)
        return entries.reshape(-1)[len(known) :][:count]
    centre = np.zeros((len(known) + count, codec.model.config.channels), np.float32)
    reach = np.full_like(centre, np.inf)
    centre[: len(known)], reach[: len(known)] = cells.places[known], 0.0
    (values,) = prior.denoise([_patches(codec, centre)], [_patches(codec, reach)], options)
    return cells.anywhere(_tokens(codec, values, len(centre))[len(known) :])


@one_at_a_time
def score(
    codec: Codec, texts: Sequence[str | bytes], *, by: str = CODER, draws: int = 16, seed: int = 0
) -> np.ndarray:
    """How likely each text is, float64 [N]; higher is likelier, nan for an empty text.

    by: `coder` gives minus the bits a token that coding the text takes (`Codec.bits`), `prior` what the
    tokens tell of one another (`Prior.told_by_the_rest`), or if it is one over values alone the `Prior.score`
    of their latents. Raises UsageError.
    """
    _check_writer(by)
    if by == CODER:
        counts = np.array([len(tokens) for tokens in text_tokens(codec, texts)])
        return np.where(counts > 0, -codec.bits(texts) / np.maximum(counts, 1), np.nan)
    pieces = [_segments(codec, tokens) for tokens in text_tokens(codec, texts)]
    prior, flat = Prior.from_codec(codec), [p for some in pieces for p in some]
    if codec.model.config.prior_features:
        found = prior.told_by_the_rest([_parts(p, codec.model.config.patch) for p in flat], draws)
    else:
        latents = [_patches(codec, codec.model.cells.places[p]) for p in flat]
        found = prior.score(latents, draws=draws, seed=seed)
    scores = iter(found)
    result = np.full(len(texts), np.nan)
    for i, some in enumerate(pieces):
        if some:
            result[i] = np.average([next(scores) for _ in some], weights=[len(p) for p in some])
    return result


def _check_writer(by: str) -> None:
    if by not in WRITERS:
        raise UsageError(f"by {by!r} is none of {', '.join(WRITERS)}")


def text_tokens(codec: Codec, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """Tokens of each text, int64 [T]."""
    data = [t.encode("utf-8", "surrogatepass") if isinstance(t, str) else t for t in texts]
    return [np.asarray(t, np.int64) for t in codec.model.tokenizer.encode(data)]


def _changed(codec: Codec, parts: Parts, change: Callable[[list[Gist]], list[np.ndarray]]) -> str:
    """Text of a record, the tokens of its gist reading changed: all of its segments at once, which come as
    gists of the reading."""
    gists = [codec.gists(block).get(slot) for block, slot in parts]
    read = iter(codec.read_tokens([gist for gist in gists if gist is not None]))
    pieces = [[] if gist is None else _pieces(codec, replace(gist, tokens=next(read))) for gist in gists]
    changed = iter(change([p for some in pieces for p in some]) if any(pieces) else [])
    return "".join(
        codec.plain_texts(block).get(slot, "")
        if gist is None
        else _text(codec, [next(changed) for _ in some])
        for (block, slot), gist, some in zip(parts, gists, pieces, strict=True)
    )


def _pieces(codec: Codec, gist: Gist) -> list[Gist]:
    """A gist cut into those of what the networks see at a time."""
    length, side = codec.model.config.segment, gist.side
    return [
        replace(gist, tokens=tokens, side=side and side.patches(i * length, (i + 1) * length))
        for i, tokens in enumerate(_segments(codec, gist.tokens))
    ]


def _segments(codec: Codec, tokens: np.ndarray) -> list[np.ndarray]:
    """Tokens cut into what the networks see at a time."""
    length = codec.model.config.segment * codec.model.config.patch
    return [tokens[lo : lo + length] for lo in range(0, len(tokens), length)]


def _patches(codec: Codec, values: np.ndarray) -> np.ndarray:
    """Values of tokens [T, C] -> of their patches [P, K * C], zero where there is no token."""
    patch = codec.model.config.patch
    padded = np.pad(values, ((0, -len(values) % patch), (0, 0)))
    return padded.reshape(len(padded) // patch, -1)


def _tokens(codec: Codec, patches: np.ndarray, count: int) -> np.ndarray:
    """The other way: values of patches [P, K * C] -> of `count` tokens [T, C]."""
    return patches.reshape(-1, codec.model.config.channels)[:count]


def _text(codec: Codec, tokens: Sequence[np.ndarray]) -> str:
    decode = codec.model.tokenizer.decode
    return b"".join(decode(t.tolist()) for t in tokens).decode("utf-8", "replace")
