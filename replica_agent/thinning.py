"""Merges neighbouring undo logs into one, so that the points between them are gone and their space is free.

What the merged log holds of a byte is what the oldest of its sources holds of it: that is what the byte was at the
oldest cut. Everything here blocks and belongs into a worker.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

from replica_agent.undo_writer import UndoWriter
from shared.undo_log import Batch, Piece, UndoLog

STEP_BYTES = 1 << 20


def merge(logs: Sequence[UndoLog], writer: UndoWriter, disks: Collection[int] | None = None) -> Generator[int]:
    """Write ``logs``, the oldest first, as one to ``writer``; yields the bytes done now and then.

    ``disks``: those that the oldest cut has; of others nothing is taken over. A disk that came later is part of no
    point that is read through the merged log, and is perhaps forgotten before it. None for all.
    Raises OSError where a log is damaged or the merged one can't be written.
    """
    for disk in sorted({disk for log in logs for disk in log.disks if disks is None or disk in disks}):
        yield from _merge_disk(disk, [_Reader(log, disk) for log in logs], writer)


class _Reader:
    """Goes through one log's pieces of one disk, one batch in memory at a time."""

    def __init__(self, log: UndoLog, disk: int) -> None:
        self._log = log
        self._numbers = iter(log.batches(disk))
        self._batch: Batch | None = None
        self.end = 0
        """Where the batch at hand ends on the disk."""
        self.advance()

    @property
    def done(self) -> bool:
        return self._batch is None

    def advance(self) -> None:
        """Take the next batch."""
        number = next(self._numbers, None)
        self._batch = self._log.batch(number) if number is not None else None
        self.end = int(self._batch.ends[-1]) if self._batch is not None else 1 << 63

    def pieces(self, start: int, end: int) -> list[Piece]:
        return self._batch.pieces(start, end) if self._batch is not None else []


def _merge_disk(disk: int, readers: list[_Reader], writer: UndoWriter) -> Generator[int]:
    """Window by window: each reaches as far as the batch that ends first."""
    start, done = 0, 0
    while not all(reader.done for reader in readers):
        end = min(reader.end for reader in readers)
        for piece in overlaid([reader.pieces(start, end) for reader in readers]):
            length = piece.end - piece.start
            if piece.data is None:
                writer.hole(disk, piece.start, length)
            else:
                writer.room(disk, piece.start, length)[:] = piece.data
            done += length if piece.data is not None else 4096
        if done >= STEP_BYTES:
            yield done
            done = 0
        for reader in readers:
            if reader.end == end:
                reader.advance()
        start = end
    yield done


def overlaid(layers: Sequence[list[Piece]]) -> list[Piece]:
    """The pieces of all layers in order, where the first layer that has a byte decides it.

    The pieces of each layer are in order and do not overlap.
    """
    result: list[Piece] = []
    for layer in layers:
        result = _under(result, layer) if result else layer
    return result


def _under(top: list[Piece], bottom: list[Piece]) -> list[Piece]:
    """``top``, and of ``bottom`` what lies beside it."""
    result: list[Piece] = []
    index = 0
    for piece in bottom:
        start = piece.start
        while start < piece.end:
            while index < len(top) and top[index].end <= start:
                result.append(top[index])
                index += 1
            if index < len(top) and top[index].start <= start:
                start = min(piece.end, top[index].end)
                continue
            stop = min(piece.end, top[index].start) if index < len(top) else piece.end
            result.append(part(piece, start, stop))
            start = stop
    result += top[index:]
    return result


def part(piece: Piece, start: int, end: int) -> Piece:
    """The part of a piece from ``start`` to ``end``."""
    if piece.data is None:
        return Piece(start, end, None)
    return Piece(start, end, piece.data[start - piece.start : end - piece.start])
