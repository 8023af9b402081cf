"""The disks as they will be after the merge: a disk's file read through the blocks that a resync has received (R32).

What was received is compared like what lies on the disk: it is not sent again unless it has changed since, and a block
of an earlier round is never taken for equal because the disk below it is.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from replica_agent.blocks_index import UNKNOWN, ZERO, Piece
from shared.ports import Extent, ReadableFile


class UnknownBlocksError(OSError):
    """The index of what was received has become coarse here: the range has to be sent anew."""


@dataclass(frozen=True, slots=True)
class OverlaidDisk:
    """A disk's file with blocks over it; ``find`` tells which, and where they lie in the file ``blocks``.

    Reading blocks. Raises OSError, UnknownBlocksError where nobody knows what lies over the disk.
    """

    base: ReadableFile
    blocks: ReadableFile
    find: Callable[[int, int], list[Piece]]

    @property
    def path(self) -> str:
        return self.base.path

    def size(self) -> int:
        return self.base.size()

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer`` from ``offset``; fewer bytes only at the end of the disk."""
        end = offset + len(buffer)
        pieces = self.find(offset, end)
        if not pieces:
            return self.base.read_into(offset, buffer)
        view = memoryview(buffer)
        for start, stop, piece in _with_gaps(pieces, offset, end):
            part = view[start - offset : stop - offset]
            if piece is None:
                count = self.base.read_into(start, part)
                if count != len(part):
                    return start - offset + count
            elif piece.place == ZERO:
                part[:] = bytes(len(part))
            elif self.blocks.read_into(_known(piece), part) != len(part):
                raise OSError(errno.EIO, "the differencing file is shorter than it was", self.blocks.path)
        return len(buffer)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The range as alternating data and hole extents, in order; blocks of zeroes are holes."""
        before: Extent | None = None
        for found in self._parts(offset, offset + length):
            if before is not None and before.hole == found.hole:
                before = Extent(before.offset, before.length + found.length, before.hole)
                continue
            if before is not None:
                yield before
            before = found
        if before is not None:
            yield before

    def _parts(self, offset: int, end: int) -> Iterator[Extent]:
        for start, stop, piece in _with_gaps(self.find(offset, end), offset, end):
            if piece is None:
                yield from self.base.extents(start, stop - start)
            else:
                yield Extent(start, stop - start, piece.place == ZERO)


def _known(piece: Piece) -> int:
    if piece.place == UNKNOWN:
        raise UnknownBlocksError(errno.EIO, "more blocks were received than are on record one by one")
    return piece.place


def _with_gaps(pieces: list[Piece], offset: int, end: int) -> Iterator[tuple[int, int, Piece | None]]:
    """The pieces, and the gaps between them as None."""
    at = offset
    for piece in pieces:
        if piece.start > at:
            yield at, piece.start, None
        yield piece.start, piece.end, piece
        at = piece.end
    if at < end:
        yield at, end, None
