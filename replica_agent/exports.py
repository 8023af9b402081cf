"""Exports of a VM's recovery points over NBD: read-only, each fixed at one cut while applying goes on."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from protocol.position import Position
from replica_agent.apply import Applier
from replica_agent.finishing import finish
from replica_agent.history import Reading
from replica_agent.layers import PointReader
from shared.errors import InvalidStateError, NotFoundError
from shared.events import EventId
from shared.nbd.backend import ExportBackend, Mutation
from shared.nbd.constants import Errno
from shared.nbd.server import NbdServer
from shared.ports import Extent, Ports
from shared.status import CutStatus, ExportStatus

EXPORTS_MAX = 8
"""Exports of one VM at a time."""
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

    def __init__(self, disks: list[PointDisk]) -> None:
        self._disks = {disk.name: disk for disk in disks}

    def find(self, name: str) -> ExportBackend | None:
        if name == "" and len(self._disks) == 1:
            return next(iter(self._disks.values()))
        return self._disks.get(name)

    def names(self) -> list[tuple[str, str]]:
        return [(disk.name, disk.description) for disk in self._disks.values()]


@dataclass(slots=True)
class Export:
    """One export that is served."""

    id: str
    cut: CutStatus
    socket: str
    reading: Reading
    server: NbdServer
    disks: list[PointDisk]

    @property
    def point(self) -> PointReader:
        return self.reading.reader

    def status(self) -> ExportStatus:
        return ExportStatus(
            id=self.id,
            uris=[f"nbd+unix:///{disk.name}?socket={quote(self.socket)}" for disk in self.disks],
            cut=self.cut,
            clients=len(self.server.connections),
            held_bytes=self.point.held_bytes,
            error=self.point.failed,
        )


class Exports:
    """The exports of one VM."""

    def __init__(self, ports: Ports, applier: Applier, sockets: str, *, group: str = "") -> None:
        """``sockets`` is the folder for sockets; members of ``group`` may connect to them, too."""
        self._ports = ports
        self._applier = applier
        self._sockets = sockets
        self._group = group
        self._exports: dict[str, Export] = {}
        self._told: set[str] = set()
        self._starting = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._exports)

    def status(self) -> list[ExportStatus]:
        return [export.status() for export in self._exports.values()]

    async def start(self, describe: Callable[[Position], CutStatus], position: Position | None = None) -> ExportStatus:
        """Serve the point at ``position``, by default the newest. Waits while the disks change unguarded.

        Raises InvalidStateError where there is no whole point, or too many exports already; NotFoundError where that
        point is none any more.
        """
        if len(self._exports) >= EXPORTS_MAX:
            raise InvalidStateError(
                f"{self._name} has {len(self._exports)} exports already.", "End one with `vmreplica unexport`."
            )
        identity = self._ports.random.bytes(4).hex()
        async with self._starting:
            reading = await self._read(position)
            cut = describe(reading.position)
            epoch = cut.epoch[:SHORT_EPOCH_DIGITS]
            disks = [
                PointDisk(
                    self._ports, reading.reader, disk.index, disk.size, f"{self._name} at cut {epoch}/{cut.segment}"
                )
                for disk in self._applier.disks.geometry
            ]
            server = NbdServer(PointDirectory(disks))
            export = Export(identity, cut, f"{self._sockets}/export-{identity}.sock", reading, server, disks)
            self._exports[identity] = export
        try:
            await finish(self._ports.workers.run(self._ports.files.make_folder, self._sockets))
            await server.start_unix(export.socket, group=self._group)
            if identity not in self._exports:
                raise InvalidStateError(f"Export {identity} was ended while it began.", "Look at `vmreplica status`.")
        except BaseException:
            await self._end(export)
            # Whoever ended it meanwhile may have closed a server that did not listen yet.
            await finish(server.close())
            raise
        await self._applier.ledger.note(
            EventId.EXPORT, f"Export {identity} of cut {epoch}/{cut.segment} began.", export=identity
        )
        return export.status()

    async def _read(self, position: Position | None) -> Reading:
        history = self._applier.history
        self._check_trusted()
        reading = await history.read(position) if self._applier.whole or history.is_readable() else None
        if reading is None:
            async with self._applier.turn:
                # Whatever changed the disks unguarded has ended.
                self._check_whole()
                reading = await history.read(position)
            if reading is None:
                raise InvalidStateError(
                    f"The disks of {self._name} change without an undo log at the moment.", "Try again in a while."
                )
        return reading

    async def stop(self, identity: str | None = None) -> None:
        """End one export, or all. Raises NotFoundError for one that does not exist."""
        if identity is not None and identity not in self._exports:
            raise NotFoundError(f"{self._name} has no export {identity}.", "See the exports with `vmreplica status`.")
        if identity is None:
            async with self._starting:
                # One that is just beginning is known then, and must not outlive a failover.
                pass
        for export in list(self._exports.values()):
            if identity in (None, export.id) and await self._end(export):
                await self._applier.ledger.note(EventId.EXPORT, f"Export {export.id} ended.", export=export.id)

    async def close(self) -> None:
        """End all exports, at the end of this agent."""
        for export in list(self._exports.values()):
            await self._end(export)

    async def tell_failures(self) -> None:
        """Record an event, once, for each export whose point is gone."""
        for export in list(self._exports.values()):
            if export.point.failed and export.id not in self._told:
                self._told.add(export.id)
                text = f"Export {export.id} can't be read any more. {export.point.failed}"
                await self._applier.ledger.note(EventId.EXPORT, text, cause="point_lost", export=export.id)

    @property
    def _name(self) -> str:
        return self._applier.ledger.vm.name

    def _check_trusted(self) -> None:
        record = self._applier.ledger.replication
        if record.suspect is not None:
            raise InvalidStateError(
                f"The disks of {self._name} are not trusted: {record.suspect.text}", record.suspect.remedy
            )
        if self._applier.ledger.promotion is not None:
            raise InvalidStateError(
                f"{self._name} was failed over to this host: its disks change now.",
                "Connect to the disks themselves; `vmreplica status` shows where they are served.",
            )

    def _check_whole(self) -> None:
        if not (self._applier.whole or self._applier.history.is_readable()):
            raise InvalidStateError(
                f"{self._name} has no whole recovery point at the moment.",
                "Wait until the initial replication, or the present merge, is complete.",
            )

    async def _end(self, export: Export) -> bool:
        """Whether it was this call that ended it."""
        if self._exports.pop(export.id, None) is None:
            return False
        await finish(export.server.close())
        await self._applier.history.end(export.reading)
        return True


def export_name(index: int) -> str:
    """The NBD export name of a disk."""
    return f"disk{index}"
