"""The overlays of a VM's writable exports: made, opened again after a start, and deleted with their export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from replica_agent.finishing import finish
from replica_agent.history import History
from replica_agent.layers import PointReader
from replica_agent.layout import read_overlay
from replica_agent.overlay_room import OverlayRoom
from replica_agent.record import ExportRecord
from replica_agent.space import space_error
from replica_agent.writable import (
    OverlayFiles,
    WritableDisk,
    block_bits,
    create_overlay,
    open_overlay,
    remove_overlay,
)
from shared.errors import StorageError, VmreplicaError
from shared.events import EventId
from shared.ports import Ports

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Overlays:
    """Those of one VM."""

    ports: Ports
    history: History
    room: OverlayRoom
    swept: bool = False
    """Whether what crashes left was looked for."""

    @property
    def _vm(self) -> bytes:
        return self.history.ledger.vm.vm

    def _path(self, record: ExportRecord, disk: int) -> str:
        return self.history.layout.overlay(record.id, disk)

    async def admit(self, count: int) -> None:
        """Let bytes be written. Raises NoSpaceError, OSError."""
        await self.room.admit(self._vm, self.history.layout.folder, count, self.history.reserve)

    async def create(self, record: ExportRecord) -> None:
        """Make the empty overlays of a new export, durably. Raises NoSpaceError, StorageError; leaves nothing then."""
        folder, needed = self.history.layout.folder, sum(_map_bytes(disk.size) for disk in record.disks)
        try:
            await self.admit(needed)
            await finish(self.ports.workers.run(self._create, record))
        except OSError as error:
            full = space_error(error, folder, needed)
            if full is not error:
                raise full from error
            raise StorageError(f"Nothing can be kept for a writable export: {error}", "Check the volume.") from error

    def _create(self, record: ExportRecord) -> None:
        """Blocks."""
        files, layout = self.ports.files, self.history.layout
        if not files.exists(layout.overlays):
            files.make_folder(layout.overlays)
            files.sync_folder(layout.folder)
        try:
            for disk in record.disks:
                create_overlay(
                    self.ports, self._path(record, disk.index), self._vm, record, disk.index, disk.size
                ).close()
            files.sync_folder(layout.overlays)
        except BaseException:
            self._remove(record)
            raise

    async def open(
        self, record: ExportRecord, point: PointReader, names: dict[int, str], text: str
    ) -> list[WritableDisk]:
        """The disks of an export with what was written to them; ``names`` are those over NBD.

        Raises OverlayLostError, OSError.
        """
        found = await finish(self.ports.workers.run(self._open, record))
        return [
            WritableDisk(self.ports, point, disk.index, disk.size, names[disk.index], text, files, self.admit)
            for disk, files in zip(record.disks, found, strict=True)
        ]

    def _open(self, record: ExportRecord) -> list[OverlayFiles]:
        """Blocks."""
        opened: list[OverlayFiles] = []
        try:
            for disk in record.disks:
                path = self._path(record, disk.index)
                opened.append(open_overlay(self.ports, path, self._vm, record, disk.index, disk.size))
        except BaseException:
            for files in opened:
                files.close()
            raise
        return opened

    async def discard(self, record: ExportRecord) -> None:
        """Delete what was written to an export that has ended; where that fails the next start does it."""
        if record.writable:
            try:
                await finish(self.ports.workers.run(self._remove, record))
            except OSError as error:
                log.warning("an overlay can't be deleted", export=record.id, reason=str(error))

    def _remove(self, record: ExportRecord) -> None:
        """Blocks."""
        for disk in record.disks:
            remove_overlay(self.ports, self._path(record, disk.index))

    async def sweep(self, kept: Sequence[ExportRecord]) -> None:
        """Delete what was written to exports that are not among these: a crash came between."""
        try:
            gone = await finish(self.ports.workers.run(self._sweep, {record.id for record in kept}))
        except (OSError, VmreplicaError) as error:
            log.warning("overlays can't be looked at", folder=self.history.layout.overlays, reason=str(error))
            return
        self.swept = True
        for identity in sorted(gone):
            text = f"What was written to export {identity} was deleted: the export has ended."
            await self.history.ledger.note(EventId.EXPORT, text, cause="leftover", export=identity)

    def _sweep(self, known: set[str]) -> set[str]:
        """Blocks."""
        folder, gone = self.history.layout.overlays, set()
        for name in self.ports.files.list(folder):
            export = read_overlay(name)
            if export is not None and export not in known:
                self.ports.files.remove(f"{folder}/{name}")
                gone.add(export)
        return gone


def _map_bytes(size: int) -> int:
    """What the two maps of a disk take, at most."""
    return 2 * ((size >> block_bits(size)) // 8 + (1 << 20))
