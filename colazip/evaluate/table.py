"""Tables for terminals and documents alike."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right, padded to be read as it is."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for index, row in enumerate(table):
        cells = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
        if index == 0:
            rules = [
                "-" * width if not column else "-" * (width - 1) + ":" for column, width in enumerate(widths)
            ]
            lines.append("| " + " | ".join(rules) + " |")
    return "\n".join(lines)
