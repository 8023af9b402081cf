"""Spool files that are done with, kept for the next segments: writing into a file that has its space is faster."""

from __future__ import annotations

import itertools

from replica_agent.layout import Layout, read_pooled
from shared.errors import StorageError
from shared.ports import FileSystem

POOL_FILES = 4
POOL_BYTES = 256 << 20
LEAST_BYTES = 1 << 20
"""A file is cut to the room that the pool has, but not to less than this."""


class SpoolPool:
    """Recycled spool files of one VM. All methods block and belong into a worker.

    The old records stay in a recycled file: the chain tells them from those of its next segment. Renames here need not
    be durable: after a crash a file is found under its old name, and recycled again.
    """

    def __init__(
        self, files: FileSystem, layout: Layout, *, max_files: int = POOL_FILES, max_bytes: int = POOL_BYTES
    ) -> None:
        self._files = files
        self._layout = layout
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._kept: list[tuple[str, int]] = []
        self._numbers = itertools.count(1)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self._kept)

    def load(self) -> None:
        """Take over the files that are there."""
        numbers = [number for name in self._files.list(self._layout.spool) if (number := read_pooled(name)) is not None]
        self._numbers = itertools.count(max(numbers, default=0) + 1)
        for number in sorted(numbers):
            self._keep(self._layout.pooled(number))

    def take(self, path: str) -> bool:
        """Give a file of the pool the name ``path``; False if there is none."""
        if not self._kept:
            return False
        pooled, _ = self._kept.pop()
        self._files.rename(pooled, path)
        return True

    def put(self, path: str) -> None:
        """Recycle the file at ``path``, or remove it where the pool is full."""
        pooled = self._layout.pooled(next(self._numbers))
        try:
            self._files.rename(path, pooled)
        except FileNotFoundError:
            return
        self._keep(pooled)

    def _keep(self, pooled: str) -> None:
        """Take a file in, cut to the room that there is, or remove it."""
        try:
            size = self._cut(pooled)
        except (OSError, StorageError):
            # It can't be cut, or somebody put something else there: it is not ours to write into.
            size = 0
        if size:
            self._kept.append((pooled, size))
        else:
            self._files.remove(pooled)

    def _cut(self, pooled: str) -> int:
        """Cut a file to the room that there is; its size then, 0 where it is not worth keeping."""
        room = self._max_bytes - self.bytes if len(self._kept) < self._max_files else 0
        file = self._files.open(pooled, write=True)
        try:
            size = file.size()
            if size <= room:
                return size
            if room < LEAST_BYTES:
                return 0
            file.truncate(room)
            return room
        finally:
            file.close()

    def empty(self) -> None:
        """Give all space back."""
        while self._kept:
            self._files.remove(self._kept.pop()[0])
