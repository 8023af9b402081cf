"""The disks of a recovery point as the NBD server takes them, read-only; and those of one export by their names."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Sequence

from protocol.position import Position
from replica_agent.layers import PointReader
from replica_agent.writable import WritableDisk
from shared.nbd.backend import ExportBackend, Mutation
from shared.nbd.constants import Errno
from shared.ports import Extent, Ports

SHORT_EPOCH_DIGITS = 8


class PointDisk:
    """One disk of a recovery point as the NBD server takes it (shared.nbd.backend.ExportBackend)."""

    read_only = True

    def __init__(self, ports: Ports, point: PointReader, index: int, size: int, description: str) -> None:
        self.name = export_name(index)
        self.size = size
        self.description = description
        self._ports = ports
        self._point = point
        self._index = index

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self._point.read_cached(self._index, offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        data = await self._ports.workers.run(self._point.read, self._index, offset, length)
        if len(data) != length:
            raise OSError(errno.EIO, f"disk {self._index} is shorter than it was")
        return data

    def mutate(self, batch: list[Mutation]) -> Awaitable[None] | None:
        for mutation in batch:
            mutation.error = Errno.EPERM
        return None

    async def flush(self) -> int:
        return 0

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._ports.workers.run(self._point.extents, self._index, offset, length)

    async def cache(self, offset: int, length: int) -> None:
        await self._ports.workers.run(self._point.read, self._index, offset, min(length, 1 << 20))


class PointDirectory:
    """The disks of one export."""

    def __init__(self, disks: Sequence[PointDisk | WritableDisk]) -> None:
        self._disks = {disk.name: disk for disk in disks}

    def find(self, name: str) -> ExportBackend | None:
        if name == "" and len(self._disks) == 1:
            return next(iter(self._disks.values()))
        return self._disks.get(name)

    def names(self) -> list[tuple[str, str]]:
        return [(disk.name, disk.description) for disk in self._disks.values()]


def export_name(index: int) -> str:
    """The NBD export name of a disk."""
    return f"disk{index}"


def point_text(position: Position) -> str:
    """A point as commands name it."""
    return f"{position.epoch.hex()[:SHORT_EPOCH_DIGITS]}/{position.segment}"
