"""The address space of one disk as a short strip of cells: how much of each is equal, different, sent, or not yet seen.

The strip has the same few numbers whatever the disk's size. A range counts as different from its compare on, as sent
when its blocks have gone out, as settled when the replica has made them durable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from protocol.messages import BLOCK_SIZE
from shared.map_file import Range
from shared.progress_status import StripStatus

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELLS = 128
"""Cells of one disk,"""
CELLS_IN_ALL = 1024
"""of all disks of a VM,"""
CELLS_LEAST = 8
"""and of one of very many disks."""
EQUAL, DIFFERENT, SENT, SETTLED, OUTSIDE = range(5)


class DiskStrip:
    """The strip of one disk of ``size`` bytes, one of ``disks`` disks."""

    def __init__(self, size: int, disks: int = 1) -> None:
        wanted = min(CELLS, max(CELLS_LEAST, CELLS_IN_ALL // disks))
        blocks = -(-size // BLOCK_SIZE)
        self.size = size
        self.cell_bytes = -(-blocks // wanted) * BLOCK_SIZE
        self.count = -(-size // self.cell_bytes)
        self._edges = np.minimum(np.arange(self.count + 1, dtype=np.int64) * self.cell_bytes, size)
        self._cells = np.zeros((5, self.count), np.int64)
        self._pending: dict[int, tuple[int, NDArray[Any]]] = {}
        """Offset of a compared range that is not settled: its first cell, and what differs from there on."""

    def begin(self, scope: Sequence[Range], left: Sequence[Range]) -> None:
        """A session takes the disk up: of ``scope``, ``left`` is still to be compared. Both are in order and apart."""
        scoped = self._coverage(scope)
        settled = scoped - self._coverage(left)
        self._pending.clear()
        cells = self._cells
        cells[DIFFERENT] = cells[SENT] = 0
        cells[OUTSIDE] = np.diff(self._edges) - scoped
        # What the replica has settled is equal by now; what of it was found equal here is known, the rest was sent.
        cells[EQUAL] = np.minimum(cells[EQUAL], settled)
        cells[SETTLED] = settled - cells[EQUAL]

    def compared(self, offset: int, length: int, different: Iterable[Range], *, hole: bool = False) -> None:
        """A range was compared; ``different`` of it, in order, differ. ``hole``: it is a hole on both sides."""
        first, end = offset // self.cell_bytes, -(-(offset + length) // self.cell_bytes)
        whole = self._coverage([(offset, length)], first, end)
        differing = self._coverage(list(different), first, end)
        self._cells[OUTSIDE if hole else EQUAL, first:end] += whole - differing
        self._cells[DIFFERENT, first:end] += differing
        if differing.any():
            self._pending[offset] = (first, differing)

    def sent(self, offset: int) -> None:
        """What differs in the range that begins at ``offset`` has gone out."""
        self._move(offset, DIFFERENT, SENT)

    def settled(self, offset: int) -> None:
        """The range that begins at ``offset`` is durable at the replica."""
        self._move(offset, SENT, SETTLED)
        self._pending.pop(offset, None)

    def status(self) -> StripStatus:
        """As told, in bytes of each cell."""
        equal, different, sent, settled, outside = self._cells.tolist()
        return StripStatus(
            cell_bytes=self.cell_bytes, equal=equal, different=different, sent=sent, settled=settled, outside=outside
        )

    def _move(self, offset: int, source: int, target: int) -> None:
        first, differing = self._pending.get(offset, (0, self._edges[:0]))
        cells = slice(first, first + len(differing))
        self._cells[source, cells] -= differing
        self._cells[target, cells] += differing

    def _coverage(self, ranges: Sequence[Range], first: int = 0, end: int | None = None) -> NDArray[Any]:
        """How many bytes of each cell from ``first`` to ``end`` are in the ranges, which are in order and apart."""
        edges = self._edges[first : (self.count if end is None else end) + 1]
        if not ranges:
            return np.zeros(len(edges) - 1, np.int64)
        table = np.array(ranges, np.int64)
        starts, lengths = table[:, 0], table[:, 1]
        before = np.concatenate(([0], np.cumsum(lengths)))
        # Up to an edge: all ranges that begin before it, but for what the last of them has behind it.
        at = np.searchsorted(starts, edges, side="right")
        last = np.maximum(at - 1, 0)
        beyond = np.where(at > 0, np.maximum(starts[last] + lengths[last] - edges, 0), 0)
        covered: NDArray[Any] = np.diff(before[at] - beyond)
        return covered
