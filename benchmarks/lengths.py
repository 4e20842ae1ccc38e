"""Records by length: what a coder makes of each bucket alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.plot import Line, Panel, line_chart

EDGES = (200, 400, 1000, 4000)  # bytes; a bucket holds its upper edge
NAMES = ("0-200", "201-400", "401-1,000", "1,001-4,000", "over 4,000")


@dataclass(frozen=True)
class LengthRow:
    """One coder on the records of one bucket, packed alone."""

    coder: str
    bucket: str
    records: int
    raw_bytes: int
    total_bytes: int

    @property
    def ratio(self) -> float:
        """Raw bytes over packed bytes."""
        return self.raw_bytes / self.total_bytes if self.total_bytes else 0.0


def by_length(records: Sequence[bytes]) -> dict[str, list[int]]:
    """Which records are in each bucket that has any, short ones first."""
    buckets: dict[str, list[int]] = {name: [] for name in NAMES}
    for index, record in enumerate(records):
        buckets[NAMES[sum(len(record) > edge for edge in EDGES)]].append(index)
    return {name: some for name, some in buckets.items() if some}


def table(rows: Sequence[LengthRow]) -> list[tuple[str, ...]]:
    """A line for each bucket, a column for each coder."""
    coders = list(dict.fromkeys(row.coder for row in rows))
    found = {(row.coder, row.bucket): row for row in rows}
    lines: list[tuple[str, ...]] = [("bytes of a record", "records", "raw MB", *coders)]
    for bucket in NAMES:
        some = [row for row in rows if row.bucket == bucket]
        if some:
            ratios = (
                f"{found[coder, bucket].ratio:.2f}" if (coder, bucket) in found else "-" for coder in coders
            )
            lines.append((bucket, f"{some[0].records:,}", f"{some[0].raw_bytes / 1e6:.3f}", *ratios))
    return lines


def chart(rows: Sequence[LengthRow], own: str, own_colour: str, colours: Sequence[str]) -> Panel:
    """Ratio over length, a line for each coder; those whose name begins with `own` in their colour."""
    coders = list(dict.fromkeys(row.coder for row in rows))
    others = [coder for coder in coders if not coder.startswith(own)]
    lines = []
    for coder in coders:
        colour = colours[others.index(coder) % len(colours)] if coder in others else own_colour
        points = [(float(NAMES.index(row.bucket)), row.ratio) for row in rows if row.coder == coder]
        lines.append(Line(coder, colour, points))
    labels = {NAMES.index(row.bucket): row.bucket for row in rows}
    return line_chart("Ratio by record length", lines, "bytes of a record", labels=labels)
