"""Looks through a stack of undo logs: of each byte the oldest log that has it decides.

Everything here blocks but for what is in memory. What no log has is left to whoever has the disk below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shared.ports import Extent
from shared.undo_log import Piece, UndoLog

GapList = list[tuple[int, int]]
"""Beginnings and ends of ranges, in order."""


def _find(layers: Iterable[UndoLog], disk: int, gaps: GapList, take: Callable[[Piece], None]) -> GapList:
    """Give ``take`` what the layers, the oldest first, hold of ``gaps``; returns the gaps that are left.

    A piece is only good until the next one: one batch of one log is in memory at a time, and each is read once (I13).
    """
    for log in layers:
        if not gaps:
            break
        left: GapList = []
        number, batch = -1, None
        for start, end in gaps:
            for wanted in log.batches(disk, start, end):
                if batch is None or wanted != number:
                    number, batch = wanted, log.batch(wanted)
                for piece in batch.pieces(start, end):
                    take(piece)
                    if piece.start > start:
                        left.append((start, piece.start))
                    start = piece.end
            if start < end:
                left.append((start, end))
        gaps = left
    return gaps


def fill(view: memoryview, base: int, layers: Iterable[UndoLog], disk: int, gaps: GapList) -> GapList:
    """Put what the layers hold of ``gaps`` into ``view``, which begins at ``base``; the gaps that are left."""

    def put(piece: Piece) -> None:
        place = view[piece.start - base : piece.end - base]
        place[:] = piece.data if piece.data is not None else bytes(len(place))

    return _find(layers, disk, gaps, put)


def extents_in(layers: Iterable[UndoLog], disk: int, gaps: GapList) -> tuple[list[Extent], GapList]:
    """What the layers hold of ``gaps``, in order and without its bytes, and the gaps that are left."""
    found: list[Extent] = []

    def note(piece: Piece) -> None:
        found.append(Extent(piece.start, piece.end - piece.start, piece.data is None))

    gaps = _find(layers, disk, gaps, note)
    return sorted(found, key=lambda part: part.offset), gaps


def laid_over(extents: list[Extent], parts: list[Extent]) -> Iterable[Extent]:
    """``extents`` with ``parts`` put over them; both in order."""
    index = 0
    for extent in extents:
        at, stop = extent.offset, extent.offset + extent.length
        while at < stop:
            while index < len(parts) and parts[index].offset + parts[index].length <= at:
                index += 1
            if index == len(parts) or parts[index].offset >= stop:
                yield Extent(at, stop - at, extent.hole)
                break
            part = parts[index]
            if part.offset > at:
                yield Extent(at, part.offset - at, extent.hole)
                at = part.offset
            end = min(stop, part.offset + part.length)
            yield Extent(at, end - at, part.hole)
            at = end


def joined(extents: list[Extent]) -> list[Extent]:
    """Neighbours of the same kind as one."""
    result: list[Extent] = []
    for extent in extents:
        if result and result[-1].hole == extent.hole:
            last = result[-1]
            result[-1] = Extent(last.offset, last.length + extent.length, last.hole)
        else:
            result.append(extent)
    return result
