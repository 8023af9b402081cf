"""Brings a first copy into the disks of a VM that has no baseline yet: a seed, or what came by courier.

It is copied beside the disks, and takes their place in one step when all of it is there and durable; a crash before
leaves the disks as they were. No resync begins meanwhile. Of a seed nothing is believed: the initial replication
compares all of it. What came by courier was checked against its manifest, and counts as settled in the very initial
replication that its primary began for it: no recovery point yet, since the log from its beginning is still to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from protocol.hrl import Settled
from protocol.messages import ErrorCode, ResyncKind
from protocol.position import NO_EPOCH
from replica_agent.finishing import finish
from replica_agent.parts import VmParts
from replica_agent.record import ResyncRecord
from replica_agent.refusals import Refusal
from replica_agent.resync import OpenResync
from replica_agent.space import require_room
from shared.courier import RANGE_BYTES, Manifest, disk_file
from shared.disks.copying import copy_range, data_bytes
from shared.errors import InvalidStateError, StorageError, UsageError, VmreplicaError
from shared.events import EventId
from shared.import_status import EXPORT, FAILED, IMPORTED, SEED, ImportStatus
from shared.ports import File
from shared.rates import size_text
from shared.states import ReplicaEvent, ReplicationState

_ACCESS = (
    "The replica agent reads it as its own user: check the owner and mode of the file and of the folders above it."
)


@dataclass(frozen=True, slots=True)
class Source:
    """A raw image that becomes a disk. ``ranges``: the SHA-256 of each of its ranges; None where nobody knows it."""

    disk: int
    path: str
    ranges: tuple[str, ...] | None = None
    range_bytes: int = RANGE_BYTES


@dataclass(frozen=True, slots=True)
class Plan:
    """What is imported. ``manifest`` and ``identity``, of an export: what it says, and the id that it stands for."""

    sources: tuple[Source, ...]
    move: bool = False
    manifest: Manifest | None = None
    identity: bytes = b""

    @property
    def where(self) -> str:
        """The source in words."""
        if self.manifest is not None:
            return self.sources[0].path.rpartition("/")[0]
        return ", ".join(source.path for source in self.sources)


def export_plan(folder: str, manifest: Manifest, identity: bytes) -> Plan:
    """How the export in ``folder`` is imported."""
    sources = tuple(
        Source(disk.index, f"{folder}/{disk_file(disk.index)}", tuple(disk.ranges), manifest.range_bytes)
        for disk in manifest.disks
    )
    return Plan(sources, manifest=manifest, identity=identity)


def seed_plan(indexes: Sequence[int], seeds: Sequence[tuple[int | None, str]], *, move: bool) -> Plan:
    """How seeds are imported: by the disk that is named with each, else in the disks' order. Raises UsageError."""
    named = [disk for disk, _ in seeds if disk is not None]
    rest = iter([index for index in indexes if index not in named])
    sources: list[Source] = []
    for disk, path in seeds:
        index = disk if disk is not None else next(rest, None)
        if index is None or index not in indexes or any(index == source.disk for source in sources):
            raise UsageError(
                f"{path} has no disk to be a seed of: the VM has the disks {', '.join(map(str, indexes))}.",
                "Name each seed once: --seed PATH in the order of the disks, or --seed DISK=PATH.",
            )
        sources.append(Source(index, path))
    if not sources:
        raise UsageError("No seed is named.", "Add --seed PATH.")
    return Plan(tuple(sources), move=move)


