"""Reads the disks as of one recovery point, while applies go on.

A byte is what the oldest undo log at or after the point holds of it, or else what the disk holds. A reader looks into
the undo logs it knows, reads the rest from the disks, and then looks into those that were added meanwhile (R37): an
undo log is handed to all readers before the first byte that it covers is overwritten.
"""

from __future__ import annotations

import errno

from shared.ports import Extent, File, FileSystem
from shared.undo_layers import extents_in, fill, joined, laid_over
from shared.undo_log import UndoLog

INLINE_LAYERS = 8
"""With more logs than this a read always goes to a worker: even asking them what they hold takes a while."""


class PointReader:
    """The disks as of one point. Reading blocks (but for :meth:`read_cached`) and may go on in several workers.

    ``layers`` are the undo logs from the point on, the oldest first; they are replaced as a whole, on the event loop.
    """

    def __init__(self, files: FileSystem, paths: dict[int, str], layers: tuple[UndoLog, ...]) -> None:
        """Open the disks. Raises OSError."""
        self.failed = ""
        """Why the point is gone; empty while it can be read."""
        self.layers = layers
        self._disks: dict[int, File] = {}
        try:
            for index, path in paths.items():
                self._disks[index] = files.open(path)
        except BaseException:
            self.close()
            raise

    def lose(self, reason: str) -> None:
        """The point is gone: reads fail from now on, and nothing is kept for them."""
        self.failed = self.failed or reason
        self.layers = ()

    def close(self) -> None:
        for file in self._disks.values():
            file.close()
        self.layers = ()

    @property
    def held_bytes(self) -> int:
        """What the undo logs that it reads take on the volume."""
        return sum(log.length for log in self.layers)

    def _check(self) -> None:
        if self.failed:
            raise OSError(errno.EIO, self.failed)

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, disk: int, offset: int, length: int) -> bytes:
        """The range as it was. Raises OSError, EIO where the point is gone or its logs are damaged."""
        self._check()
        result = bytearray(length)
        view = memoryview(result)
        layers = self.layers
        gaps = fill(view, offset, layers, disk, [(offset, offset + length)])
        for start, end in gaps:
            if self._disks[disk].read_into(start, view[start - offset : end - offset]) != end - start:
                raise OSError(errno.EIO, f"disk {disk} is shorter than it was")
        if gaps:
            fill(view, offset, _newer(self.layers, layers), disk, gaps)
        self._check()
        return bytes(result)

    def read_cached(self, disk: int, offset: int, length: int) -> bytes | None:
        """The range if that needs no waiting, else None. Raises OSError."""
        self._check()
        if len(self.layers) > INLINE_LAYERS or any(log.batches(disk, offset, offset + length) for log in self.layers):
            return None
        # Nothing is handed to readers while this runs: it does not leave the event loop.
        return self._disks[disk].read_cached(offset, length)

    def extents(self, disk: int, offset: int, length: int) -> list[Extent]:
        """The range as data and holes, as they were. Raises OSError."""
        self._check()
        layers = self.layers
        parts, gaps = extents_in(layers, disk, [(offset, offset + length)])
        below = [extent for start, end in gaps for extent in self._disks[disk].extents(start, end - start)]
        late, _ = extents_in(_newer(self.layers, layers), disk, gaps)
        parts += laid_over(below, late)
        self._check()
        return joined(sorted(parts, key=lambda part: part.offset))


def _newer(now: tuple[UndoLog, ...], before: tuple[UndoLog, ...]) -> tuple[UndoLog, ...]:
    """The logs that were added since: not those that a merge of older ones has put in their place."""
    newest = before[-1].order if before else -1
    return tuple(log for log in now if log.order > newest)
