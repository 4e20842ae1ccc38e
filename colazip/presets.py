"""Operating points: a name for each trade of speed against size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colazip.errors import UsageError
from colazip.layers import EXACT, GIST, LAYERS, PLAIN, SEARCH, check_layers


@dataclass(frozen=True)
class Preset:
    """layers: what is kept where none are named. zstd: level for text that no network codes."""

    layers: tuple[str, ...]
    zstd: int


FAST, BALANCED, SMALL = "fast", "balanced", "small"
PRESETS: dict[str, Preset] = {
    FAST: Preset((SEARCH, PLAIN), 6),
    BALANCED: Preset((SEARCH, PLAIN), 19),
    SMALL: Preset(LAYERS, 19),
}


def choose(preset: str, layers: Sequence[str] | None) -> tuple[tuple[str, ...], int]:
    """(layers in their order, zstd level) of a preset; layers None: the preset's own.

    Raises UsageError for an unknown preset, or layers that can't be packed or that the preset doesn't make.
    """
    if preset not in PRESETS:
        raise UsageError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    wanted = check_layers(chosen.layers if layers is None else layers)
    if not set(wanted) <= set(chosen.layers):
        if PLAIN in wanted:
            raise UsageError(
                f"the preset {preset} keeps text as {GIST} and {EXACT}; "
                f"for {PLAIN} take the preset {FAST} or {BALANCED}"
            )
        raise UsageError(
            f"the preset {preset} has no {GIST} and no {EXACT} layer: it keeps the exact text as {PLAIN}; "
            f"leave the layers out, or take the preset {SMALL}"
        )
    return wanted, chosen.zstd
