"""A text that goes on, or whose gaps are filled: drawn token by token from what the coder expects, by the
tables that decode archives.

No torch: it is NumPy's networks that advance the few lanes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from colazip.memory import ORDERS, BlockMemory
from colazip.nn.portable import one_thread

if TYPE_CHECKING:
    from colazip.pretrained import Model
    from colazip.side import Side

CANDIDATES = 16  # fillings of a gap that are drawn side by side
HEARD = 8  # known tokens behind a gap that choose among them


def go_on(
    model: Model, known: np.ndarray, count: int, *, detail: int, temperature: float, seed: int
) -> np.ndarray:
    """`count` tokens int64 [count] after those of a gist int64 [T]; both together fit into a segment.

    temperature: probabilities are raised to its inverse; 0 takes the likeliest each time. The same seed gives
    the same tokens.
    """
    tokens = np.concatenate([known, np.zeros(count, np.int64)])
    missing = np.arange(len(tokens)) >= len(known)
    drawn = fill_in(model, tokens, missing, detail=detail, temperature=temperature, seed=seed, candidates=1)
    return drawn[len(known) :]


def fill_in(
    model: Model,
    tokens: np.ndarray,
    missing: np.ndarray,
    *,
    detail: int,
    temperature: float,
    seed: int,
    candidates: int = CANDIDATES,
    side: Side | None = None,
) -> np.ndarray:
    """Tokens of a gist, int64 [T], with those of `missing`, bool [T], drawn anew; a segment at most.

    The coder sees what stands before a gap, not what follows. So several fillings are drawn side by side, and
    the one stays after which the HEARD tokens behind the gap (fewer where the next gap is near) are
    likeliest. Last, the decoder's one pass over all of the gist says what stands behind the drawn tokens that
    it leaves open. temperature, seed: as of `go_on`. side: what is known of the text by its search codes, one
    lane; both networks are told.
    """
    rng = np.random.default_rng(seed)
    writer = _Writer(model, tokens, detail, candidates, side)
    with one_thread():
        for at in range(len(tokens)):
            if writer.heard == HEARD or (missing[at] and writer.heard):
                writer.choose()
            writer.look(at)
            if missing[at]:
                writer.draw(temperature, rng)
            else:
                writer.hear()
        writer.choose()
    gist, net = writer.gist, model.portable
    where = net.is_open(gist, detail) & missing
    drawn = gist[0].copy()
    if where.any():
        table = net.rare_table(gist, np.array([len(drawn)]), where, detail, side)
        slots = _draw(table, temperature, rng)
        drawn[where[0]] = net.rarer(gist[where], slots)
    return drawn


class _Writer:
    """Candidates of one text that advance together. heard: known tokens since the last gap, if that waits for
    a choice."""

    def __init__(
        self, model: Model, tokens: np.ndarray, detail: int, candidates: int, side: Side | None
    ) -> None:
        self._net, self._names, self._patch = model.portable, model.cells, model.config.patch
        self._detail, self._end = detail, len(tokens)
        self._points = model.config.pointer is not None
        self._lanes = np.arange(candidates)
        self._table = np.zeros((candidates, ORDERS + -(-len(tokens) // self._patch) * self._patch), np.int64)
        self._table[:, ORDERS : ORDERS + len(tokens)] = tokens
        self._memory = BlockMemory(candidates)
        self._likelihood = np.zeros(candidates)  # log2, of the tokens heard
        self._waits = False
        self.heard = 0
        self._net.start(candidates, detail, None if side is None else side.subset([0] * candidates))

    @property
    def gist(self) -> np.ndarray:
        """int64 [1, T]: the text, all candidates being the same."""
        return self._table[:1, ORDERS : ORDERS + self._end]

    def look(self, at: int) -> None:
        """Take in the tokens before `at`."""
        if at % self._patch == 0:
            here = ORDERS + at
            self._net.context(
                at // self._patch, self._table[:, max(0, here - self._patch) : max(self._patch, here)]
            )
        self._at = at
        self._history = self._table[:, at : at + ORDERS][:, ::-1]
        self._guess = self._memory.guess(self._lanes, self._history)

    def _classes(self) -> np.ndarray:
        return self._net.class_table(self._at % self._patch, self._lanes, self._history, *self._guess)

    def draw(self, temperature: float, rng: np.random.Generator) -> None:
        """Each candidate's own next token."""
        classes = _draw(self._classes(), temperature, rng)
        slots = np.zeros(len(classes), np.int64)
        said = np.flatnonzero(self._net.has_slots(classes, self._detail))
        if len(said):
            slots[said] = _draw(self._net.slot_table(classes)[said], temperature, rng)
        self._table[:, ORDERS + self._at] = self._net.tokens(classes, slots)
        self._memory.learn(self._table[:, ORDERS + self._at])
        self._waits = len(self._lanes) > 1

    def hear(self) -> None:
        """The next token is known."""
        came = self._table[:, ORDERS + self._at]
        if self._waits or self._points:  # tokens that may be pointed at have to be looked at
            table = self._classes()
        if self._waits:
            classes = self._names.class_of[came]
            self._likelihood += _log2(table, classes)
            said = np.flatnonzero(self._net.has_slots(classes, self._detail))
            if len(said):
                slots = self._names.slot_of[came][said]
                self._likelihood[said] += _log2(self._net.slot_table(classes)[said], slots)
            self.heard += 1
        self._memory.learn(came)

    def choose(self) -> None:
        """All candidates go on from the one that what was heard speaks for."""
        best = int(self._likelihood.argmax())
        self._net.follow(best)
        self._memory.follow(best)
        self._table[:] = self._table[best]
        self._likelihood[:] = 0.0
        self._waits, self.heard = False, 0


def _log2(tables: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Of the frequency of a symbol int64 [N] in each cumulative table int32 [N, A + 1]: float64 [N]."""
    at = np.arange(len(symbols))
    return np.log2((tables[at, symbols + 1] - tables[at, symbols]).astype(np.float64))


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
