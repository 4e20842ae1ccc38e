"""What the diffusion prior makes of stored text: a denoised reading, a variant, holes filled in, a text that
goes on; and how likely a text is. `colazip.prior` does the work on latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from colazip.errors import UsageError
from colazip.lanes import lay_out
from colazip.layers import Block
from colazip.nn.vae import real_tokens
from colazip.planes import PLANES, cell_width, coarse
from colazip.prior import Prior
from colazip.sampling import Sampling

if TYPE_CHECKING:
    from colazip.codec import Codec

Parts = Sequence[tuple[Block, int]]  # a record's parts: block, and slot in it
Segments = list[tuple[np.ndarray, int]]  # levels float32 [P, K * C], and tokens

_SEGMENTS_AT_ONCE = 64
_MOST_VOTES = 64


def denoise(
    codec: Codec, blocks: Sequence[Block], *, planes: int = 1, options: Sampling | None = None
) -> list[list[str]]:
    """Readings of every part, as `Codec.read_gist` gives them, from the first planes of the gist alone.

    The prior draws the planes that are left out. Raises UsageError if none is.
    """
    width = cell_width(planes)
    if planes == PLANES:
        raise UsageError(f"planes {planes}: nothing to denoise, a gist has {PLANES}")
    prior = Prior.from_codec(codec)
    result = []
    for block in blocks:
        latents = codec.latents(block)
        flat = [segment for slot in sorted(latents) for segment in latents[slot]]
        drawn = prior.denoise([coarse(levels, planes) for levels, _ in flat], width / 2, options)
        tokens = iter(codec.read_segments([(d, n) for d, (_, n) in zip(drawn, flat, strict=True)]))
        texts = dict.fromkeys(range(block.count), "")
        texts |= codec.plain_texts(block)
        texts |= {slot: _joined(codec, [next(tokens) for _ in latents[slot]]) for slot in sorted(latents)}
        result.append([texts[slot] for slot in range(block.count)])
    return result


def regenerate(codec: Codec, parts: Parts, *, strength: float = 0.3, options: Sampling | None = None) -> str:
    """A variant of a record: its latents noised and denoised. strength: 0 gives the gist reading, 1 starts
    from noise alone. Parts kept in PLAIN have no latents and come back as they are. UsageError."""
    prior = Prior.from_codec(codec)
    return _changed(codec, parts, lambda levels: [prior.variants(levels, strength, options)])


def fill(
    codec: Codec,
    parts: Parts,
    *,
    missing: float | Sequence[int] = 0.3,
    votes: int = 1,
    options: Sampling | None = None,
) -> str:
    """A record whose missing patches the prior draws anew, given those on both sides.

    missing: a share of all patches, chosen by the seed, or the numbers of some, counted over the record from
    0. votes: how often each is drawn; of every token, the one read most often is taken. Parts kept in PLAIN
    have no patches. Raises UsageError.
    """
    if not 1 <= votes <= _MOST_VOTES:
        raise UsageError(f"votes {votes}: must lie between 1 and {_MOST_VOTES}")
    prior, chosen = Prior.from_codec(codec), options or Sampling()

    def change(levels: list[np.ndarray]) -> list[list[np.ndarray]]:
        holes = choose_missing(sum(map(len, levels)), missing, chosen.seed)
        masks = np.split(holes, np.cumsum([len(v) for v in levels])[:-1])
        return fillings(prior, levels, masks, votes, chosen)

    return _changed(codec, parts, change)


def fillings(
    prior: Prior,
    levels: Sequence[np.ndarray],
    missing: Sequence[np.ndarray],
    votes: int,
    options: Sampling,
) -> list[list[np.ndarray]]:
    """All segments filled in `votes` times: [vote][segment], levels [P, C]. missing: bool [P] each."""
    flat = prior.infill([*levels] * votes, [*missing] * votes, options)
    return [flat[i * len(levels) : (i + 1) * len(levels)] for i in range(votes)]


def elect(readings: Sequence[np.ndarray]) -> np.ndarray:
    """Of several readings of one segment, int64 [T] each, the token that most have at each place."""
    table = np.stack(readings)
    support = (table[:, None] == table[None]).sum(1)  # [votes, T]
    return np.take_along_axis(table, support.argmax(0)[None], 0)[0]


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


def proceed(codec: Codec, parts: Parts, *, tokens: int = 200, options: Sampling | None = None) -> str:
    """`tokens` tokens that go on from a record, without the record itself.

    The prior sees as much of the record's end as goes with them into a segment. Raises UsageError, also for a
    record whose end was kept in PLAIN.
    """
    config = codec.model.config
    most = config.segment * config.patch - config.patch
    if not 1 <= tokens <= most:
        raise UsageError(f"{tokens} tokens: between 1 and {most} can be added")
    segments: Segments = []
    for block, slot in parts:
        segments = [*segments, *codec.latents(block).get(slot, [])]
    if not segments or parts[-1][1] not in codec.latents(parts[-1][0]):
        raise UsageError("the record's end is kept plain: it has no gist to go on from")
    values = np.concatenate([v.reshape(-1)[: n * config.channels] for v, n in segments])
    room = config.segment * config.patch - tokens
    # Whole patches are dropped in front, so that those that stay keep their tokens.
    have = len(values) // config.channels
    drop = max(0, -(-(have - room) // config.patch)) * config.patch
    known = values[drop * config.channels :]
    kept = have - drop
    width = config.patch * config.channels
    count = -(-(kept + tokens) // config.patch)
    centre, reach = np.zeros(count * width, np.float32), np.full(count * width, np.inf, np.float32)
    centre[: len(known)], reach[: len(known)] = known, 0.0
    prior = Prior.from_codec(codec)
    (drawn,) = prior.denoise([centre.reshape(count, width)], [reach.reshape(count, width)], options)
    read = codec.read_levels(drawn, kept + tokens)[kept:]
    return codec.model.tokenizer.decode(read.tolist()).decode("utf-8", "replace")


def score(codec: Codec, texts: Sequence[str | bytes], *, draws: int = 16, seed: int = 0) -> np.ndarray:
    """How likely the prior holds each text, float64 [N]: `Prior.score` of its latents, the mean over its
    patches. Higher is likelier; nan for an empty text."""
    encoded = text_latents(codec, texts)
    flat = [levels for segments in encoded for levels, _ in segments]
    scores = iter(Prior.from_codec(codec).score(flat, draws=draws, seed=seed))
    result = np.full(len(texts), np.nan)
    for i, segments in enumerate(encoded):
        if segments:
            weights = [len(levels) for levels, _ in segments]
            result[i] = np.average([next(scores) for _ in segments], weights=weights)
    return result


@torch.inference_mode()
def text_latents(codec: Codec, texts: Sequence[str | bytes]) -> list[Segments]:
    """Latents of the segments of each text, as a gist layer would hold them."""
    config, vae = codec.model.config, codec.model.vae.to(codec.device)
    data = [t.encode("utf-8", "surrogatepass") if isinstance(t, str) else t for t in texts]
    tokens = codec.model.tokenizer.encode(data)
    lanes = lay_out([[len(t)] for t in tokens], config.segment * config.patch, config.patch)
    found: list[dict[int, tuple[np.ndarray, int]]] = [{} for _ in texts]
    for lo in range(0, len(lanes), _SEGMENTS_AT_ONCE):
        rows = range(lo, min(lo + _SEGMENTS_AT_ONCE, len(lanes)))
        x = np.zeros((len(rows), int(lanes.patches[lo]) * config.patch), np.int64)
        for i in rows:
            start, count = lanes.start[i], lanes.count[i]
            x[i - lo, :count] = tokens[lanes.block[i]][start : start + count]
        patches = torch.from_numpy(x).view(len(rows), -1, config.patch).to(codec.device)
        counts = torch.from_numpy(lanes.count[rows.start : rows.stop].copy()).to(codec.device)
        levels = vae.encode(patches, real_tokens(counts, patches)).levels.cpu().numpy()
        for i in rows:
            found[lanes.block[i]][int(lanes.start[i])] = (
                levels[i - lo, : lanes.patches[i]],
                int(lanes.count[i]),
            )
    return [[segments[start] for start in sorted(segments)] for segments in found]


def _changed(codec: Codec, parts: Parts, change: Callable[[list[np.ndarray]], list[list[np.ndarray]]]) -> str:
    """Text of a record, its latents changed, all of its segments at once. `change` may give several versions
    of them, of which the readings are put to the vote."""
    pieces: list[str | Segments] = []
    for block, slot in parts:
        segments = codec.latents(block).get(slot)
        pieces.append(codec.plain_texts(block).get(slot, "") if segments is None else segments)
    flat = [segment for piece in pieces if not isinstance(piece, str) for segment in piece]
    versions = change([levels for levels, _ in flat]) if flat else [[]]
    readings = [
        codec.read_segments([(v, n) for v, (_, n) in zip(version, flat, strict=True)]) for version in versions
    ]
    tokens = iter([elect(some) for some in zip(*readings, strict=True)])
    return "".join(
        piece if isinstance(piece, str) else _joined(codec, [next(tokens) for _ in piece]) for piece in pieces
    )


def _joined(codec: Codec, tokens: Sequence[np.ndarray]) -> str:
    decode = codec.model.tokenizer.decode
    return b"".join(decode(t.tolist()) for t in tokens).decode("utf-8", "replace")
