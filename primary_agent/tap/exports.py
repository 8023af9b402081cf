"""The tap's disks as NBD exports."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice

from primary_agent.tap.disks import Disk
from primary_agent.tap.engine import TapEngine
from shared.nbd.backend import ExportBackend, Mutation
from shared.ports import Extent

EXTENTS_MAX = 1 << 16
"""Extents of one answer; what they do not cover counts as data."""
CACHE_STEP = 4 << 20
CACHE_MAX = 256 << 20


class DiskExport:
    """One disk, for the NBD server (shared.nbd.backend.ExportBackend)."""

    def __init__(self, engine: TapEngine, disk: Disk) -> None:
        self.name = disk.config.export
        self.size = disk.config.served_size
        self.description = f"{engine.config.name}: disk {disk.index}"
        self._engine = engine
        self._disk = disk

    @property
    def read_only(self) -> bool:
        """For clients that connect now: no VM starts on such a disk. One that is connected goes on (I14)."""
        return bool(self._engine.config.fenced) or self._engine.gate.refused is not None

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self._engine.read_cached(self._disk, offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        return await self._engine.read(self._disk, offset, length)

    def mutate(self, batch: list[Mutation]) -> asyncio.Future[None] | None:
        return self._engine.mutate(self._disk, batch)

    async def flush(self) -> int:
        return await self._engine.flush(self._disk)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Data and holes from ``offset`` on, perhaps not to the range's end. Raises OSError."""
        file = self._disk.file
        return await self._engine.workers.run(lambda: list(islice(file.extents(offset, length), EXTENTS_MAX)))

    async def cache(self, offset: int, length: int) -> None:
        """Read the range into the page cache, as far as that is reasonable. Raises OSError."""
        end = offset + length
        for start in range(offset, min(end, offset + CACHE_MAX), CACHE_STEP):
            await self._engine.workers.run(self._disk.file.read, start, min(CACHE_STEP, end - start))


class DiskDirectory:
    """All disks of the VM; "" finds the only one (shared.nbd.backend.ExportDirectory)."""

    def __init__(self, engine: TapEngine) -> None:
        self._gate = engine.gate
        self._exports: dict[str, ExportBackend] = {
            disk.config.export: DiskExport(engine, disk) for disk in engine.disks
        }

    def find(self, name: str) -> ExportBackend | None:
        self._gate.tell("a client gets its disk read-only")
        if name == "" and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return self._exports.get(name)

    def names(self) -> list[tuple[str, str]]:
        return [(name, export.description) for name, export in self._exports.items()]
