"""Spool files that are done with, kept for the next segments: writing into a file that has its space is faster."""

from __future__ import annotations

import itertools

from replica_agent.layout import Layout, read_pooled
from shared.errors import StorageError
from shared.ports import FileSystem

POOL_FILES = 4
POOL_BYTES = 256 << 20


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
        try:
            file = self._files.open(pooled)
        except StorageError:
            # Somebody put something else there: it is not ours to write into.
            self._files.remove(pooled)
            return
        size = file.size()
        file.close()
        if len(self._kept) < self._max_files and self.bytes + size <= self._max_bytes:
            self._kept.append((pooled, size))
        else:
            self._files.remove(pooled)

    def empty(self) -> None:
        """Give all space back."""
        while self._kept:
            self._files.remove(self._kept.pop()[0])
