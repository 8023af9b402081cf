"""Saves what an apply is going to overwrite into an undo log, before it does (R25).

Everything here blocks and belongs into a worker.
"""

from __future__ import annotations

import errno
from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from replica_agent.changes import Changes, merge_ranges
from replica_agent.disks import BaseDisks
from replica_agent.undo import BATCH_BYTES, UndoWriter
from shared.ports import File

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

    def add(self, changes: Changes) -> None:
        """Take in the ranges of all entries, whatever their kind."""
        table = changes.table
        for disk in np.unique(table["disk"]).tolist():
            rows = table[table["disk"] == disk]
            starts = rows["offset"].astype(np.int64)
            ranges = merge_ranges(np.stack((starts, starts + rows["length"].astype(np.int64)), axis=1))
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
        return {disk: merge_ranges(np.concatenate(parts)).tolist() for disk, parts in sorted(self._parts.items())}


def save(disks: BaseDisks, ranges: dict[int, list[list[int]]], writer: UndoWriter) -> Generator[int]:
    """Copy the present content of ``ranges`` to ``writer``; yields the bytes done now and then. Raises OSError."""
    for disk, spans in ranges.items():
        yield from _save_disk(disks.file(disk), disk, spans, writer)


def _save_disk(file: File, disk: int, spans: list[list[int]], writer: UndoWriter) -> Generator[int]:
    done = 0
    for start, end, hole in _runs(file, spans):
        if hole:
            writer.hole(disk, start, end - start)
            done += 4096
            continue
        for offset in range(start, end, BATCH_BYTES):
            length = min(BATCH_BYTES, end - offset)
            if file.read_into(offset, writer.room(disk, offset, length)) != length:
                raise OSError(errno.EIO, f"disk {disk} ends before {offset + length}", file.path)
            done += length
        if done >= 1 << 20:
            yield done
            done = 0
    yield done


def _runs(file: File, spans: list[list[int]]) -> Generator[tuple[int, int, bool]]:
    """The spans, in ascending order, as runs of data and holes: start, end, whether it is a hole.

    Nobody changes the file meanwhile, so a run that is known reaches as far as it does: asking for the end of a run of
    data anew for each span inside it costs much more than reading the span.
    """
    last = spans[-1][1] if spans else 0
    known_start = known_end = 0
    hole = False
    for start, end in spans:
        while start < end:
            if not known_start <= start < known_end:
                run = next(iter(file.extents(start, last - start)))
                known_start, known_end, hole = run.offset, run.offset + run.length, run.hole
            stop = min(end, known_end)
            yield start, stop, hole
            start = stop
