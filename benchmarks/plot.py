"""Charts as SVG, without a plotting library. A panel is (height, elements); `svg` stacks panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

BAR, GAP, LEFT, RIGHT, WIDTH = 22, 8, 270, 60, 760
PLOT_LEFT, PLOT_TOP, PLOT_HEIGHT, LEGEND_ROW = 60, 40, 280, 20
AXIS, GRID = "#52606d", "#e4e7eb"
STYLE = "font: 13px system-ui, sans-serif"

Panel = tuple[int, list[str]]


@dataclass(frozen=True)
class Line:
    """Points (x, y) of one line, x ascending."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def svg(title: str, panels: Sequence[Panel]) -> str:
    """One document of all panels, from top to bottom. title: for readers who don't see it."""
    height = sum(size for size, _ in panels)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" style="{STYLE}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    top = 0
    for size, elements in panels:
        out += [f'<g transform="translate(0,{top})">', *elements, "</g>"]
        top += size
    return "\n".join([*out, "</svg>", ""])


def bar_chart(title: str, bars: Sequence[tuple[str, float, str]]) -> Panel:
    """bars: (label, value >= 0, colour), drawn from top to bottom on one linear scale from zero."""
    scale = (WIDTH - LEFT - RIGHT) / max((value for _, value, _ in bars), default=1)
    out = [_title(title)]
    for index, (label, value, colour) in enumerate(bars):
        top = 36 + index * (BAR + GAP)
        middle = top + BAR / 2 + 4.5
        length = max(1.0, value * scale)
        out += [
            f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>',
            f'<text x="{LEFT + length + 6:.1f}" y="{middle}">{value:.2f}</text>',
        ]
    return 40 + len(bars) * (BAR + GAP), out


def line_chart(
    title: str,
    lines: Sequence[Line],
    across: str,
    *,
    labels: Mapping[int, str] | None = None,
    top: float | None = None,
) -> Panel:
    """Lines over one linear x axis named `across`, y from zero to `top` (None: the largest value), the legend
    below. labels: names of some x in place of numbers."""
    points = [point for line in lines for point in line.points]
    if not points:
        return PLOT_TOP, [_title(title)]
    xs = [x for x, _ in points]
    high = top or max(y for _, y in points) or 1.0
    low_x, wide = min(xs), (max(xs) - min(xs)) or 1.0
    right, bottom = WIDTH - RIGHT, PLOT_TOP + PLOT_HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            PLOT_LEFT + 20 + (x - low_x) / wide * (right - PLOT_LEFT - 40),
            bottom - min(y / high, 1.0) * PLOT_HEIGHT,
        )

    out = [_title(title)]
    for value in _ticks(high):
        _, y = place(low_x, value)
        out += [
            f'<line x1="{PLOT_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{GRID}"/>',
            f'<text x="{PLOT_LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{value:g}</text>',
        ]
    ticks = labels if labels is not None else {x: f"{x:.2f}" for x in sorted(set(xs))}
    for x, label in ticks.items():
        out.append(
            f'<text x="{place(x, 0)[0]:.1f}" y="{bottom + 20}" text-anchor="middle">{escape(label)}</text>'
        )
    middle = (PLOT_LEFT + right) / 2
    out.append(
        f'<text x="{middle}" y="{bottom + 40}" text-anchor="middle" fill="{AXIS}">{escape(across)}</text>'
    )
    for index, line in enumerate(lines):
        out += _draw(line, [place(x, y) for x, y in line.points], bottom + 60 + index * LEGEND_ROW)
    return bottom + 60 + len(lines) * LEGEND_ROW, out


def _draw(line: Line, places: Sequence[tuple[float, float]], legend: float) -> list[str]:
    """One line, a dot at each point unless it is dashed, and its entry in the legend."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    stroke = f'fill="none" stroke="{line.colour}" stroke-width="2"{dash}'
    dots = (
        []
        if line.dashed
        else [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{line.colour}"/>' for x, y in places]
    )
    return [
        f'<polyline points="{path}" {stroke}/>',
        *dots,
        f'<line x1="{PLOT_LEFT}" y1="{legend}" x2="{PLOT_LEFT + 24}" y2="{legend}" {stroke}/>',
        f'<text x="{PLOT_LEFT + 32}" y="{legend + 4.5}">{escape(line.label)}</text>',
    ]


def _title(title: str) -> str:
    return f'<text x="12" y="22" font-weight="600">{escape(title)}</text>'


def _ticks(high: float) -> list[float]:
    """Round values from zero to at most `high`, four to ten of them."""
    step = 10.0 ** math.floor(math.log10(high))
    while high / step < 4:
        step /= 2
    return [step * i for i in range(int(high / step + 1e-9) + 1)]
