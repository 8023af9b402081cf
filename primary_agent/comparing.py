"""The compare of a resync: ranges asked about and hashed, and the blocks that differ sent, until all are settled.

A range's digests go to the replica, which answers with the tags of what has others; differing blocks are looked at in
smaller ones where that pays. Several ranges are under way at once, so that both sides have something to hash. What is
compared lies in the scope of the resync and is not settled already. The log has been tracking since before the first
block is read (R6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from primary_agent.compare import BlocksReader, Piece, Pieces, Span, holes_between, unreadable, unsettled_runs
from primary_agent.detail import RangeDifferences
from primary_agent.dialing import name_of
from primary_agent.pacing import Pacer
from primary_agent.progress import COMPARING, ResyncProgress
from primary_agent.record import ResyncRecord
from primary_agent.replication import Replication
from primary_agent.surroundings import Surroundings
from protocol.bulk import Bulk, Detail, Manifest, block_count, decode_detail, decode_manifest, group_count
from protocol.errors import ProtocolError
from protocol.hrl import Geometry
from protocol.messages import (
    BLOCK_SIZE,
    DETAIL_BYTES,
    GROUP_BLOCKS,
    DetailRequest,
    Holes,
    HolesRequest,
    ManifestRequest,
    MessageType,
    RangeDone,
    RangeSettled,
    ResyncKind,
    Run,
)
from shared.channel import Channel
from shared.disks.hashing import RangeHasher
from shared.events import EventId
from shared.map_file import Range
from shared.ports import File
from shared.rates import duration_text, size_text
from shared.tasks import Signal, all_of, together

if TYPE_CHECKING:
    from numpy.typing import NDArray

RANGES_AT_ONCE = 8
"""Ranges that are compared at the same time: hashed here, asked about, or being sent."""
SENDERS = 2
"""Ranges of them whose blocks are read, compressed and sent at the same time: what is begun is settled soon."""
HASHERS = 2
"""Ranges of them that are hashed at the same time; the replica hashes others meanwhile."""
UNSETTLED_RANGES = 32
"""Ranges whose blocks were sent and that the replica has not yet made durable."""


T = TypeVar("T")
Answers = dict[tuple[int, int], "asyncio.Future[T]"]
"""What was asked about a disk's range at an offset, and not yet answered."""


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
        self._ports = surroundings.ports.in_background()
        self._replication = replication
        self._bulk = bulk
        self._key = key
        self._pacer = pacer
        self._disks: list[Geometry] = [disk.geometry for disk in replication.vm.disks]
        self._manifests: Answers[Manifest] = {}
        self._details: Answers[Detail] = {}
        self._holes: Answers[Holes] = {}
        self._taking = asyncio.Lock()
        self._hashing = asyncio.Semaphore(HASHERS)
        self._sending = asyncio.Semaphore(SENDERS)
        self._unsettled: dict[tuple[int, int], int] = {}
        self._settled = Signal()
        self._note_settled = settled

    async def run(self, settled: dict[int, list[Run]], scope: dict[int, list[Range]]) -> None:
        """Compare what of each disk's ``scope`` is not ``settled``; returns when all that differs is durable there."""
        await together(self._compare_disks(settled, scope), self._receive())

    async def _compare_disks(self, settled: dict[int, list[Run]], scope: dict[int, list[Range]]) -> None:
        self.progress.enter(COMPARING)
        for disk, record in zip(self._disks, self._replication.vm.disks, strict=True):
            runs = list(unsettled_runs(disk.size, settled[disk.index], scope[disk.index]))
            left = [(start, end - start) for start, end in runs]
            self.progress.begin_disk(disk.index, scope[disk.index], left)
            await self._compare_disk(disk, record.path, runs)
        while self._unsettled:
            await self._settled.wait()

    async def _compare_disk(self, disk: Geometry, path: str, runs: list[tuple[int, int]]) -> None:
        left = sum(end - start for start, end in runs)
        if not runs:
            return
        counters = self.progress.disks[disk.index]
        sent_before, wire_before = counters.sent_bytes, self.progress.wire_bytes
        started = self._ports.clock.monotonic()
        first, last = runs[0][0] // BLOCK_SIZE, (runs[-1][1] - 1) // BLOCK_SIZE
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
            pieces = Pieces(file, runs)
            await all_of(*(self._compare_pieces(pieces, disk, file) for _ in range(RANGES_AT_ONCE)))
        finally:
            file.close()
        seconds = self._ports.clock.monotonic() - started
        sent = counters.sent_bytes - sent_before
        result = scope | {
            "blocks_compared": block_count(left, BLOCK_SIZE),
            "blocks_sent": block_count(sent, BLOCK_SIZE),
            "bytes_compared": left,
            "bytes_sent": sent,
            "bytes_wire": self.progress.wire_bytes - wire_before,
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
        file.expect_sequential()
        return file

    async def _compare_pieces(self, pieces: Pieces, disk: Geometry, file: File) -> None:
        while True:
            while len(self._unsettled) >= UNSETTLED_RANGES:
                await self._settled.wait()
            async with self._taking:
                piece = await self._ports.workers.run(self._next, pieces, disk, file)
            if piece is None:
                return
            if piece.hole:
                await self._compare_hole(pieces, disk, piece)
            else:
                await self._compare_range(disk, file, piece.offset, piece.length)

    async def _compare_range(self, disk: Geometry, file: File, offset: int, length: int) -> None:
        """Tell our digests of a range, learn the tags of what is not equal, and send what differs."""
        bulk, hasher = self._bulk, self._key.hasher
        await self._pacer.disk(length)
        async with self._hashing:
            ours, table, digests = await self._ports.workers.run(self._hash, disk, file, offset, length)
        place = self._place(disk, offset, length)
        theirs = await self._ask(ManifestRequest(**place, digests=digests), self._manifests)
        # What the answer leaves out is equal there, so that a hole here is zeroes there.
        holes = BLOCK_SIZE * int(np.count_nonzero(ours.holes & theirs.holes))
        spans: list[Span] = []
        if not theirs.equal.all():
            found = RangeDifferences.of(ours, table, theirs, hasher.zero_tags(length))
            await self._look_closer(found, place, file, found.first_question())
            await self._look_closer(found, place, file, found.second_question())
            spans = found.spans()
        different = [(span.offset, span.length) for span in spans]
        self.progress.range_compared(disk.index, offset, length, different, min(length, holes))
        if spans:
            compresses = bulk.session.compresses
            reader = BlocksReader(file, disk.index, spans, BLOCK_SIZE, self.resync.id, self.resync.round, compresses)
            async with self._sending:
                await self._send_blocks(reader)
        self._done(disk, offset, length)
        await bulk.drain()

    async def _look_closer(
        self, found: RangeDifferences, place: dict[str, Any], file: File, asked: NDArray[Any]
    ) -> None:
        """The second level: both sides hash the smaller blocks of the blocks in ``asked`` at the same time."""
        if not asked.any():
            return
        ranges = found.ranges(asked)
        await self._pacer.disk(sum(length for _, length in ranges))
        request = DetailRequest(**place, blocks=np.packbits(asked, bitorder="little").tobytes())
        answer = self._ask(request, self._details)
        async with self._hashing:
            ours = await self._ports.workers.run(self._hash_closer, place["disk"], file, ranges)
        found.answer(asked, ours, await answer)

    async def _compare_hole(self, pieces: Pieces, disk: Geometry, piece: Piece) -> None:
        """A long hole here: what is data there is compared in ranges, the rest is equal."""
        place = self._place(disk, piece.offset, piece.length)
        theirs = await self._ask(HolesRequest(**place), self._holes)
        if (theirs.id, theirs.round, theirs.key_id) != (place["id"], place["round"], place["key_id"]):
            raise ProtocolError("HOLES about another resync, round or key than was asked for")
        end = piece.offset + piece.length
        through = piece.offset + theirs.length
        equal, data = holes_between(disk.index, piece.offset, through, theirs.data)
        if not 0 < theirs.length <= piece.length or (through % BLOCK_SIZE and through != end):
            raise ProtocolError(f"HOLES for {theirs.length} bytes of {piece.length}")
        if through < end:
            pieces.put_back(through, end, ordinary=False)
        for start, stop in reversed(data):
            pieces.put_back(start, stop, ordinary=True)
        for start, stop in equal:
            self.progress.range_compared(disk.index, start, stop - start, [], stop - start)
            self._done(disk, start, stop - start)
            await self._bulk.drain()

    def _place(self, disk: Geometry, offset: int, length: int) -> dict[str, Any]:
        """The fields that every question has."""
        resync = self.resync
        return {
            "id": resync.id,
            "round": resync.round,
            "key_id": self._key.id,
            "disk": disk.index,
            "offset": offset,
            "length": length,
        }

    def _ask(self, question: ManifestRequest | DetailRequest | HolesRequest, answers: Answers[T]) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        answers[question.disk, question.offset] = answer
        self._bulk.send(question)
        return answer

    def _done(self, disk: Geometry, offset: int, length: int) -> None:
        """Everything that differs in the range was sent."""
        resync = self.resync
        # Before it is told: the answer may come at once.
        self.progress.range_sent(disk.index, offset, length)
        self._unsettled[disk.index, offset] = length
        self._bulk.send(RangeDone(id=resync.id, round=resync.round, disk=disk.index, offset=offset, length=length))

    def _next(self, pieces: Pieces, disk: Geometry, file: File) -> Piece | None:
        try:
            return pieces.next(self._pacer.piece_bytes())
        except OSError as error:
            raise unreadable(file.path, disk.index, 0, disk.size, error.strerror or str(error)) from error

    def _hash(self, disk: Geometry, file: File, offset: int, length: int) -> tuple[Manifest, NDArray[Any], bytes]:
        """This side's manifest of a range, its tags with those of holes, and their digests. Blocks."""
        key = self._key
        try:
            holes, tags = key.hasher.hash_range(file, offset, length)
        except OSError as error:
            raise unreadable(file.path, disk.index, offset, length, error.strerror or str(error)) from error
        resync, none = self.resync, np.zeros(group_count(len(holes)), bool)
        ours = Manifest(resync.id, key.id, resync.round, disk.index, BLOCK_SIZE, offset, length, holes, tags, none)
        table = key.hasher.filled(holes, tags, length)
        return ours, table, key.hasher.digests(table, GROUP_BLOCKS)

    def _hash_closer(self, disk: int, file: File, ranges: list[Range]) -> NDArray[Any]:
        try:
            return self._key.hasher.detail(file, ranges, DETAIL_BYTES)
        except OSError as error:
            first, (last, length) = ranges[0][0], ranges[-1]
            raise unreadable(file.path, disk, first, last + length - first, error.strerror or str(error)) from error

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
                    manifest = decode_manifest(message.content())
                    self._answer(self._manifests, manifest, "MANIFEST", manifest.disk, manifest.offset)
                case Bulk(type=MessageType.DETAIL):
                    detail = decode_detail(message.content())
                    self._answer(self._details, detail, "DETAIL", detail.disk, detail.offset)
                case Holes():
                    self._answer(self._holes, message, "HOLES", message.disk, message.offset)
                case RangeSettled():
                    self._take_settled(message)
                case _:
                    raise ProtocolError(f"{name_of(message)} is not expected here", code="state")

    def _answer(self, answers: Answers[T], body: T, name: str, disk: int, offset: int) -> None:
        answer = answers.pop((disk, offset), None)
        if answer is None:
            raise ProtocolError(f"{name} of disk {disk}, offset {offset}, was not asked for")
        if not answer.done():
            answer.set_result(body)

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
