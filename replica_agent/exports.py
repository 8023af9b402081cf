"""Exports of a VM's recovery points over NBD: each fixed at one cut while applying goes on, read-only or writable.

An export is on record before anybody is told of it, and until it is ended. So it outlasts the agent: every start serves
it again, at the same socket and with the same content, before anything is applied; history keeps its point meanwhile.
Where that point is gone, the record says why until the export is ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import msgspec

from protocol.position import Position
from replica_agent.apply import Applier
from replica_agent.finishing import finish
from replica_agent.history import Reading
from replica_agent.layers import PointReader
from replica_agent.ledger import Ledger
from replica_agent.overlay_room import OverlayRoom
from replica_agent.overlays import Overlays
from replica_agent.point_disks import PointDirectory, PointDisk, export_name, point_text
from replica_agent.record import ExportedDiskRecord, ExportRecord, ExportsRecord, PositionRecord
from replica_agent.writable import OverlayLostError, WritableDisk
from shared.errors import InvalidStateError, NotFoundError, VmreplicaError
from shared.events import EventId
from shared.nbd.server import NbdServer
from shared.ports import Ports
from shared.status import Cause, CutStatus, ExportStatus
from shared.undo_log import UndoDamagedError

EXPORTS_MAX = 8
"""Exports of one VM at a time."""
TEST_SUFFIX = " - Test"
"""Behind the name of a VM: that of its test failover."""


@dataclass(slots=True)
class Export:
    """One export that is served."""

    id: str
    socket: str
    reading: Reading
    server: NbdServer
    disks: Sequence[PointDisk | WritableDisk]

    @property
    def point(self) -> PointReader:
        return self.reading.reader


class Exports:
    """The exports of one VM."""

    def __init__(
        self, ports: Ports, applier: Applier, sockets: str, *, group: str = "", room: OverlayRoom | None = None
    ) -> None:
        """``sockets`` is the folder for sockets; members of ``group`` may connect to them, too.

        ``room`` is that of all writable exports.
        """
        self.overlays = Overlays(ports, applier.history, room or OverlayRoom(ports))
        self._ports = ports
        self._applier = applier
        self._sockets = sockets
        self._group = group
        self._exports: dict[str, Export] = {}
        """Those that are served."""
        self._troubles: dict[str, str] = {}
        """Why others that are on record could not be served; it is tried again."""
        self._starting = asyncio.Lock()
        self._closing = False

    def __len__(self) -> int:
        return len(self._ledger.exports.exports)

    def status(self) -> list[ExportStatus]:
        """Of all that are on record."""
        return [self._status(record) for record in self._ledger.exports.exports]

    def _status(self, record: ExportRecord) -> ExportStatus:
        export = self._exports.get(record.id)
        if record.lost is not None:
            error = record.lost.text
        elif export is not None:
            error = export.point.failed
        else:
            error = self._troubles.get(record.id, "It is not served at present.")
        socket = quote(self._socket(record.id))
        return ExportStatus(
            id=record.id,
            uris=[f"nbd+unix:///{export_name(disk.index)}?socket={socket}" for disk in record.disks],
            cut=_cut(record),
            clients=len(export.server.connections) if export is not None else 0,
            held_bytes=export.point.held_bytes if export is not None else 0,
            error=error,
            writable=record.writable,
            written_bytes=sum(disk.written_bytes for disk in _writable(export)),
            full=any(disk.full for disk in _writable(export)),
            test=record.test,
        )

    # --- beginning -------------------------------------------------------------------------------------------------

    async def start(
        self,
        describe: Callable[[Position], CutStatus],
        position: Position | None = None,
        *,
        writable: bool = False,
        test: bool = False,
    ) -> ExportStatus:
        """Serve the point at ``position``, by default the newest. Waits while the disks change unguarded.

        ``writable``: clients may write, beside the point; ``test``: it is the VM's test failover, of which there is
        one. Raises InvalidStateError where there is no whole point, or too many exports already; NotFoundError where
        that point is none any more; NoSpaceError.
        """
        if len(self) >= EXPORTS_MAX:
            raise self._too_many()
        identity = self._ports.random.bytes(4).hex()
        # Whoever holds this lock sees each export as one that is on record or does not exist.
        async with self._starting:
            reading = await self.view(position)
            disks = sorted(self._ledger.disks_at(reading.position).items())
            record = ExportRecord(
                id=identity,
                position=PositionRecord.of(reading.position),
                time=describe(reading.position).time,
                disks=[ExportedDiskRecord(index=index, size=size) for index, size in disks],
                created_time=self._ports.clock.wall(),
                writable=writable,
                test=test,
            )
            try:
                await self._serve(record, reading, fresh=True)
                await self._put_on_record(record)
            except BaseException:
                await self._end(identity)
                await self.overlays.discard(record)
                raise
        return self._status(record)

    async def _put_on_record(self, record: ExportRecord) -> None:
        async with self._ledger.transaction() as draft:
            if draft.promotion is not None or self._closing:
                raise InvalidStateError(f"Export {record.id} was ended while it began.", "Look at `vmreplica status`.")
            if len(draft.exports.exports) >= EXPORTS_MAX:
                raise self._too_many()
            if record.test and draft.exports.test is not None:
                raise InvalidStateError(
                    f"{self._name} has a test failover already.",
                    f"End it with `vmreplica failover {self._name} --test --stop`.",
                )
            draft.exports = ExportsRecord(exports=[*draft.exports.exports, record])
            what = "Writable export" if record.writable else "Export"
            draft.event(EventId.EXPORT, f"{what} {record.id} of cut {_cut_text(record)} began.", export=record.id)
            if record.test:
                draft.points = msgspec.structs.replace(draft.points, last_test_time=draft.now)
                text = f"The test failover of {self._name} began at cut {_cut_text(record)}: export {record.id}."
                draft.event(EventId.TEST_FAILOVER_STARTED, text, export=record.id)

    async def view(self, position: Position | None = None) -> Reading:
        """Begin to read a point, by default the newest. Raises as :meth:`start` does."""
        self._check_trusted()
        reading = await self._present(position)
        if reading is None:
            async with self._applier.turn:
                # Whatever changed the disks unguarded has ended.
                self._check_whole()
                reading = await self._applier.history.read(position)
            if reading is None:
                raise InvalidStateError(
                    f"The disks of {self._name} change without an undo log at the moment.", "Try again in a while."
                )
        return reading

    async def _present(self, position: Position | None) -> Reading | None:
        """Begin to read a point; None while the disks change unguarded, or are about to."""
        readable = self._applier.whole or self._applier.history.is_readable()
        return await self._applier.history.read(position) if readable else None

    async def _serve(self, record: ExportRecord, reading: Reading, *, fresh: bool = False) -> None:
        """Listen for clients of the export; a ``fresh`` one has no overlay yet.

        Raises VmreplicaError or OSError, OverlayLostError; then nobody reads the point any more.
        """
        try:
            disks = await self._disks(record, reading, fresh)
        except BaseException:
            await self._applier.history.end(reading)
            raise
        server = NbdServer(PointDirectory(disks))
        export = Export(record.id, self._socket(record.id), reading, server, disks)
        self._exports[record.id] = export
        try:
            await finish(self._ports.workers.run(self._ports.files.make_folder, self._sockets))
            await server.start_unix(export.socket, group=self._group)
            if self._exports.get(record.id) is not export or self._closing:
                raise InvalidStateError(f"Export {record.id} was ended while it began.", "Look at `vmreplica status`.")
        except BaseException:
            await self._end(record.id)
            # Whoever ended it meanwhile may have closed a server that did not listen yet.
            await finish(server.close())
            raise

    async def _disks(
        self, record: ExportRecord, reading: Reading, fresh: bool
    ) -> Sequence[PointDisk] | Sequence[WritableDisk]:
        text = f"{self._name}{TEST_SUFFIX if record.test else ''} at cut {_cut_text(record)}"
        if not record.writable:
            return [PointDisk(self._ports, reading.reader, disk.index, disk.size, text) for disk in record.disks]
        if fresh:
            await self.overlays.create(record)
        names = {disk.index: export_name(disk.index) for disk in record.disks}
        return await self.overlays.open(record, reading.reader, names, text)

    # --- going on --------------------------------------------------------------------------------------------------

    async def reopen(self) -> None:
        """Serve what is on record and not served: at the start, before anything is applied, and again where it failed.

        Trouble stays the export's own. Raises LedgerError.
        """
        if not self.overlays.swept:
            async with self._starting:
                await self.overlays.sweep(self._ledger.exports.kept)
        for record in self._ledger.exports.kept:
            if record.id not in self._exports and self._ledger.exports.find(record.id) is not None:
                await self._reopen(record)

    async def _reopen(self, record: ExportRecord) -> None:
        try:
            self._check_trusted()
            reading = await self._present(record.position.position)
        except (InvalidStateError, NotFoundError, UndoDamagedError) as error:
            await self._lose(record.id, error.text, error.remedy)
            return
        except OSError as error:
            await self._wait(record, f"Its point can't be read: {error}")
            return
        if reading is None:
            # Behind a commit that has not begun to merge nothing is lost yet.
            await self._wait(record, "The disks are between two points, without an undo log.")
            return
        try:
            await self._serve(record, reading)
        except OverlayLostError as error:
            await self._lose(record.id, str(error))
            return
        except (VmreplicaError, OSError) as error:
            await self._wait(record, str(error))
            return
        self._troubles.pop(record.id, None)
        if self._ledger.exports.find(record.id) is None:
            # It was ended while it began.
            await self._end(record.id)
            return
        text = f"Export {record.id} of cut {_cut_text(record)} is served again."
        await self._ledger.note(EventId.EXPORT, text, cause="reopened", export=record.id)

    async def _wait(self, record: ExportRecord, reason: str) -> None:
        """Show, and record once, why an export is not served yet; its point is kept."""
        known = record.id in self._troubles
        self._troubles[record.id] = f"It is not served at present: {reason}"
        if not known:
            text = f"Export {record.id} is not served at present, and it is tried again: {reason}"
            await self._ledger.note(EventId.EXPORT, text, cause="not_served", export=record.id)

    async def tell_failures(self) -> None:
        """Put on record, once, for each export whose point is gone, that it is."""
        for export in list(self._exports.values()):
            if export.point.failed:
                await self._lose(export.id, export.point.failed)

    async def _lose(self, identity: str, reason: str, remedy: str = "") -> None:
        """The point of an export is gone for good: nothing is kept for it, and it shows why until it is ended."""
        async with self._ledger.transaction() as draft:
            record = draft.exports.find(identity)
            if record is None or record.lost is not None:
                return
            lost = Cause(
                code="point_lost",
                text=reason,
                time=draft.now,
                remedy=remedy or f"End it with `vmreplica unexport {self._name} {identity}`.",
            )
            left = [
                msgspec.structs.replace(each, lost=lost) if each is record else each for each in draft.exports.exports
            ]
            draft.exports = ExportsRecord(exports=left)
            text = f"Export {identity} can't be read any more. {reason}"
            level = "warning" if record.writable else ""
            draft.event(EventId.EXPORT, text, cause="point_lost", level=level, export=identity)
        if record.writable:
            # Its clients can do nothing with what is left.
            await self._end(identity)
            await self.overlays.discard(record)

    async def yield_room(self, reason: str) -> bool:
        """End the writable exports: their room is needed. False where there are none.

        Not in the turn of whoever begins one, since that may wait for an apply, which may wait for this.
        """
        records = [record for record in self._ledger.exports.kept if record.writable]
        for record in records:
            await self._lose(record.id, f"It was given up to make room. {reason}")
        return bool(records)

    # --- ending ----------------------------------------------------------------------------------------------------

    async def stop(self, identity: str | None = None) -> None:
        """End one export, or all. Raises NotFoundError for one that does not exist."""
        if identity is not None and self._ledger.exports.find(identity) is None:
            raise NotFoundError(f"{self._name} has no export {identity}.", "See the exports with `vmreplica status`.")
        if identity is None:
            async with self._starting:
                # One that is just beginning is on record then, and must not outlive a failover.
                pass
        async with self._ledger.transaction() as draft:
            ended = [record for record in draft.exports.exports if identity in (None, record.id)]
            left = [record for record in draft.exports.exports if record not in ended]
            draft.exports = ExportsRecord(exports=left)
            for record in ended:
                draft.event(EventId.EXPORT, f"Export {record.id} ended.", export=record.id)
                if record.test:
                    text = f"The test failover of {self._name} ended; what was written to it is deleted."
                    draft.event(EventId.TEST_FAILOVER_ENDED, text, export=record.id)
        for record in ended:
            self._troubles.pop(record.id, None)
            await self._end(record.id)
            await self.overlays.discard(record)

    async def close(self) -> None:
        """Serve none any more, at the end of this agent: the next start does."""
        self._closing = True
        async with self._starting:
            for identity in list(self._exports):
                await self._end(identity)

    async def _end(self, identity: str) -> None:
        export = self._exports.pop(identity, None)
        if export is not None:
            await finish(export.server.close())
            for disk in _writable(export):
                await finish(disk.close())
            await self._applier.history.end(export.reading)

    # --- what is asked ---------------------------------------------------------------------------------------------

    @property
    def _ledger(self) -> Ledger:
        return self._applier.ledger

    @property
    def _name(self) -> str:
        return self._ledger.vm.name

    def _socket(self, identity: str) -> str:
        return f"{self._sockets}/export-{identity}.sock"

    def _too_many(self) -> InvalidStateError:
        return InvalidStateError(f"{self._name} has {len(self)} exports already.", "End one with `vmreplica unexport`.")

    def _check_trusted(self) -> None:
        record = self._ledger.replication
        if record.suspect is not None:
            raise InvalidStateError(
                f"The disks of {self._name} are not trusted: {record.suspect.text}", record.suspect.remedy
            )
        if self._ledger.promotion is not None:
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


def _writable(export: Export | None) -> list[WritableDisk]:
    return [disk for disk in export.disks if isinstance(disk, WritableDisk)] if export is not None else []


def _cut(record: ExportRecord) -> CutStatus:
    at = record.position
    return CutStatus(epoch=at.epoch.hex(), segment=at.segment, entry=at.entry, time=record.time)


def _cut_text(record: ExportRecord) -> str:
    return point_text(record.position.position)
