"""Drives a resync or an initial replication: tracking from a fresh log, compare, differing blocks, commit.

The order of the steps is the safety of the whole (R6-R10, R33-R35): the epoch is durable here before the tap starts
tracking it; the tap tracks it before any block is read; all ranges are settled at the replica before the cut that ends
the compare; the log up to that cut is received there before the commit; and the proposed end is durable here before
the commit is sent. Every step can be interrupted: a later session goes on where this one stopped, or, if tracking was
lost meanwhile, starts anew under another epoch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from primary_agent.compare import BlocksReader, differing_spans, ranges_to_compare, unreadable
from primary_agent.dialing import Dialled, dial, expect, name_of, open_body
from primary_agent.progress import COMMITTING, COMPARING, STARTING, TRACKED_WRITES, ResyncProgress
from primary_agent.record import ResyncRecord
from primary_agent.replication import Replication
from primary_agent.scope import read_scope
from primary_agent.streaming import CutLedger, LogSender
from primary_agent.surroundings import Surroundings
from primary_agent.tap_link import Connection, TapLink
from protocol.bulk import Bulk, Manifest, block_count, decode_manifest
from protocol.errors import ProtocolError
from protocol.hrl import Geometry
from protocol.messages import (
    BLOCK_SIZE,
    Body,
    Commit,
    Committed,
    ManifestRequest,
    MessageType,
    RangeDone,
    RangeSettled,
    ResyncBegin,
    ResyncKind,
    ResyncReady,
    Role,
    Run,
    WirePosition,
)
from protocol.position import Position
from shared.channel import Channel
from shared.disks.hashing import HASH_NAME, RangeHasher
from shared.errors import VmreplicaError
from shared.events import EventId
from shared.map_file import Range
from shared.ports import Address, File
from shared.rates import duration_text, size_text
from shared.tap_control import Tracking
from shared.tasks import Signal, all_of, together

RANGES_AT_ONCE = 4
"""Ranges of which manifests are asked for, hashed and compared at the same time."""
UNSETTLED_RANGES = 32
"""Ranges whose blocks were sent and that the replica has not yet made durable."""


class TrackingLost(VmreplicaError):
    """Tracking of the resync's epoch was lost: it starts anew (R10)."""

    code = "tracking_lost"


@dataclass(slots=True)
class _Key:
    """The hash key of one session (I15)."""

    id: bytes
    hasher: RangeHasher


