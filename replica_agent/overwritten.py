"""The ranges that an apply overwrites: what has to be saved before, and what may be changed then."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from replica_agent.changes import Changes, merge_ranges, table_ranges

RANGES_MAX = 1 << 20
"""Ranges that are kept of one disk; past that they are rounded out, so that memory stays bounded (I13)."""
COARSE_FIRST = 64 << 10


class Overwritten:
    """The ranges that an apply overwrites, of each disk, gathered from its changes some MiB at a time."""

    def __init__(self, sizes: dict[int, int], *, ranges_max: int = RANGES_MAX) -> None:
        self._sizes = sizes
        self._max = ranges_max
        self._parts: dict[int, list[NDArray[np.int64]]] = {}
        self._counts: dict[int, int] = {}
        self._coarse: dict[int, int] = {}
        self._merged: dict[int, NDArray[np.int64]] = {}

    def add(self, table: NDArray[Any]) -> None:
        """Take in the ranges of all entries of a table, whatever their kind."""
        self._merged.clear()
        for disk, ranges in table_ranges(table).items():
            self._parts.setdefault(disk, []).append(self._rounded(disk, ranges))
            self._counts[disk] = self._counts.get(disk, 0) + len(ranges)
            if self._counts[disk] > self._max:
                self._shrink(disk)

    def _rounded(self, disk: int, ranges: NDArray[np.int64]) -> NDArray[np.int64]:
        unit = self._coarse.get(disk)
        if unit is None:
            return ranges
        low = ranges[:, 0] // unit * unit
        high = np.minimum(-(-ranges[:, 1] // unit) * unit, self._sizes[disk])
        return merge_ranges(np.stack((low, high), axis=1))

    def _shrink(self, disk: int) -> None:
        merged = merge_ranges(np.concatenate(self._parts[disk]))
        while len(merged) > self._max // 2:
            self._coarse[disk] = self._coarse.get(disk, COARSE_FIRST // 2) * 2
            merged = self._rounded(disk, merged)
        self._parts[disk], self._counts[disk] = [merged], len(merged)

    def ranges(self) -> dict[int, list[list[int]]]:
        """The ranges of each disk as [offset, end], merged, in order."""
        return {disk: self._of(disk).tolist() for disk in sorted(self._parts)}

    def covers(self, changes: Changes) -> bool:
        """Whether all that ``changes`` overwrite was taken in."""
        for disk, wanted in table_ranges(changes.table).items():
            if disk not in self._parts:
                return False
            ranges = self._of(disk)
            place = np.searchsorted(ranges[:, 0], wanted[:, 0], "right") - 1
            if (place < 0).any() or (ranges[place, 1] < wanted[:, 1]).any():
                return False
        return True

    def _of(self, disk: int) -> NDArray[np.int64]:
        if disk not in self._merged:
            self._merged[disk] = merge_ranges(np.concatenate(self._parts[disk]))
        return self._merged[disk]
