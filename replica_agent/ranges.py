"""Sets of byte ranges: which parts of a disk are settled."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class RangeSet:
    """Disjoint ranges of bytes in ascending order; touching ones are one."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Offset and end of each range."""
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def bytes(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def add(self, offset: int, length: int) -> None:
        end = offset + length
        first = bisect_left(self._ends, offset)
        last = bisect_right(self._starts, end)
        if first < last:
            offset = min(offset, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [offset]
        self._ends[first:last] = [end]

    def remove(self, offset: int, length: int) -> None:
        end = offset + length
        first = bisect_right(self._ends, offset)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        starts, ends = [], []
        if self._starts[first] < offset:
            starts.append(self._starts[first])
            ends.append(offset)
        if self._ends[last - 1] > end:
            starts.append(end)
            ends.append(self._ends[last - 1])
        self._starts[first:last] = starts
        self._ends[first:last] = ends

    def covers(self, offset: int, length: int) -> bool:
        """Whether the whole range is in the set."""
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and offset + length <= self._ends[index]
