"""Writes the first copy of a VM into a folder for a courier, while everything written since is tracked.

It is an initial replication whose compare is done by whoever carries the folder to the replica: the tap begins to track
a fresh epoch; then each disk is read once, while the guest goes on. Such a copy is the disks of the beginning but for
what the log of the epoch has, so copy and log together are the disks of any later cut. The id under which it goes on is
made from the manifest, which has the hash of each range: whatever a replica holds under that id is what was written
here. What was written since waits in the log, then in the tap's dirty map, however long the courier takes; where even
that is lost, the copy is a seed and no more, and the order ends.
"""

from __future__ import annotations

import contextlib

import msgspec
import structlog

from primary_agent.export_waiting import is_tracked
from primary_agent.parts import Parts
from primary_agent.problems import clear_problem, set_problem
from primary_agent.progress import EXPORTING, WAITING, ResyncProgress
from primary_agent.record import ExportRecord, ReplicationRecord, mint
from protocol.messages import ResyncKind
from shared.courier import (
    MANIFEST_NAME,
    PART_NAME,
    RANGE_BYTES,
    ExportedDisk,
    Manifest,
    disk_file,
    encode,
    fits,
    identity_of,
    read_manifest,
    read_unfinished,
)
from shared.disks.copying import copy_range, data_bytes
from shared.errors import InvalidStateError, NoSpaceError, StorageError, VmreplicaError
from shared.events import EventId
from shared.ports import File
from shared.rates import size_text
from shared.replacing import replace_file
from shared.states import PrimaryEvent

SAVE_RANGES = 64
"""After so many ranges what was copied is synced, and put down for whoever goes on."""
RETRY_SECONDS = 10.0
LOOK_SECONDS = 5.0
_IGNORED = frozenset({"lost+found", "System Volume Information"})

log = structlog.get_logger(__name__)


