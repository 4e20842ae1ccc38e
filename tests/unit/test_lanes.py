"""The order of lanes: every token once, longest first, and a block's own order whatever stands beside it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.lanes import Lanes, lay_out

any_blocks = st.lists(st.lists(st.integers(-1, 60), max_size=6), max_size=5)
Row = tuple[int, int, int, int]


def rows(lanes: Lanes) -> list[Row]:
    """(block, part, start, count) of each lane."""
    return list(zip(*(x.tolist() for x in (lanes.block, lanes.part, lanes.start, lanes.count)), strict=True))


@settings(max_examples=60, deadline=None)
@given(any_blocks, st.integers(1, 30), st.integers(1, 5))
def test_lanes_tile_the_parts_longest_first(blocks: list[list[int]], segment: int, patch: int) -> None:
    lanes = lay_out(blocks, segment, patch)
    found = rows(lanes)
    tokens = sorted((b, p, lo + i) for b, p, lo, n in found for i in range(n))
    assert tokens == [
        (b, p, i) for b, parts in enumerate(blocks) for p, n in enumerate(parts) for i in range(n)
    ]
    assert all(1 <= n <= segment and lo % segment == 0 for _, _, lo, n in found)
    assert lanes.count.tolist() == sorted(lanes.count.tolist(), reverse=True)
    assert lanes.patches.tolist() == [-(-n // patch) for n in lanes.count.tolist()]
    assert lanes.patches.tolist() == sorted(lanes.patches.tolist(), reverse=True)


@settings(max_examples=60, deadline=None)
@given(any_blocks, st.integers(1, 30))
def test_a_block_keeps_its_order_in_any_company(blocks: list[list[int]], segment: int) -> None:
    together = rows(lay_out(blocks, segment, 4))
    for b, parts in enumerate(blocks):
        alone = rows(lay_out([parts], segment, 4))
        assert [row[1:] for row in together if row[0] == b] == [row[1:] for row in alone]


@settings(max_examples=60, deadline=None)
@given(any_blocks, st.integers(1, 30), st.integers(1, 5))
def test_lanes_that_go_on_are_a_prefix(blocks: list[list[int]], segment: int, patch: int) -> None:
    lanes = lay_out(blocks, segment, patch)
    for position in range(segment + 2):
        assert (np.arange(len(lanes)) < lanes.active(position)).tolist() == (lanes.count > position).tolist()
        going = np.arange(len(lanes)) < lanes.active_patches(position)
        assert going.tolist() == (lanes.patches > position).tolist()
        # The first token of a patch has the lanes that have the patch; a later one may have fewer.
        assert lanes.active(position * patch) == lanes.active_patches(position)


@settings(max_examples=40, deadline=None)
@given(any_blocks, st.integers(1, 30), st.data())
def test_by_block_and_subset(blocks: list[list[int]], segment: int, data: st.DataObject) -> None:
    lanes = lay_out(blocks, segment, 4)
    count = data.draw(st.integers(0, len(lanes)))
    order = lanes.by_block(count).tolist()
    assert order == sorted(range(count), key=lambda i: (lanes.block[i], i))
    which = sorted(data.draw(st.sets(st.integers(0, max(0, len(lanes) - 1)))) if len(lanes) else [])
    assert rows(lanes.subset(which)) == [rows(lanes)[i] for i in which]
