"""Which records of an archive a filter lets pass: evaluated on the row tables, group by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from colazip import where
from colazip.archive.rows import RowTable
from colazip.archive.store import Store
from colazip.errors import UsageError

_ID = "id"


def passing(store: Store, condition: str, span: range | None = None) -> np.ndarray:
    """bool [records], false outside of `span`: ordinals with step 1, None for all. Reads the tables of the
    groups that have some of those, of others only to look for a column that these lack; decodes nothing.

    Raises UsageError for a condition that can't be read, names no column of the archive, or compares a column
    with what it doesn't hold.
    """
    if not isinstance(condition, str):
        raise UsageError(
            f"a filter is a text such as 'year >= 2020', not {type(condition).__name__}; see docs/search.md"
        )
    parsed = where.parse(condition)
    span = range(store.first_records[-1]) if span is None else span
    mask = np.zeros(store.first_records[-1], dtype=bool)
    known: set[str] = set()
    others: list[int] = []
    for group, info in enumerate(store.manifest.groups):
        first = store.first_records[group]
        if span.stop <= first or span.start >= first + info.records:
            others.append(group)
            continue
        rows = store.tables(group)[1]
        columns = {name: _column(store, group, rows, name) for name in parsed.columns}
        known.update(rows.keys())
        mask[first : first + info.records] = parsed.mask(columns.__getitem__)
    _check_names(store, [name for name in parsed.columns if name != _ID], known, others)
    mask[: span.start] = mask[span.stop :] = False
    return mask


def _check_names(store: Store, names: Sequence[str], known: set[str], groups: Sequence[int]) -> None:
    """Raises UsageError for a name that is neither known nor a key in one of these groups."""
    for group in groups:
        if known.issuperset(names):
            return
        known.update(store.tables(group)[1].keys())
    for name in names:
        if name not in known:
            have = ", ".join(sorted(known)[:20]) or "no metadata"
            raise UsageError(f"{store.path}: the filter names column {name!r}; the archive has {have}")


def _column(store: Store, group: int, rows: RowTable, name: str) -> pa.Array:
    """Values of a metadata key in the rows of a group; nulls if no row has it."""
    values = rows.column(name)
    if values is None:
        return pa.array(store.names(group, 0, rows.records)) if name == _ID else pa.nulls(rows.records)
    if not isinstance(values, list):
        return values
    try:
        parsed = pa.array(values)
    except (pa.ArrowException, OverflowError):
        raise _mixed(name) from None
    if pa.types.is_nested(parsed.type):
        raise _mixed(name)
    return parsed


def _mixed(name: str) -> UsageError:
    return UsageError(
        f"filter: column {name!r} holds lists, objects or values of several types; filter on another"
    )
