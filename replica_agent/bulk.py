"""A bulk connection: manifests out, differing blocks in, while a resync compares; belongs to a control connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from protocol.bulk import Bulk
from protocol.errors import ProtocolError
from protocol.hrl import Settled
from protocol.messages import DetailRequest, HolesRequest, ManifestRequest, MessageType, RangeDone, RangeSettled, Run
from replica_agent.baseline import Baseline
from replica_agent.control import Control
from replica_agent.finishing import finish
from replica_agent.intake import Admit, Intake
from replica_agent.parts import VmParts
from replica_agent.resync import MAX_PENDING_RANGES, OpenResync
from replica_agent.spool import SyncFailedError
from shared.channel import Channel
from shared.events import EventId
from shared.ports import Buffer
from shared.tasks import together

Question = ManifestRequest | DetailRequest | HolesRequest

TAKE_BYTES = 4 << 20
HASHERS = 2
"""Ranges that are hashed at the same time."""


class BulkConnection:
    """Serves one bulk connection from its OPENED to its end."""

    def __init__(self, parts: VmParts, baseline: Baseline, control: Control, channel: Channel, admit: Admit) -> None:
        """``admit`` is asked before blocks are stored."""
        self.channel = channel
        self.ended = asyncio.Event()
        """Set when nothing of this connection runs any more."""
        self._parts = parts
        self._baseline = baseline
        self._control = control
        self._admit = admit
        self._blocks: Intake[Bulk | RangeDone] = Intake(budget=parts.surroundings.memory)
        self._requests: asyncio.Queue[Question] = asyncio.Queue(MAX_PENDING_RANGES)

    async def run(self) -> None:
        """Serve until the connection ends; raises what ended it."""
        if self._parts.resync is not None:
            # What an earlier connection asked for and did not finish is asked for again.
            self._parts.resync.pending.clear()
        try:
            await together(self._receive(), self._store(), *(self._answer() for _ in range(HASHERS)))
        finally:
            self._blocks.close()

    def belongs_to(self, control: Control) -> bool:
        return self._control is control

    def _resync(self) -> OpenResync:
        resync = self._parts.resync
        if resync is None or not self._control.resyncing:
            raise ProtocolError("blocks or manifests without a resynchronization that was begun", code="state")
        return resync

    async def _receive(self) -> None:
        while True:
            message = await self.channel.receive()
            match message:
                case ManifestRequest():
                    self._resync().accept(message)
                    await self._requests.put(message)
                case DetailRequest():
                    self._resync().accept_detail(message)
                    await self._requests.put(message)
                case HolesRequest():
                    self._resync().accept_holes(message)
                    await self._requests.put(message)
                case Bulk(type=MessageType.BLOCKS):
                    await self._blocks.put(message, len(message.payload))
                case RangeDone():
                    await self._blocks.put(message, 0)
                case _:
                    raise ProtocolError(f"{type(message).__name__} is not expected here", code="state")

    async def _answer(self) -> None:
        while True:
            request = await self._requests.get()
            resync = self._resync()
            run = self._parts.ports.background.run
            pieces: Sequence[Buffer]
            match request:
                case ManifestRequest():
                    pieces = await finish(run(resync.answers.manifest, request))
                    self.channel.send_bulk(MessageType.MANIFEST, pieces)
                    resync.answered(request)
                case DetailRequest():
                    pieces = await finish(run(resync.answers.detail, request))
                    self.channel.send_bulk(MessageType.DETAIL, pieces)
                case HolesRequest():
                    answer = await finish(run(resync.answers.holes, request))
                    self.channel.send(answer)
                    resync.told(answer)
            while resync.unreadable:
                text = f"A part of the replica can't be read and is sent anew: {resync.unreadable.pop()}"
                await self._parts.ledger.note(EventId.DAMAGED, text, cause="unreadable")
            await self.channel.drain()

    async def _store(self) -> None:
        while True:
            items = await self._blocks.take(TAKE_BYTES)
            await self._admit(sum(item.raw_length for item in items if isinstance(item, Bulk)))
            try:
                async with self._parts.order:
                    resync = self._resync()
                    settled = await finish(self._parts.ports.workers.run(resync.take, items))
            except SyncFailedError as error:
                await finish(self._sync_failed(resync, error))
                raise
            if settled:
                self._tell(resync, settled)
            self._parts.changed.notify()

    def _tell(self, resync: OpenResync, settled: list[Settled]) -> None:
        runs = [Run(disk=run.disk, offset=run.offset, length=run.length) for run in settled]
        self.channel.send(RangeSettled(id=resync.record.id, round=resync.record.round, ranges=runs))

    async def _sync_failed(self, resync: OpenResync, error: SyncFailedError) -> None:
        """Nothing that was received of the resync can be relied on (R17)."""
        async with self._parts.order:
            await self._baseline.drop(error.text, reread=resync.in_place)
