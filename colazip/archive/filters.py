"""Which records of an archive a filter lets pass: evaluated on the row tables, group by group."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from colazip import where
from colazip.archive.rows import RowTable
from colazip.archive.store import Store
from colazip.errors import UsageError

_ID = "id"


def passing(store: Store, condition: str) -> np.ndarray:
    """bool [records]. Reads the tables of every group and decodes nothing.

    Raises UsageError for a condition that can't be read, names no column of the archive, or compares a column
    with what it doesn't hold.
    """
    if not isinstance(condition, str):
        raise UsageError(
            f"a filter is a text such as 'year >= 2020', not {type(condition).__name__}; see docs/search.md"
        )
    parsed = where.parse(condition)
    masks = [np.zeros(0, dtype=bool)]
    known: set[str] = set()
    for group in range(len(store.manifest.groups)):
        rows = store.tables(group)[1]
        columns = {name: _column(store, group, rows, name) for name in parsed.columns}
        known.update(rows.keys())
        masks.append(parsed.mask(columns.__getitem__))
    for name in parsed.columns:
        if name not in known and name != _ID:
            have = ", ".join(sorted(known)[:20]) or "no metadata"
            raise UsageError(f"{store.path}: the filter names column {name!r}; the archive has {have}")
    return np.concatenate(masks)


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
