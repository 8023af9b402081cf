"""A point kept readable while the disks move on: what an apply overwrites is copied away first.

The disks are kept in blocks of 64 KiB. Before a block changes for the first time, its old content goes to a spill file
and its place into an index. A reader reads the disk first and looks into the index afterwards (R37): a block that is
not in the index then had not begun to change when it was read. The spill is bounded; past the bound the point is gone,
and the apply goes on.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from shared.errors import StorageError, VmreplicaError
from shared.ports import Extent, File, FileSystem

BLOCK = 64 << 10
ENTRY_COST = 512
"""Bytes of the limit that an index entry takes by itself, so that memory is bounded, too."""
_HOLE = -1


class FrozenPoint:
    """The disks as they are now. Create it while they stand still, and make it a watcher of theirs.

    All methods but the properties block; reading and preserving may go on at the same time in different workers.
    """

    def __init__(
        self, files: FileSystem, paths: dict[int, str], sizes: dict[int, int], spill: str, limit: int, reserve: int
    ) -> None:
        """``spill`` is the path of the spill file, of at most ``limit`` bytes; it has no name once it is open."""
        self.failed = ""
        """Why the point is gone; empty while it can be read."""
        self.limit = limit
        self._files = files
        self._sizes = sizes
        self._folder = spill.rpartition("/")[0]
        self._reserve = reserve
        self._index: dict[tuple[int, int], int] = {}
        self._spilled = 0
        files.remove(spill)
        self._spill = files.open(spill, write=True, create=True, exclusive=True)
        files.remove(spill)
        self._disks: dict[int, File] = {}
        try:
            for index, path in paths.items():
                self._disks[index] = files.open(path)
        except BaseException:
            self.close()
            raise

    @property
    def used(self) -> int:
        """What the point takes of its limit."""
        return self._spilled + ENTRY_COST * len(self._index)

    # --- preserving ------------------------------------------------------------------------------------------------

    def preserve(self, disk: int, offset: int, length: int, *, zero: bool) -> None:
        """The range is going to be overwritten, with zeroes or with data."""
        if self.failed:
            return
        try:
            file = self._disks[disk]
            spans: Iterable[tuple[int, int]] = [(offset, length)]
            if zero:
                # Zeroes change nothing where there is a hole, however large it is.
                spans = [(part.offset, part.length) for part in file.extents(offset, length) if not part.hole]
            for start, size in spans:
                for block in range(start // BLOCK, (start + size - 1) // BLOCK + 1):
                    if (disk, block) not in self._index:
                        self._save(disk, block, file)
        except (OSError, VmreplicaError) as error:
            self.failed = f"The old content of disk {disk} could not be kept: {error}"

    def _save(self, disk: int, block: int, file: File) -> None:
        start = block * BLOCK
        length = min(BLOCK, self._sizes[disk] - start)
        if self.used + ENTRY_COST + length > self.limit:
            raise StorageError(f"more than {self.limit} bytes have changed since.")
        if all(part.hole for part in file.extents(start, length)):
            self._index[disk, block] = _HOLE
            return
        if self._files.free_space(self._folder) < self._reserve + length:
            raise StorageError("the volume has too little room.")
        self._spill.write(self._spilled, file.read(start, length))
        self._index[disk, block] = self._spilled
        self._spilled += length

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, disk: int, offset: int, length: int) -> bytes:
        """The range as it was. Raises OSError, EIO where the point is gone."""
        data = self._disks[disk].read(offset, length)
        self._check()
        kept = self._kept(disk, offset, length)
        if not kept:
            return data
        pieces = bytearray(data)
        for start, end, place in kept:
            if place == _HOLE:
                pieces[start - offset : end - offset] = bytes(end - start)
            else:
                pieces[start - offset : end - offset] = self._spill.read(place + start % BLOCK, end - start)
        return bytes(pieces)

    def read_cached(self, disk: int, offset: int, length: int) -> bytes | None:
        """The range if that needs no waiting, else None. Raises OSError."""
        data = self._disks[disk].read_cached(offset, length)
        self._check()
        return None if data is None or self._kept(disk, offset, length) else data

    def extents(self, disk: int, offset: int, length: int) -> list[Extent]:
        """The range as data and holes, as they were. Raises OSError."""
        found = list(self._disks[disk].extents(offset, length))
        self._check()
        kept = self._kept(disk, offset, length)
        if not kept:
            return found
        result: list[Extent] = []
        for part in _overlay(found, [(start, end, place == _HOLE) for start, end, place in kept]):
            if result and result[-1].hole == part.hole:
                result[-1] = Extent(result[-1].offset, result[-1].length + part.length, part.hole)
            else:
                result.append(part)
        return result

    def _kept(self, disk: int, offset: int, length: int) -> list[tuple[int, int, int]]:
        """The parts of the range that are in the index: start, end, and place in the spill."""
        if not self._index:
            return []
        blocks = range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
        return [
            (max(offset, block * BLOCK), min(offset + length, (block + 1) * BLOCK), place)
            for block in blocks
            if (place := self._index.get((disk, block))) is not None
        ]

    def _check(self) -> None:
        if self.failed:
            raise OSError(errno.EIO, self.failed)

    def close(self) -> None:
        self._spill.close()
        for file in self._disks.values():
            file.close()


def _overlay(extents: list[Extent], kept: list[tuple[int, int, bool]]) -> Iterable[Extent]:
    """``extents`` with the parts ``kept`` (start, end, hole) put over them; both in ascending order."""
    covers = iter([*kept, (1 << 63, 1 << 63, False)])
    start, end, hole = next(covers)
    for extent in extents:
        at, stop = extent.offset, extent.offset + extent.length
        while at < stop:
            if end <= at:
                start, end, hole = next(covers)
            elif at < start:
                yield Extent(at, min(stop, start) - at, extent.hole)
                at = min(stop, start)
            else:
                yield Extent(at, min(stop, end) - at, hole)
                at = min(stop, end)
