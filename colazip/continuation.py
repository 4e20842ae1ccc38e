"""A text that goes on: drawn token by token from what the coder expects, by the tables that decode archives.

No torch: it is NumPy's networks that advance one lane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from colazip.config import ModelConfig
from colazip.memory import ORDERS, BlockMemory

if TYPE_CHECKING:
    from colazip.nn.steps import Networks

_LANE = np.zeros(1, np.int64)


def go_on(
    net: Networks,
    config: ModelConfig,
    known: np.ndarray,
    count: int,
    *,
    detail: int,
    temperature: float,
    seed: int,
) -> np.ndarray:
    """`count` tokens int64 [count] after those of a gist int64 [T]; both together fit into a segment.

    First the gist goes on, then the decoder's one pass over all of it says what stands behind its open
    tokens. temperature: probabilities are raised to its inverse; 0 takes the likeliest each time. The same
    seed gives the same tokens.
    """
    rng = np.random.default_rng(seed)
    patch, end = config.patch, len(known) + count
    patches = -(-end // patch)
    tokens = np.zeros((1, ORDERS + patches * patch), np.int64)
    tokens[0, ORDERS : ORDERS + len(known)] = known
    memory = BlockMemory(1)
    net.start(1, detail)
    for i in range(patches):
        here = ORDERS + i * patch
        net.context(i, tokens[:, max(0, here - patch) : max(patch, here)])
        for k in range(min(patch, end - i * patch)):
            at = i * patch + k
            history = tokens[:, at : at + ORDERS][:, ::-1]
            guess, kind = memory.guess(_LANE, history)
            if at >= len(known):
                classes = _draw(net.class_table(k, _LANE, history, guess, kind), temperature, rng)
                slots = np.zeros(1, np.int64)
                if net.has_slots(classes, detail)[0]:
                    slots = _draw(net.slot_table(classes), temperature, rng)
                tokens[:, ORDERS + at] = net.tokens(classes, slots)
            memory.learn(tokens[:, ORDERS + at])
    gist = tokens[:, ORDERS:]
    place = np.arange(gist.shape[1])
    where = net.is_open(gist, detail) & (place >= len(known)) & (place < end)
    drawn = gist[0].copy()
    if where.any():
        slots = _draw(net.rare_table(gist, np.array([end]), where, detail), temperature, rng)
        drawn[where[0]] = net.rarer(gist[where], slots)
    return drawn[len(known) : end]


def _draw(tables: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """A symbol for each cumulative table: int32 [N, A + 1] -> int64 [N].

    Every symbol has a frequency of at least 1, so that it could be coded; what has no more is never drawn.
    """
    weights = (np.diff(tables) - 1).astype(np.float64)
    if temperature == 0.0:
        return weights.argmax(1)
    weights = (weights / weights.max(1, keepdims=True)) ** (1.0 / temperature)
    sums = np.cumsum(weights, 1)
    return (sums <= rng.random((len(sums), 1)) * sums[:, -1:]).sum(1)
