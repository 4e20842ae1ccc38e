"""The latent grid in planes, coarsest first: what the first of them alone say of a latent. No torch."""

from __future__ import annotations

import numpy as np

from colazip.errors import UsageError
from colazip.nn.grid import LEVEL, PLANE

PLANES = round(np.log(2 * LEVEL + 1) / np.log(PLANE))


def cell_width(planes: int) -> int:
    """Width, in levels, of the cells that the first `planes` planes tell apart. Raises UsageError."""
    if not 1 <= planes <= PLANES:
        raise UsageError(f"planes {planes}: a gist has {PLANES}")
    return int(PLANE ** (PLANES - planes))


def coarser_cells() -> tuple[float, ...]:
    """Widths of the cells of all the planes but the finest."""
    return tuple(float(cell_width(planes)) for planes in range(1, PLANES))


def coarse(levels: np.ndarray, planes: int) -> np.ndarray:
    """Levels as the first planes tell them: the centres of their cells."""
    width = cell_width(planes)
    return (np.round(levels / width) * width).astype(np.float32)