class Exporter:
    """The export of one VM, if one was ordered."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._replication = parts.replication
        self._ports = parts.surroundings.ports
        self._run = self._ports.background.run

    # --- orders ----------------------------------------------------------------------------------------------------

    async def order(self, folder: str) -> None:
        """Begin to export into ``folder``, durably. Raises VmreplicaError where that can't be."""
        await self._ports.workers.run(self._judge_folder, folder)
        export = ExportRecord(folder=folder, epoch=self._ports.random.bytes(16), started_time=self._ports.clock.wall())
        cause = f"the administrator asked for an export to {folder}"
        await self._replication.transition(PrimaryEvent.INITIAL_STARTED, cause, resync_at=None, export=export)

    def _judge_folder(self, folder: str) -> None:
        """Blocks."""
        files = self._ports.files
        try:
            if not files.exists(folder):
                files.make_folder(folder)
            there = set(files.list(folder)) - _IGNORED
            needed = sum(self._data_of(disk.path, disk.index) for disk in self._replication.vm.disks)
            free = files.free_space(folder)
        except OSError as error:
            raise StorageError(
                f"Nothing can be exported to {folder}: {error.strerror}.",
                "The primary agent writes there as its own user, and its unit has to allow the folder "
                "(`systemctl edit vmreplica-primary`, ReadWritePaths=).",
            ) from error
        if there:
            raise StorageError(
                f"{folder} is not empty: there is {min(there)}.", "Name an empty folder, or one that does not exist."
            )
        if free < needed:
            raise NoSpaceError(
                f"The volume of {folder} has too little room: {needed - free} bytes ({size_text(needed - free)}) are "
                "missing.",
                "Take a larger medium. What is a hole in the disks takes no room.",
            )

    def _data_of(self, path: str, index: int) -> int:
        file = self._ports.files.open_disk(path)
        try:
            return data_bytes(file, 0, file.size())
        finally:
            file.close()

    # --- the task --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry out what is ordered, for ever: what fails is on record and tried again."""
        while True:
            news, record = self._replication.changed.upcoming(), self._replication.record
            try:
                if record.export is not None:
                    await self._export(record.export)
                elif record.resync is not None and record.resync.exported:
                    await self._watch(record)
                else:
                    await news.wait()
            except (OSError, VmreplicaError) as error:
                await self._failed(error)
                await self._replication.changed.wait_for(RETRY_SECONDS)

    async def _failed(self, error: OSError | VmreplicaError) -> None:
        if isinstance(error, OSError):
            where = error.filename or "A file"
            error = StorageError(f"{where}: {error.strerror or error}.", "Check the medium; it is tried again.")
        if self._parts.progress is not None and self._parts.progress.phase == EXPORTING:
            self._parts.progress.enter(WAITING, error.text)
        await set_problem(self._replication, error, EventId.EXPORT_FAILED)

    def _is_ordered(self, export: ExportRecord) -> bool:
        found = self._replication.record.export
        return found is not None and found.epoch == export.epoch

    async def _export(self, export: ExportRecord) -> None:
        """Copy all disks; ends at once where the order was taken back."""
        manifest = await self._ports.workers.run(self._found, export)
        if not await self._track(export):
            return
        if manifest is None:
            manifest = await self._ports.workers.run(self._begin, export)
        progress = self._parts.show_progress(None, ResyncKind.INITIAL)
        progress.enter(EXPORTING, f"to {export.folder}")
        for disk, record in zip(manifest.disks, self._replication.vm.disks, strict=True):
            if not await self._copy_disk(export, manifest, disk, record.path, progress):
                return
        if await self._judge(export.epoch):
            await self._complete(export, manifest, progress)

    # --- tracking --------------------------------------------------------------------------------------------------

    async def _track(self, export: ExportRecord) -> bool:
        """Whether all that is written is tracked since before anything was read (R6); begins that."""
        if export.tracked:
            return await self._judge(export.epoch)
        connection = await self._parts.tap.connected()
        status = await connection.client.begin(export.epoch)
        connection.adopt(status, self._ports.clock.monotonic())
        self._parts.tap.changed.notify()
        if not connection.tracks(export.epoch):
            raise InvalidStateError(f"The tap could not begin to track: tracking is {status.tracking}.")
        record = self._replication.record
        if not self._is_ordered(export):
            return False
        tracked = msgspec.structs.replace(export, tracked=True)
        return await self._replication.transition(None, "tracking has begun", seen=record, export=tracked)

    async def _judge(self, epoch: bytes) -> bool:
        """Whether all that was written since the beginning is named still; if it is not, the order ends."""
        await self._parts.tap.connected()
        status = await self._parts.tap.refresh()
        if is_tracked(status, epoch):
            return True
        lost = status.lost.text if status.lost is not None else f"tracking is {status.tracking}"
        name = self._replication.vm.name
        text = f"What was written since the export of {name} began is not tracked any more: {lost}."
        remedy = (
            f"Where the copy has arrived it is as good as a seed: `vmreplica initial {name} --use-seed` at this host "
            "sends only what differs. Else export again."
        )
        told = self._replication.event(EventId.EXPORT_FAILED, text, cause="tracking_lost", data={"remedy": remedy})
        await self._replication.note(told)
        with contextlib.suppress(InvalidStateError):
            await self._replication.cancel(f"The export of {name} is over: {text} {remedy}")
        self._replication.replan()
        self._parts.progress = None
        return False

    async def _watch(self, record: ReplicationRecord) -> None:
        """Until the replica has it: the order ends where what was written meanwhile is not tracked any more."""
        assert record.resync is not None
        if await self._judge(record.resync.epoch):
            await self._parts.tap.changed.wait_for(LOOK_SECONDS)

    # --- files -----------------------------------------------------------------------------------------------------

    def _found(self, export: ExportRecord) -> Manifest | None:
        """What an earlier run of this very export has copied, durably. Blocks."""
        files, folder = self._ports.files, export.folder
        manifest = read_unfinished(files, folder)
        if files.exists(f"{folder}/{MANIFEST_NAME}"):
            manifest, _ = read_manifest(files, folder)
        if manifest is None or bytes.fromhex(manifest.epoch) != export.epoch:
            return None
        return manifest if not fits(self._replication.vm.geometry, manifest) else None

    def _begin(self, export: ExportRecord) -> Manifest:
        """The files, wholly holes, and that nothing is copied yet. Blocks."""
        files, vm = self._ports.files, self._replication.vm
        manifest = Manifest(
            vm=vm.vm.hex(),
            name=vm.name,
            host=self._parts.surroundings.host,
            epoch=export.epoch.hex(),
            began_time=export.started_time,
            ended_time=0.0,
            range_bytes=RANGE_BYTES,
            disks=[ExportedDisk(index=disk.index, uuid=disk.uuid.hex(), size_bytes=disk.size) for disk in vm.geometry],
        )
        for disk in manifest.disks:
            path = f"{export.folder}/{disk_file(disk.index)}"
            files.remove(path)
            file = files.open(path, write=True, create=True, exclusive=True)
            try:
                file.truncate(disk.size_bytes)
                file.sync()
            finally:
                file.close()
        self._save(export, manifest)
        return manifest

    def _save(self, export: ExportRecord, manifest: Manifest) -> None:
        """What is named in it is durable. Blocks."""
        replace_file(self._ports.files, f"{export.folder}/{PART_NAME}", encode(manifest, complete=False))

    async def _copy_disk(
        self, export: ExportRecord, manifest: Manifest, disk: ExportedDisk, path: str, progress: ResyncProgress
    ) -> bool:
        size, step = disk.size_bytes, manifest.range_bytes
        done = min(len(disk.ranges) * step, size)
        progress.begin_disk(disk.index, [(0, size)], [(done, size - done)] if done < size else [])
        if done == size:
            return True
        pacer = self._parts.surroundings.pacing.pacer(
            lambda: self._replication.vm, initial=True, precedence=self._parts.precedence
        )
        source = await self._run(self._ports.files.open_disk, path)
        target: File | None = None
        try:
            target = await self._run(self._open_target, export, disk)
            for offset in range(done, size, step):
                if not self._is_ordered(export):
                    return False
                length = min(step, size - offset)
                data = await self._run(data_bytes, source, offset, length)
                await pacer.disk(data)
                disk.ranges.append(await self._run(copy_range, source, target, offset, length))
                progress.range_compared(disk.index, offset, length, [], length - data)
                progress.range_sent(disk.index, offset, length)
                if len(disk.ranges) % SAVE_RANGES == 0 or offset + length == size:
                    await self._run(target.sync)
                    await self._run(self._save, export, manifest)
            return True
        finally:
            source.close()
            if target is not None:
                target.close()

    def _open_target(self, export: ExportRecord, disk: ExportedDisk) -> File:
        file = self._ports.files.open(f"{export.folder}/{disk_file(disk.index)}", write=True)
        if file.size() == disk.size_bytes:
            return file
        file.close()
        raise StorageError(f"{file.path} has another size than disk {disk.index}.", "Somebody changed it: export anew.")

    async def _complete(self, export: ExportRecord, manifest: Manifest, progress: ResyncProgress) -> None:
        """The manifest, and the initial replication that it stands for."""
        data = await self._ports.workers.run(self._finish, export, manifest)
        record = self._replication.record
        resync = mint(
            identity=identity_of(data),
            epoch=export.epoch,
            kind=ResyncKind.INITIAL,
            replication=record,
            parent_segment=0,
            now=export.started_time,
        )
        resync = msgspec.structs.replace(resync, exported=export.folder)
        text = (
            f"The first copy of {manifest.name} is complete in {export.folder}. Bring that folder to the replica's "
            f"host, and run `vmreplica import` with it there. What is written from now on is tracked."
        )
        told = self._replication.event(EventId.EXPORTED, text, cause="export", data={"id": resync.id.hex()})
        if not self._is_ordered(export):
            return
        await clear_problem(self._replication)
        record = self._replication.record
        if await self._replication.transition(None, text, told, seen=record, export=None, resync=resync):
            progress.enter(WAITING, "for the import at the replica")
            self._replication.replan()

    def _finish(self, export: ExportRecord, manifest: Manifest) -> bytes:
        """Blocks. The one that is there already, where a crash came right after it."""
        files, path = self._ports.files, f"{export.folder}/{MANIFEST_NAME}"
        if manifest.ended_time == 0.0:
            manifest.ended_time = self._ports.clock.wall()
            replace_file(files, path, encode(manifest))
        files.remove(f"{export.folder}/{PART_NAME}")
        files.sync_folder(export.folder)
        return encode(manifest)
