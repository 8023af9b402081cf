"""A plain export over one file, for tests of the NBD server: real reads, writes, holes and syncs, nothing else."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections.abc import Awaitable, Sequence
from pathlib import Path

from shared.nbd.backend import CommandKind, Mutation, errno_of
from shared.ports import Extent

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    if _LIBC.fallocate(descriptor, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class FileBackend:
    """Serves ``path``; ``inline`` decides whether reads count as hot. Tests hold things up through the gates."""

    def __init__(
        self,
        path: Path,
        *,
        name: str = "disk",
        read_only: bool = False,
        description: str = "",
        inline: bool = True,
    ) -> None:
        self.name = name
        self.read_only = read_only
        self.description = description
        self.inline = inline
        self.size = path.stat().st_size
        self.batches: list[int] = []
        """How many mutations each call brought."""
        self.events: list[str] = []
        """What happened, in order: 'begin <n>', 'end <n>', 'flush'."""
        self.flushes = 0
        self.reads = 0
        """How many cold reads have begun."""
        self.cached: list[tuple[int, int]] = []
        self.mutate_gate: asyncio.Event | None = None
        """While set to an event that is not set, changes wait for it before they touch the file."""
        self.read_gate: asyncio.Event | None = None
        self.flush_gate: asyncio.Event | None = None
        self.flush_error = 0
        self.flush_raises: Exception | None = None
        """A bug to simulate: no export may raise from ``flush``."""
        self.fail_reads_at: dict[int, int] = {}
        """Offset to errno: reads that begin there fail."""
        self._descriptor = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)

    def close(self) -> None:
        os.close(self._descriptor)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        if not self.inline or offset in self.fail_reads_at:
            return None
        return os.pread(self._descriptor, length, offset)

    async def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        if self.read_gate is not None:
            await self.read_gate.wait()
        if offset in self.fail_reads_at:
            number = self.fail_reads_at[offset]
            raise OSError(number, os.strerror(number))
        return await asyncio.to_thread(os.pread, self._descriptor, length, offset)

    def mutate(self, batch: list[Mutation]) -> Awaitable[None] | None:
        self.batches.append(len(batch))
        if self.mutate_gate is not None and not self.mutate_gate.is_set():
            return self._mutate_later(self.mutate_gate, batch)
        self._mutate(batch)
        return None

    async def _mutate_later(self, gate: asyncio.Event, batch: list[Mutation]) -> None:
        self.events.append(f"begin {len(batch)}")
        await gate.wait()
        self._mutate(batch)
        self.events.append(f"end {len(batch)}")

    def _mutate(self, batch: list[Mutation]) -> None:
        for mutation in batch:
            try:
                self._perform(mutation)
            except OSError as error:
                mutation.error = errno_of(error)

    def _perform(self, mutation: Mutation) -> None:
        offset, length = mutation.offset, mutation.length
        if mutation.payload is not None:
            assert os.pwrite(self._descriptor, mutation.payload, offset) == length
        elif mutation.kind is CommandKind.ZEROES and mutation.no_hole:
            self._write_zeroes(offset, length, fast=mutation.fast)
        else:
            _fallocate(self._descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length)

    def _write_zeroes(self, offset: int, length: int, *, fast: bool) -> None:
        try:
            _fallocate(self._descriptor, _ZERO_RANGE | _KEEP_SIZE, offset, length)
        except OSError as error:
            # tmpfs can't do it; a client that asked for fast zeroes wants to know.
            if fast or error.errno != errno.EOPNOTSUPP:
                raise
            os.pwrite(self._descriptor, bytes(length), offset)

    async def flush(self) -> int:
        self.flushes += 1
        self.events.append("flush")
        if self.flush_gate is not None:
            await self.flush_gate.wait()
        if self.flush_raises is not None:
            raise self.flush_raises
        if not self.flush_error:
            await asyncio.to_thread(os.fdatasync, self._descriptor)
        return self.flush_error

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await asyncio.to_thread(self._extents, offset, offset + length)

    def _extents(self, position: int, end: int) -> list[Extent]:
        extents = []
        while position < end:
            try:
                data = min(os.lseek(self._descriptor, position, os.SEEK_DATA), end)
            except OSError:
                data = end
            if data > position:
                extents.append(Extent(position, data - position, hole=True))
                position = data
            if position < end:
                hole = min(os.lseek(self._descriptor, position, os.SEEK_HOLE), end)
                extents.append(Extent(position, hole - position, hole=False))
                position = hole
        return extents

    async def cache(self, offset: int, length: int) -> None:
        self.cached.append((offset, length))


class Directory:
    """The given exports; the only one is the default."""

    def __init__(self, *exports: FileBackend) -> None:
        self._exports = {export.name: export for export in exports}

    def find(self, name: str) -> FileBackend | None:
        if not name and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return self._exports.get(name)

    def names(self) -> list[tuple[str, str]]:
        return [(export.name, export.description) for export in self._exports.values()]
