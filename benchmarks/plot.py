"""A horizontal bar chart as SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

BAR, GAP, LEFT, RIGHT, WIDTH = 22, 8, 270, 60, 760
STYLE = "font: 13px system-ui, sans-serif"


def bar_chart(title: str, bars: Sequence[tuple[str, float, str]]) -> str:
    """bars: (label, value >= 0, colour), drawn from top to bottom on one linear scale from zero."""
    height = 40 + len(bars) * (BAR + GAP)
    scale = (WIDTH - LEFT - RIGHT) / max((value for _, value, _ in bars), default=1)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" style="{STYLE}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-weight="600">{escape(title)}</text>',
    ]
    for index, (label, value, colour) in enumerate(bars):
        top = 36 + index * (BAR + GAP)
        middle = top + BAR / 2 + 4.5
        length = max(1.0, value * scale)
        out += [
            f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>',
            f'<text x="{LEFT + length + 6:.1f}" y="{middle}">{value:.2f}</text>',
        ]
    return "\n".join([*out, "</svg>", ""])
