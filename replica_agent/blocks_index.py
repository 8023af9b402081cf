"""Where a differencing file holds which bytes of the disks: an index in memory, bounded, that readers share.

A new block replaces what older ones say of its bytes. Each change puts a new table in the place of the old one, so that
whoever reads meanwhile sees the one or the other, and needs no lock. Past the bound what is known is made coarse:
then it only says that something lies there, not where.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from protocol.entries import EntryKind
from replica_agent.changes import merge_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS_MAX = 1 << 20
"""Rows that are kept of one disk; 24 bytes each, and twice that while they are being merged (I13)."""
FRESH_MAX = 4096
"""Rows that are added to the small table before it is merged into the large one."""
COARSE_FIRST = 64 << 10
ZERO = -1
"""The place of bytes that are zeroes."""
UNKNOWN = -2
"""The place of bytes of which some are in the file, nobody knows where."""

_NONE = np.empty((0, 3), np.int64)


class Piece(NamedTuple):
    """Bytes ``start`` to ``end`` of a disk, and the offset in the file where they lie, ZERO or UNKNOWN."""

    start: int
    end: int
    place: int


class BlocksIndex:
    """The index of one disk of ``size`` bytes. One writer at a time; any number of readers meanwhile."""

    def __init__(self, size: int, *, rows_max: int = ROWS_MAX) -> None:
        self._size = size
        self._max = rows_max
        self._unit = COARSE_FIRST // 2
        self._tables: tuple[NDArray[np.int64], NDArray[np.int64]] = (_NONE, _NONE)
        """What was merged, and what is newer; both in order, without overlaps."""

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    def add(self, table: NDArray[Any], places: NDArray[np.int64]) -> None:
        """Take in entries (ENTRY_DTYPE) in the order of their age; data lies at ``places`` in the file."""
        starts = table["offset"].astype(np.int64)
        ends = starts + table["length"].astype(np.int64)
        rows = np.stack((starts, ends, np.where(table["kind"] == EntryKind.DATA, places, ZERO)), axis=1)
        merged, fresh = self._tables
        for batch in _apart(rows):
            fresh = _over(fresh, batch)
        if len(fresh) > FRESH_MAX:
            merged, fresh = self._bounded(_over(merged, fresh)), _NONE
        self._tables = merged, fresh

    def find(self, start: int, end: int) -> list[Piece]:
        """What the file has of these bytes, in order."""
        # Most questions are about small ranges over which nothing lies.
        tables = [rows for rows in (_between(rows, start, end) for rows in self._tables) if len(rows)]
        if not tables:
            return []
        found = _clipped(tables[0], start, end)
        for rows in tables[1:]:
            found = _over(found, _clipped(rows, start, end))
        return [Piece(*row) for row in found.tolist()]

    def _bounded(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        while len(rows) > self._max:
            self._unit *= 2
            low = rows[:, 0] // self._unit * self._unit
            high = np.minimum(-(-rows[:, 1] // self._unit) * self._unit, self._size)
            ranges = merge_ranges(np.stack((low, high), axis=1))
            rows = np.column_stack((ranges, np.full(len(ranges), UNKNOWN, np.int64)))
        return rows


def _apart(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows in order of their offsets, at once where none overlap, else one by one as they came."""
    ordered = rows[np.argsort(rows[:, 0], kind="stable")]
    if (ordered[1:, 0] >= ordered[:-1, 1]).all():
        yield _joined(ordered)
    else:
        for number in range(len(rows)):
            yield rows[number : number + 1]


def _joined(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Neighbours as one where they are also neighbours in the file, or both zeroes."""
    starts, ends, places = rows.T
    zero = (places[1:] == ZERO) & (places[:-1] == ZERO)
    behind = (places[:-1] >= 0) & (places[1:] == places[:-1] + ends[:-1] - starts[:-1])
    first = np.flatnonzero(np.concatenate(([True], ~((starts[1:] == ends[:-1]) & (zero | behind)))))
    last = np.append(first[1:], len(rows)) - 1
    return np.stack((starts[first], ends[last], places[first]), axis=1)


def _between(rows: NDArray[np.int64], start: int, end: int) -> NDArray[np.int64]:
    """The rows that have bytes from ``start`` to ``end``."""
    if not len(rows):
        return rows
    return rows[rows[:, 1].searchsorted(start, "right") : rows[:, 0].searchsorted(end, "left")]


def _clipped(rows: NDArray[np.int64], start: int, end: int) -> NDArray[np.int64]:
    first = np.maximum(rows[:, 0], start)
    places = np.where(rows[:, 2] >= 0, rows[:, 2] + first - rows[:, 0], rows[:, 2])
    return np.stack((first, np.minimum(rows[:, 1], end), places), axis=1)


def _over(older: NDArray[np.int64], newer: NDArray[np.int64]) -> NDArray[np.int64]:
    """``older`` with ``newer`` put over it; both in order and without overlaps, as is what comes of it."""
    if not len(older) or not len(newer):
        return older if len(older) else newer
    # What is left of the older rows lies in the gaps of the newer ones.
    gap_starts = np.concatenate(([0], newer[:, 1]))
    gap_ends = np.concatenate((newer[:, 0], [np.iinfo(np.int64).max]))
    first = np.searchsorted(gap_ends, older[:, 0], "right")
    count = np.maximum(np.searchsorted(gap_starts, older[:, 1], "left") - first, 0)
    row = np.repeat(np.arange(len(older)), count)
    gap = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    starts = np.maximum(older[row, 0], gap_starts[gap])
    ends = np.minimum(older[row, 1], gap_ends[gap])
    places = np.where(older[row, 2] >= 0, older[row, 2] + starts - older[row, 0], older[row, 2])
    left = np.stack((starts, ends, places), axis=1)[starts < ends]
    both = np.concatenate((left, newer))
    return both[np.argsort(both[:, 0], kind="stable")]