class ResyncDriver:
    """One session's work on the open resync of a VM. ``answers`` brings RESYNC_READY and COMMITTED."""

    def __init__(
        self,
        surroundings: Surroundings,
        replication: Replication,
        resync: ResyncRecord,
        address: Address,
        dialled: Dialled,
        tap: TapLink,
        connection: Connection,
        progress: ResyncProgress,
        answers: asyncio.Queue[Body],
        *,
        settled: Callable[[], None],
    ) -> None:
        """``settled`` is called whenever the replica has made a range durable."""
        self.resync = resync
        self.progress = progress
        self._surroundings = surroundings
        self._ports = surroundings.ports
        self._replication = replication
        self._address = address
        self._dialled = dialled
        self._tap = tap
        self._connection = connection
        self._answers = answers
        self._disks: list[Geometry] = [disk.geometry for disk in replication.vm.disks]
        self._manifests: dict[tuple[int, int], asyncio.Future[Manifest]] = {}
        self._unsettled: dict[tuple[int, int], int] = {}
        self._settled = Signal()
        self._note_settled = settled
        self._pacer = surroundings.pacing.pacer(lambda: replication.vm, initial=resync.kind is ResyncKind.INITIAL)

    # --- steps -----------------------------------------------------------------------------------------------------

    async def begin_tracking(self) -> None:
        """Have the tap track the resync's epoch; what was written before is on the disks then (R6)."""
        self.progress.enter(STARTING, "starting a fresh log")
        status = await self._connection.client.begin(self.resync.epoch)
        self._connection.adopt(status, self._ports.clock.monotonic())
        self._tap.changed.notify()
        if not self._connection.tracks(self.resync.epoch):
            raise TrackingLost(f"The tap could not begin to track: tracking is {status.tracking}.")

    async def compare(self) -> None:
        """Begin at the replica, and bring all differing blocks there; returns when all of them are durable."""
        self.progress.enter(STARTING, "beginning at the replica")
        self.progress.count(self._dialled.channel)
        scope = await self._scope()
        key = self._fresh_key()
        settled = await self._begin(key)
        token = self._dialled.channel.session.token
        body = open_body(self._replication, self._connection, role=Role.BULK, token=token)
        bulk = (await dial(self._surroundings, self._address, body)).channel
        self.progress.count(bulk)
        try:
            await together(self._compare_disks(bulk, key, settled, scope), self._receive(bulk))
        except BaseException:
            bulk.abort("the compare was interrupted")
            raise
        await bulk.close("all ranges are settled")

    async def commit(self, sender: LogSender, ledger: CutLedger, end: Position) -> None:
        """When the log up to cut ``end`` is received, commit; returns when the replica confirmed. The sender holds."""
        self.progress.enter(TRACKED_WRITES, "sending what was written meanwhile")
        await sender.sent_through(end.segment)
        while ledger.received != end:
            await ledger.changed.wait()
        self.progress.enter(COMMITTING)
        await self._check_tracking()
        await self._replication.propose(end)
        self._dialled.channel.send(Commit(id=self.resync.id, round=self.resync.round, end=WirePosition.of(end)))
        committed = await self._answers.get()
        expect(committed, Committed)
        assert isinstance(committed, Committed)
        if committed.id != self.resync.id or committed.end.position() != end:
            raise ProtocolError("COMMITTED is about another resync or end than was sent")

    async def cut(self) -> Position:
        """The cut that ends the compare."""
        sealed = (await self._connection.client.cut("resync")).position()
        if sealed.epoch != self.resync.epoch:
            raise TrackingLost("The tap tracks another epoch than that of the resynchronization.")
        return sealed

    async def _check_tracking(self) -> None:
        """Ask the tap itself whether tracking held through all awaits (R10)."""
        status = await self._tap.refresh()
        if status.tracking is not Tracking.ON or status.epoch != self.resync.epoch.hex():
            raise TrackingLost(f"Tracking is {status.tracking} for the resynchronization's epoch.")

    def _fresh_key(self) -> _Key:
        return _Key(self._ports.random.bytes(16), RangeHasher(self._ports.random.bytes(32), BLOCK_SIZE))

    async def _begin(self, key: _Key) -> dict[int, list[Run]]:
        """RESYNC_BEGIN and its answer: the settled ranges of each disk."""
        resync = self.resync
        self._dialled.channel.send(
            ResyncBegin(
                id=resync.id,
                kind=resync.kind,
                round=resync.round,
                epoch=resync.epoch,
                parent=resync.parent,
                parent_segment=resync.parent_segment,
                hash=HASH_NAME,
                key_id=key.id,
                key=key.hasher.key,
                block_size=BLOCK_SIZE,
            )
        )
        ready = await self._answers.get()
        expect(ready, ResyncReady)
        assert isinstance(ready, ResyncReady)
        if (ready.id, ready.round, ready.key_id) != (resync.id, resync.round, key.id):
            raise ProtocolError("RESYNC_READY is about another resync, round or key than was begun")
        settled: dict[int, list[Run]] = {disk.index: [] for disk in self._disks}
        for run in ready.settled:
            if run.disk not in settled:
                raise ProtocolError(f"RESYNC_READY names disk {run.disk}, which the VM does not have")
            settled[run.disk].append(run)
        return settled

    # --- the compare -----------------------------------------------------------------------------------------------

    async def _scope(self) -> dict[int, list[Range]]:
        """The ranges that have to be compared: whole disks, or what the tap's dirty map leaves in doubt (R28)."""
        if self.resync.kind is not ResyncKind.BOUNDED:
            return {disk.index: [(0, disk.size)] for disk in self._disks}
        folder, vm = self._tap.folder, self._replication.vm.vm
        return await self._ports.workers.run(read_scope, self._ports.files, folder, vm, self._disks)

    async def _compare_disks(
        self, bulk: Channel, key: _Key, settled: dict[int, list[Run]], scope: dict[int, list[Range]]
    ) -> None:
        self.progress.enter(COMPARING)
        for disk, record in zip(self._disks, self._replication.vm.disks, strict=True):
            ranges = list(ranges_to_compare(disk.size, settled[disk.index], scope[disk.index]))
            self.progress.begin_disk(disk.index, sum(length for _, length in scope[disk.index]))
            await self._compare_disk(bulk, disk, record.path, key, ranges)
        while self._unsettled:
            await self._settled.wait()

    async def _compare_disk(self, bulk: Channel, disk: Geometry, path: str, key: _Key, ranges: list[Range]) -> None:
        left = sum(length for _, length in ranges)
        self.progress.settled_before(disk.index, left)
        if not ranges:
            return
        counters = self.progress.disks[disk.index]
        sent_before, started = counters.sent_bytes, self._ports.clock.monotonic()
        first, last = ranges[0][0] // BLOCK_SIZE, (sum(ranges[-1]) - 1) // BLOCK_SIZE
        name = self._replication.vm.name
        scope: dict[str, Any] = {
            "disk": disk.index,
            "first_block": first,
            "last_block": last,
            "block_bytes": BLOCK_SIZE,
            "kind": self.resync.kind.value,
        }
        what = f"comparing blocks {first} to {last}"
        if self.resync.kind is ResyncKind.BOUNDED:
            what += f", of them {size_text(left)} that are in doubt"
        await self._note(EventId.RESYNC_STARTED, f"{name}, disk {disk.index}: {what}.", scope)
        file = await self._ports.workers.run(self._open, disk, path)
        try:
            queue = iter(ranges)
            await all_of(*(self._compare_ranges(bulk, queue, disk, file, key) for _ in range(RANGES_AT_ONCE)))
        finally:
            file.close()
        seconds = self._ports.clock.monotonic() - started
        sent = counters.sent_bytes - sent_before
        result = scope | {
            "blocks_compared": block_count(left, BLOCK_SIZE),
            "blocks_sent": block_count(sent, BLOCK_SIZE),
            "bytes_compared": left,
            "bytes_sent": sent,
            "seconds": seconds,
            "result": "success",
        }
        await self._note(
            EventId.RESYNC_COMPARED,
            f"{name}, disk {disk.index}: {result['blocks_compared']} blocks compared, {result['blocks_sent']} sent "
            f"({size_text(sent)}) in {duration_text(seconds)}.",
            result,
        )

    def _open(self, disk: Geometry, path: str) -> File:
        try:
            file = self._ports.files.open_disk(path)
        except OSError as error:
            raise unreadable(path, disk.index, 0, disk.size, error.strerror or str(error)) from error
        if file.size() < disk.size:
            size = file.size()
            file.close()
            raise unreadable(path, disk.index, size, disk.size - size, "the file is shorter than the disk")
        return file

    async def _compare_ranges(
        self, bulk: Channel, ranges: Iterator[tuple[int, int]], disk: Geometry, file: File, key: _Key
    ) -> None:
        for offset, length in ranges:
            while len(self._unsettled) >= UNSETTLED_RANGES:
                await self._settled.wait()
            await self._compare_range(bulk, disk, file, key, offset, length)

    async def _compare_range(
        self, bulk: Channel, disk: Geometry, file: File, key: _Key, offset: int, length: int
    ) -> None:
        """Both sides hash the range at the same time; what differs is sent."""
        resync, counters = self.resync, self.progress.disks[disk.index]
        await self._pacer.disk(length)
        answer: asyncio.Future[Manifest] = asyncio.get_running_loop().create_future()
        self._manifests[disk.index, offset] = answer
        bulk.send(
            ManifestRequest(
                id=resync.id, round=resync.round, key_id=key.id, disk=disk.index, offset=offset, length=length
            )
        )
        ours = await self._ports.workers.run(self._hash, disk, file, key, offset, length)
        theirs = await answer
        spans = differing_spans(ours, theirs, key.hasher.zero_tags(length))
        counters.hole_bytes += BLOCK_SIZE * int(np.count_nonzero(ours.holes & theirs.holes))
        counters.different_bytes += sum(span.length for span in spans)
        if spans:
            await self._send_blocks(
                bulk,
                BlocksReader(file, disk.index, spans, BLOCK_SIZE, resync.id, resync.round, bulk.session.compresses),
            )
        self._unsettled[disk.index, offset] = length
        bulk.send(RangeDone(id=resync.id, round=resync.round, disk=disk.index, offset=offset, length=length))
        await bulk.drain()
        counters.compared_bytes += length
        self.progress.note(self._ports.clock.monotonic())

    def _hash(self, disk: Geometry, file: File, key: _Key, offset: int, length: int) -> Manifest:
        """This side's manifest of a range. Blocks."""
        try:
            holes, tags = key.hasher.hash_range(file, offset, length)
        except OSError as error:
            raise unreadable(file.path, disk.index, offset, length, error.strerror or str(error)) from error
        resync = self.resync
        return Manifest(resync.id, key.id, resync.round, disk.index, BLOCK_SIZE, offset, length, holes, tags)

    async def _send_blocks(self, bulk: Channel, reader: BlocksReader) -> None:
        counters = self.progress.disks[reader.disk]
        while (payload := await self._ports.workers.run(reader.next)) is not None:
            await self._pacer.wire(sum(map(len, payload.pieces)))
            bulk.send_bulk(MessageType.BLOCKS, payload.pieces, raw_length=payload.raw_length)
            counters.sent_bytes += payload.data_bytes + payload.zero_bytes
            await bulk.drain()

    # --- what the replica sends ------------------------------------------------------------------------------------

    async def _receive(self, bulk: Channel) -> None:
        while True:
            message = await bulk.receive()
            match message:
                case Bulk(type=MessageType.MANIFEST):
                    await self._take_manifest(message)
                case RangeSettled():
                    self._take_settled(message)
                case _:
                    raise ProtocolError(f"{name_of(message)} is not expected here", code="state")

    async def _take_manifest(self, message: Bulk) -> None:
        content = message.content() if not message.compressed else await self._ports.workers.run(message.content)
        manifest = decode_manifest(content)
        answer = self._manifests.pop((manifest.disk, manifest.offset), None)
        if answer is None:
            raise ProtocolError(f"MANIFEST of disk {manifest.disk}, offset {manifest.offset}, was not asked for")
        if not answer.done():
            answer.set_result(manifest)

    def _take_settled(self, message: RangeSettled) -> None:
        if (message.id, message.round) != (self.resync.id, self.resync.round):
            raise ProtocolError("RANGE_SETTLED is about another resync or round")
        for run in message.ranges:
            if self._unsettled.pop((run.disk, run.offset), None) != run.length:
                raise ProtocolError(f"RANGE_SETTLED of disk {run.disk}, offset {run.offset}, which was not sent")
            self.progress.disks[run.disk].settled_bytes += run.length
        self._settled.notify()
        self._note_settled()

    async def _note(self, number: EventId, text: str, data: dict[str, Any]) -> None:
        await self._replication.note(self._replication.event(number, text, data=data))
