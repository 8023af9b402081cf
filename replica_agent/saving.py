"""Saves what an apply is going to overwrite into an undo log, before it does (R25).

Everything here blocks and belongs into a worker.
"""

from __future__ import annotations

from collections.abc import Generator

from protocol.entries import MAX_ENTRIES
from replica_agent.disks import BaseDisks
from replica_agent.undo_writer import UndoWriter
from shared.ports import File
from shared.undo_log import BATCH_BYTES

YIELD_BYTES = 1 << 20
"""So much is saved between two chances to write it."""


def save(disks: BaseDisks, ranges: dict[int, list[list[int]]], writer: UndoWriter) -> Generator[int]:
    """Copy the present content of ``ranges`` to ``writer``; yields the bytes done now and then. Raises OSError."""
    for disk, spans in ranges.items():
        yield from _save_disk(disks.file(disk), disk, spans, writer)


def _save_disk(file: File, disk: int, spans: list[list[int]], writer: UndoWriter) -> Generator[int]:
    offsets: list[int] = []
    lengths: list[int] = []
    pending = done = 0
    for start, end, hole in _runs(file, spans):
        if not hole and end - start + pending <= BATCH_BYTES and len(offsets) < MAX_ENTRIES:
            offsets.append(start)
            lengths.append(end - start)
            pending += end - start
            continue
        if offsets:
            writer.save(file, disk, offsets, lengths)
            offsets, lengths, pending, done = [], [], 0, done + pending
        if hole:
            writer.hole(disk, start, end - start)
            done += 4096
        elif end - start <= BATCH_BYTES:
            offsets, lengths, pending = [start], [end - start], end - start
        else:
            for offset in range(start, end, BATCH_BYTES):
                length = min(BATCH_BYTES, end - offset)
                writer.save(file, disk, [offset], [length])
                done += length
                # A run may be as long as the disk, and what is not written yet stays in memory (I13).
                if done >= YIELD_BYTES:
                    yield done
                    done = 0
        if done >= YIELD_BYTES:
            yield done
            done = 0
    if offsets:
        writer.save(file, disk, offsets, lengths)
    yield done + pending


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