@dataclass(slots=True)
class Importer:
    """Imports into one VM, one at a time. ``reconnect`` ends its connections, for the primary to look again."""

    parts: VmParts
    reconnect: Callable[[Refusal], Awaitable[None]]
    status: ImportStatus | None = None
    """The one that runs, or was last."""
    _task: asyncio.Task[None] | None = None
    _files: dict[int, File] = field(default_factory=dict)

    async def start(self, plan: Plan, admit: Callable[[int], Awaitable[None]]) -> ImportStatus:
        """Begin; ``admit`` lets its bytes in, by the quota. Raises VmreplicaError; nothing was changed then."""
        parts = self.parts
        async with parts.order:
            self._judge()
            if parts.importing is not None:
                raise InvalidStateError(
                    f"A first copy of {self._name} is being imported already, from {parts.importing.source}.",
                    f"Wait for it, or end it with `vmreplica import {self._name} --stop`.",
                )
            parts.importing = self.status = ImportStatus(
                name=self._name,
                uuid=parts.uuid,
                kind=EXPORT if plan.manifest is not None else SEED,
                source=plan.where,
                started_time=parts.ports.clock.wall(),
                total_bytes=sum(parts.disks.sizes[source.disk] for source in plan.sources),
            )
        try:
            await finish(self._open(plan, admit))
        except BaseException:
            await finish(self._close(self.status))
            self.status = None
            raise
        self._task = asyncio.ensure_future(self._run(plan, self.status))
        parts.changed.notify()
        return self.status

    async def stop(self) -> None:
        """End the one that runs, if any."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})
        if self.status is not None and self.status.running:
            # It was ended before it had begun.
            self._ended(self.status)
            await finish(self._end(self.status))

    def _ended(self, status: ImportStatus) -> None:
        status.outcome, status.text = FAILED, "It was ended before all of it was there; nothing was changed."
        status.remedy = "Run it again."

    @property
    def _name(self) -> str:
        return self.parts.ledger.vm.name

    def _judge(self) -> None:
        """Whether there is nothing that an import could do harm to. Raises InvalidStateError."""
        ledger = self.parts.ledger
        ready = ledger.replication.state is ReplicationState.READY_FOR_INITIAL_REPLICATION
        if (
            ledger.promotion is not None
            or ledger.resync is not None
            or ledger.replication.epoch != NO_EPOCH
            or not ready
        ):
            raise InvalidStateError(
                f"{self._name} is in state {ledger.replication.state.title}: a copy can be imported only before its "
                "initial replication.",
                f"To begin anew with one: `vmreplica stop {self._name}` at the primary while its initial replication "
                f"runs; later `vmreplica remove {self._name}` on both hosts.",
            )

    # --- opening ---------------------------------------------------------------------------------------------------

    async def _open(self, plan: Plan, admit: Callable[[int], Awaitable[None]]) -> None:
        needed = await self.parts.ports.workers.run(self._open_all, plan)
        await admit(needed)

    def _open_all(self, plan: Plan) -> int:
        """Open all sources and judge them; the bytes that they will take. Blocks."""
        parts = self.parts
        needed = 0
        for source in plan.sources:
            file = self._files[source.disk] = self._open_source(source)
            size = parts.disks.sizes[source.disk]
            if file.size() != size:
                raise StorageError(
                    f"{source.path} has {file.size()} bytes, and disk {source.disk} of {self._name} has {size}.",
                    "It has to be a raw image of that very size, of that disk."
                    + (f" `truncate -s {size} {source.path}` makes it as large." if file.size() < size else ""),
                )
            if plan.move:
                self._judge_move(source, file)
            else:
                needed += data_bytes(file, 0, size)
        require_room(parts.ports.files, parts.layout.folder, needed, parts.surroundings.reserve)
        return needed

    def _open_source(self, source: Source) -> File:
        try:
            return self.parts.ports.files.open_disk(source.path)
        except FileNotFoundError:
            raise StorageError(f"{source.path} does not exist.", "Check the path; it is one on this host.") from None
        except OSError as error:
            raise StorageError(f"{source.path} can't be opened: {error.strerror}.", _ACCESS) from error

    def _judge_move(self, source: Source, file: File) -> None:
        found, ours = file.identity(), self.parts.disks.file(source.disk).identity()
        if found.block or found.device != ours.device:
            raise StorageError(
                f"{source.path} can't be moved into the store: it does not lie in the same file system.",
                "Leave --move away: then it is copied.",
            )
        if found.inode == ours.inode:
            raise UsageError(f"{source.path} is disk {source.disk} of {self._name} already.")

    # --- importing -------------------------------------------------------------------------------------------------

    async def _run(self, plan: Plan, status: ImportStatus) -> None:
        try:
            for source in plan.sources:
                await self._bring(plan, source, status)
            await finish(self._take_over(plan))
            status.outcome, status.text = IMPORTED, self._told(plan)
        except asyncio.CancelledError:
            self._ended(status)
            raise
        except VmreplicaError as error:
            status.outcome, status.text, status.remedy = FAILED, error.text, error.remedy
        except OSError as error:
            where = error.filename or self.parts.layout.folder
            status.outcome, status.text = FAILED, f"{where}: {error.strerror or error}."
            status.remedy = "Check the medium and the volume, and run it again."
        finally:
            await finish(self._end(status))

    async def _end(self, status: ImportStatus) -> None:
        await self._close(status)
        if status.outcome == FAILED:
            text = f"Importing a first copy of {self._name} from {status.source} failed: {status.text}"
            await self.parts.ledger.note(EventId.IMPORT_FAILED, text, cause=status.kind, remedy=status.remedy)
        elif not self.parts.closing:
            text = f"A first copy of {self._name} was imported."
            await self.reconnect(Refusal(ErrorCode.BUSY, text, "It is connected again at once."))

    async def _close(self, status: ImportStatus) -> None:
        """Nothing of it goes on."""
        parts = self.parts
        await parts.ports.workers.run(self._clear)
        status.running, status.ended_time = False, parts.ports.clock.wall()
        parts.importing = None
        parts.changed.notify()

    def _clear(self) -> None:
        """Blocks."""
        for disk, file in self._files.items():
            file.close()
            self.parts.ports.files.remove(self.parts.layout.imported(disk))
        self._files.clear()

    async def _bring(self, plan: Plan, source: Source, status: ImportStatus) -> None:
        """One disk to its place beside the present one, durably."""
        size = self.parts.disks.sizes[source.disk]
        if plan.move:
            status.done_bytes += size
            return
        run = self.parts.ports.background.run
        target = await run(self._make, source)
        try:
            for number, offset in enumerate(range(0, size, source.range_bytes)):
                length = min(source.range_bytes, size - offset)
                found = await run(self._copy, source, target, offset, length)
                if source.ranges is not None and found != source.ranges[number]:
                    raise StorageError(
                        f"{source.path} is damaged: bytes {offset} to {offset + length - 1} of disk {source.disk} are "
                        "not what the primary exported.",
                        "Copy that file to the medium once more, or export again. Nothing was imported.",
                    )
                status.done_bytes += length
            await run(target.sync)
        finally:
            target.close()

    def _make(self, source: Source) -> File:
        path = self.parts.layout.imported(source.disk)
        files = self.parts.ports.files
        files.remove(path)
        target = files.open(path, write=True, create=True, exclusive=True)
        target.truncate(self.parts.disks.sizes[source.disk])
        return target

    def _copy(self, source: Source, target: File, offset: int, length: int) -> str:
        # So that what arrives meanwhile for other VMs keeps its reserve.
        parts = self.parts
        require_room(parts.ports.files, parts.layout.folder, 0, parts.surroundings.reserve)
        found = copy_range(self._files[source.disk], target, offset, length)
        target.write_behind(offset, length)
        return found

    # --- the step --------------------------------------------------------------------------------------------------

    async def _take_over(self, plan: Plan) -> None:
        """What was brought becomes the disks: the files first, then the record."""
        parts = self.parts
        async with parts.order:
            self._judge()
            opened = await finish(parts.ports.workers.run(self._exchange, plan))
            try:
                async with parts.ledger.transaction() as draft:
                    replication = draft.replication
                    replication.seeded = True
                    if not plan.move and len(plan.sources) == len(parts.disks.geometry):
                        # All of it was written and synced just now.
                        replication.reread = False
                    if opened is not None:
                        draft.resync = opened.record
                        draft.step(ReplicaEvent.INITIAL_STARTED, "a first copy was imported")
                    kind = EXPORT if opened is not None else SEED
                    draft.event(EventId.IMPORTED, self._told(plan), cause=kind, source=plan.where)
            except BaseException:
                if opened is not None:
                    await finish(parts.ports.workers.run(opened.drop))
                raise
            parts.resync = opened
        parts.changed.notify()

    def _exchange(self, plan: Plan) -> OpenResync | None:
        """The files change places, durably. Blocks.

        A crash in between leaves disks of which nothing is believed: no record says anything of them yet.
        """
        parts, files = self.parts, self.parts.ports.files
        parts.disks.close()
        try:
            for source in plan.sources:
                came = source.path if plan.move else parts.layout.imported(source.disk)
                if plan.move:
                    self._take(source)
                files.rename(came, parts.disks.path(source.disk))
            files.sync_folder(parts.layout.folder)
        finally:
            parts.disks.open()
        parts.disks.sync_all()
        return self._settle(plan) if plan.manifest is not None else None

    def _take(self, source: Source) -> None:
        """Whether a file that is moved will be ours: we may write it, and nobody else has it. Blocks."""
        try:
            file = self.parts.ports.files.open(source.path, write=True)
        except OSError as error:
            raise StorageError(
                f"{source.path} can't be moved into the store: {error.strerror}.",
                "Give it to the replica agent's user (chown), or leave --move away: then it is copied.",
            ) from error
        try:
            file.lock()
            file.sync()
        finally:
            file.close()

    def _settle(self, plan: Plan) -> OpenResync:
        """The initial replication that goes on from it, all of it settled. Blocks."""
        parts, manifest = self.parts, plan.manifest
        assert manifest is not None
        epoch = bytes.fromhex(manifest.epoch)
        record = ResyncRecord(
            id=plan.identity,
            kind=ResyncKind.INITIAL,
            epoch=epoch,
            parent=NO_EPOCH,
            parent_segment=0,
            round=1,
            started_time=parts.ports.clock.wall(),
            in_place=True,
        )
        opened = parts.open_resync(record, {})
        opened.tracked.drop()
        opened.differences.create()
        # After the files took their places: what was written to them later would have to be compared again.
        opened.differences.settle([Settled(disk.index, 0, disk.size) for disk in parts.disks.geometry])
        return opened

    def _told(self, plan: Plan) -> str:
        size = size_text(sum(self.parts.disks.sizes[source.disk] for source in plan.sources))
        if plan.manifest is not None:
            return (
                f"The first copy of {self._name} was imported from {plan.where}: {size}, every range as it was "
                "exported. It is no recovery point before what was written since has arrived."
            )
        return (
            f"A seed of {self._name} was imported from {plan.where}: {size}. Nothing is believed of it: the initial "
            "replication compares all of it, and sends what differs."
        )
