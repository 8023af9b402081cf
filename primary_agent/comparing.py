"""The compare of a resync: manifests asked for and made, and the blocks that differ sent, until all are settled.

A range is hashed on both sides at the same time, several ranges at once. What is compared must lie in the scope of the
resync and not be settled already. The log has been tracking since before the first block is read (R6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from primary_agent.compare import BlocksReader, differing_spans, ranges_to_compare, unreadable
from primary_agent.dialing import name_of
from primary_agent.progress import COMPARING, ResyncProgress
from primary_agent.record import ResyncRecord
from primary_agent.replication import Replication
from primary_agent.surroundings import Surroundings
from protocol.bulk import Bulk, Manifest, block_count, decode_manifest
from protocol.errors import ProtocolError
from protocol.hrl import Geometry
from protocol.messages import BLOCK_SIZE, ManifestRequest, MessageType, RangeDone, RangeSettled, ResyncKind, Run
from shared.channel import Channel
from shared.disks.hashing import RangeHasher
from shared.events import EventId
from shared.map_file import Range
from shared.ports import File
from shared.rates import duration_text, size_text
from shared.tasks import Signal, all_of, together

RANGES_AT_ONCE = 4
"""Ranges of which manifests are asked for, hashed and compared at the same time."""
UNSETTLED_RANGES = 32
"""Ranges whose blocks were sent and that the replica has not yet made durable."""


class Pacer(Protocol):
    """Slows the compare down where it must not have all of the disk or the link."""

    async def disk(self, length: int) -> None:
        """Return when ``length`` bytes may be read from the disk."""

    async def wire(self, length: int) -> None:
        """``length`` bytes were given to the link; return when more may follow."""


class _Unpaced:
    async def disk(self, length: int) -> None:
        pass

    async def wire(self, length: int) -> None:
        pass


UNPACED: Pacer = _Unpaced()
"""Lets everything through at once."""


@dataclass(slots=True)
class SessionKey:
    """The hash key of one session (I15)."""

    id: bytes
    hasher: RangeHasher


class Comparing:
    """One session's compare over its ``bulk`` connection."""

    def __init__(
        self,
        surroundings: Surroundings,
        replication: Replication,
        resync: ResyncRecord,
        bulk: Channel,
        key: SessionKey,
        progress: ResyncProgress,
        *,
        settled: Callable[[], None],
        pacer: Pacer,
    ) -> None:
        """``settled`` is called whenever the replica has made a range durable."""
        self.progress = progress
        self.resync = resync
        self._ports = surroundings.ports
        self._replication = replication
        self._bulk = bulk
        self._key = key
        self._pacer = pacer
        self._disks: list[Geometry] = [disk.geometry for disk in replication.vm.disks]
        self._manifests: dict[tuple[int, int], asyncio.Future[Manifest]] = {}
        self._unsettled: dict[tuple[int, int], int] = {}
        self._settled = Signal()
        self._note_settled = settled

    async def run(self, settled: dict[int, list[Run]], scope: dict[int, list[Range]]) -> None:
        """Compare what of each disk's ``scope`` is not ``settled``; returns when all that differs is durable there."""
        await together(self._compare_disks(settled, scope), self._receive())

    async def _compare_disks(self, settled: dict[int, list[Run]], scope: dict[int, list[Range]]) -> None:
        self.progress.enter(COMPARING)
        for disk, record in zip(self._disks, self._replication.vm.disks, strict=True):
            ranges = list(ranges_to_compare(disk.size, settled[disk.index], scope[disk.index]))
            self.progress.begin_disk(disk.index, scope[disk.index], ranges)
            await self._compare_disk(disk, record.path, ranges)
        while self._unsettled:
            await self._settled.wait()

    async def _compare_disk(self, disk: Geometry, path: str, ranges: list[Range]) -> None:
        left = sum(length for _, length in ranges)
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
            await all_of(*(self._compare_ranges(queue, disk, file) for _ in range(RANGES_AT_ONCE)))
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

    async def _compare_ranges(self, ranges: Iterator[Range], disk: Geometry, file: File) -> None:
        for offset, length in ranges:
            while len(self._unsettled) >= UNSETTLED_RANGES:
                await self._settled.wait()
            await self._compare_range(disk, file, offset, length)

    async def _compare_range(self, disk: Geometry, file: File, offset: int, length: int) -> None:
        """Both sides hash the range at the same time; what differs is sent."""
        resync, bulk, key = self.resync, self._bulk, self._key
        answer: asyncio.Future[Manifest] = asyncio.get_running_loop().create_future()
        self._manifests[disk.index, offset] = answer
        bulk.send(
            ManifestRequest(
                id=resync.id, round=resync.round, key_id=key.id, disk=disk.index, offset=offset, length=length
            )
        )
        await self._pacer.disk(length)
        ours = await self._ports.workers.run(self._hash, disk, file, offset, length)
        theirs = await answer
        spans = differing_spans(ours, theirs, key.hasher.zero_tags(length))
        holes = min(length, BLOCK_SIZE * int(np.count_nonzero(ours.holes & theirs.holes)))
        self.progress.range_compared(disk.index, offset, length, [(span.offset, span.length) for span in spans], holes)
        if spans:
            await self._send_blocks(
                BlocksReader(file, disk.index, spans, BLOCK_SIZE, resync.id, resync.round, bulk.session.compresses),
            )
        # Before it is told: the answer may come at once.
        self.progress.range_sent(disk.index, offset, length)
        self._unsettled[disk.index, offset] = length
        bulk.send(RangeDone(id=resync.id, round=resync.round, disk=disk.index, offset=offset, length=length))
        await bulk.drain()

    def _hash(self, disk: Geometry, file: File, offset: int, length: int) -> Manifest:
        """This side's manifest of a range. Blocks."""
        key = self._key
        try:
            holes, tags = key.hasher.hash_range(file, offset, length)
        except OSError as error:
            raise unreadable(file.path, disk.index, offset, length, error.strerror or str(error)) from error
        resync = self.resync
        return Manifest(resync.id, key.id, resync.round, disk.index, BLOCK_SIZE, offset, length, holes, tags)

    async def _send_blocks(self, reader: BlocksReader) -> None:
        while (payload := await self._ports.workers.run(reader.next)) is not None:
            self._bulk.send_bulk(MessageType.BLOCKS, payload.pieces, raw_length=payload.raw_length)
            self.progress.blocks_sent(reader.disk, payload.data_bytes + payload.zero_bytes)
            await self._bulk.drain()
            await self._pacer.wire(sum(map(len, payload.pieces)))

    # --- what the replica sends ------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            message = await self._bulk.receive()
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
            self.progress.range_settled(run.disk, run.offset, run.length)
        self._settled.notify()
        self._note_settled()

    async def _note(self, number: EventId, text: str, data: dict[str, Any]) -> None:
        await self._replication.note(self._replication.event(number, text, data=data))
