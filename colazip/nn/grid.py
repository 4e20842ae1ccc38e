"""Numbers that both implementations of the exact layers share. No torch."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import numpy as np

GRID = 127.0  # operands of products are integers within +-GRID
MAX_K = 1040  # 127 * 127 * 1040 < 2**24: sums of that many products are exact in float32
ATTENTION_KEYS = 512  # 255 * 127 * 512 < 2**24
POINTER_KEYS = 1024  # weights of so many keys add up to less than 2**18
POINTER_RMS = 40.0  # of the integers of queries and keys of the pointer
SHARES = 256  # of the weights of a slot, once the class is known: some are the network's, some pointed at
VALUE_STEPS = 32.0  # attention values live on a grid of 1/32 within +-127/32
TABLE_STEPS = 32  # tables of exp2 go in steps of 1/32
PRECISION = 20  # frequencies of one table add up to 2**PRECISION, as the entropy coder wants

LOOKED_UP = 2048  # vectors at most whose likenesses to all tokens are kept: 32 KiB each

CLOSED = -1e4  # logit, in log2 units, of a slot that can't come; its frequency is the least there is


def _exp2_table(count: int, top: int, floor: int) -> np.ndarray:
    """round(top * 2**(-i / TABLE_STEPS)) for i < count, at least `floor`; float32."""
    # decimal gives correctly rounded powers on every platform, where the C library's exp2 need not.
    with localcontext() as context:
        context.prec = 40
        root = Decimal(2) ** (Decimal(-1) / Decimal(TABLE_STEPS))
        values, value = [], Decimal(top)
        for _ in range(count):
            values.append(max(floor, int(value.to_integral_value())))
            value *= root
    return np.array(values, np.float32)


# Attention weights are integers of at most 8 bits: one under 1/510 of the largest is 0.
ATTENTION_TABLE = _exp2_table(10 * TABLE_STEPS, 255, 0)
FREQUENCY_TABLE = _exp2_table(PRECISION * TABLE_STEPS, 2**PRECISION, 1)


def alibi_slopes(heads: int) -> np.ndarray:
    """Distance penalties in log2 units a position, float32 [H]: powers of two (exact in float32), the last
    head without one.

    After ALiBi (arXiv 2108.12409). A table of sines would have to be computed the same everywhere; this need
    not.
    """
    exponents = [1 + round(7 * i / max(1, heads - 1)) for i in range(heads - 1)]
    return np.array([2.0**-e for e in exponents] + [0.0], np.float32)


def ngram_rows(history: Any, rows: int) -> tuple[Any, Any]:
    """Rows of the tables of bigrams and trigrams for the tokens before, latest first.

    history: int64 [N, 3], a NumPy array or a tensor alike -> two of [N].
    """
    one, two, three = history[..., 0], history[..., 1], history[..., 2]
    return (
        (one * 40503 + two * 30011 + 7) % rows,
        (one * 40503 + two * 30011 + three * 52711 + 11) % rows,
    )
