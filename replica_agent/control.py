"""A control connection: receives a VM's log into the spool, acknowledges cuts, and takes the steps of a resync.

Receiving and storing overlap: while a worker verifies and writes some frames, the next ones are being received, up to a
bound. One control connection of a VM is served at a time (R13).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from protocol.bulk import Bulk
from protocol.errors import ProtocolError
from protocol.hrl import Geometry
from protocol.messages import (
    Applied,
    Commit,
    Committed,
    ErrorCode,
    FailoverPrepare,
    FailoverVoid,
    MessageType,
    Received,
    ResyncBegin,
    ResyncCancel,
    ResyncCancelled,
    ResyncKind,
    Unsettle,
    Unsettled,
    WirePosition,
)
from protocol.position import Lineage, Position
from replica_agent import planned
from replica_agent.baseline import Baseline
from replica_agent.companions import Companions
from replica_agent.finishing import finish
from replica_agent.intake import Admit, Intake
from replica_agent.parts import VmParts
from replica_agent.refusals import Refusal
from replica_agent.spool import Spool, SyncFailedError
from shared.channel import Channel
from shared.errors import NoSpaceError
from shared.stats import ReplicationStatistics
from shared.status import Cause
from shared.tasks import together

TAKE_BYTES = 4 << 20
"""Bytes of log that one piece of work in a worker stores."""


class Control:
    """Serves one control connection from its OPENED to its end."""

    def __init__(
        self,
        parts: VmParts,
        baseline: Baseline,
        channel: Channel,
        statistics: ReplicationStatistics,
        disks: Sequence[Geometry],
        disk_set: int,
        admit: Admit,
        companions: Companions,
        lineage: Lineage = (),
    ) -> None:
        """``disks`` and ``lineage`` are the primary's, by its OPEN, and ``disk_set`` numbers the disks; ``admit`` is
        asked before log is stored.
        """
        self.channel = channel
        self._disks, self._disk_set = disks, disk_set
        self._lineage = lineage
        self.ended = asyncio.Event()
        """Set when nothing of this connection runs any more."""
        self.resyncing = False
        """Whether the resync was begun, or gone on with, on this connection."""
        self._parts = parts
        self._baseline = baseline
        self._statistics = statistics
        self._admit = admit
        self._companions = companions
        self._intake: Intake[Bulk] = Intake(budget=parts.surroundings.memory)

    @property
    def token(self) -> int:
        return self.channel.session.token

    async def run(self) -> None:
        """Serve until the connection ends; raises what ended it."""
        self._parts.applier.exposed.append(self._tell_applied)
        try:
            await together(self._receive(), self._store())
        finally:
            self._intake.close()
            self._parts.applier.exposed.remove(self._tell_applied)
            self._leave_place()
            await finish(self._companions.leave())
            if self._parts.resync is not None and self.resyncing:
                self._parts.resync.leave()

    async def _receive(self) -> None:
        while True:
            message = await self.channel.receive()
            if isinstance(message, Bulk):
                await self._intake.put(message, len(message.payload))
                continue
            if await self._companions.take(message, self.channel, self._admit):
                continue
            await self._intake.emptied()
            match message:
                case ResyncBegin():
                    await self._begin(message)
                case Unsettle():
                    await self._unsettle(message)
                case ResyncCancel():
                    await self._cancel(message)
                case Commit():
                    await self._commit(message)
                case FailoverPrepare():
                    self.channel.send(await finish(planned.take(self._parts, message, self._host)))
                case FailoverVoid():
                    self.channel.send(await finish(planned.void(self._parts, message)))
                case _:
                    raise ProtocolError(f"{type(message).__name__} is not expected here", code="state")

    # --- log -------------------------------------------------------------------------------------------------------

    async def _store(self) -> None:
        while True:
            frames = await self._intake.take(TAKE_BYTES)
            await self._drop_token()
            await self._wait_for_room()
            await self._admit(sum(frame.raw_length for frame in frames))
            try:
                async with self._parts.order:
                    spool = self._spool()
                    cuts = await finish(self._parts.ports.workers.run(_take, spool, frames))
            except SyncFailedError as error:
                await finish(self._sync_failed(error))
                raise
            finally:
                # What was received is to be applied, whatever becomes of this connection.
                self._parts.applier.changed.notify()
            for cut in cuts:
                self._acknowledge(spool, cut)
            self._parts.changed.notify()

    async def _drop_token(self) -> None:
        """A primary that goes on did not wait for its planned failover."""
        if self._parts.ledger.prepared is not None:
            await finish(planned.drop(self._parts, "The primary goes on replicating."))

    @property
    def _host(self) -> str:
        hello = self.channel.session.peer
        return hello.host if hello is not None else ""

    def _spool(self) -> Spool:
        """Where the log that arrives now belongs. Raises ProtocolError where none can be taken."""
        if self.resyncing and self._parts.resync is not None:
            return self._parts.resync.tracked
        if self._parts.resync is not None:
            raise ProtocolError("log was sent while a resynchronization is open and not begun here", code="state")
        spool = self._parts.applier.spool
        if spool is None:
            raise ProtocolError("log was sent although there is no baseline", code="state")
        causes = self._parts.ledger.replication.causes
        if causes:
            # The primary learns from the next OPENED that it has to resynchronize.
            raise Refusal(ErrorCode.BUSY, f"A resynchronization is required: {causes[-1].text}", causes[-1].remedy)
        return spool

    async def _wait_for_room(self) -> None:
        """Hold the primary up while the spool is above its limit and is being applied.

        What a resync tracks is not applied before its commit, and is bounded by the primary's log instead.
        """
        applier, limit = self._parts.applier, self._parts.surroundings.spool_limit
        while applier.spool is not None and applier.spool.used > limit and not (self.resyncing or applier.idle):
            if applier.problem is not None:
                raise NoSpaceError(applier.problem.text, applier.problem.remedy)
            await applier.changed.wait()

    def _acknowledge(self, spool: Spool, cut: Position) -> None:
        self.channel.send(Received(position=WirePosition.of(cut)))
        segment = next((s for s in reversed(spool.segments) if s.end == cut), None)
        if segment is not None:
            now = self._parts.ports.clock.wall()
            self._statistics.acknowledged(now, latency=now - segment.time_ns / 1e9, size=segment.length)

    async def _sync_failed(self, error: SyncFailedError) -> None:
        """What could not be synced is void, and only a compare tells what is missing (R17)."""
        if self._parts.resync is not None:
            async with self._parts.order:
                await self._baseline.drop(error.text)
            return
        cause = Cause(code="spool_failed", text=error.text, time=self._parts.ports.clock.wall(), remedy=error.remedy)
        async with self._parts.ledger.transaction() as draft:
            draft.require_resync(cause)

    def _tell_applied(self, position: Position) -> None:
        if not self.channel.closed and self.channel.session.allows(MessageType.APPLIED):
            self.channel.send(Applied(position=WirePosition.of(position)))

    # --- resync ----------------------------------------------------------------------------------------------------

    async def _begin(self, body: ResyncBegin) -> None:
        await self._drop_token()
        self._take_place(body)
        ready = await self._baseline.begin(body, self._disks, self._disk_set, self._lineage)
        self.resyncing = True
        for part in ready:
            self.channel.send(part)

    async def _unsettle(self, body: Unsettle) -> None:
        try:
            ready = await finish(self._baseline.unsettle(body))
        except SyncFailedError as error:
            await finish(self._sync_failed(error))
            raise
        if ready is not None:
            self.channel.send(Unsettled(id=body.id, round=body.round))
            for part in ready:
                self.channel.send(part)

    def _take_place(self, body: ResyncBegin) -> None:
        """One of the places that this host has for compares. Raises Refusal where all are taken.

        What is bounded is short, and is not made to wait.
        """
        surroundings, vm = self._parts.surroundings, self._parts.ledger.vm
        others = surroundings.resyncing - {vm.vm}
        if body.kind is not ResyncKind.BOUNDED and len(others) >= surroundings.resyncs_at_once:
            # Other primaries' VMs are told as a number only (I19).
            raise Refusal(
                ErrorCode.QUEUED,
                f"The replica compares {len(others)} other VM(s) just now, and takes on {vm.name} after one of them.",
                "Nothing has to be done; resyncs_at_once in its configuration allows more at a time.",
            )
        surroundings.resyncing.add(vm.vm)

    def _leave_place(self) -> None:
        self._parts.surroundings.resyncing.discard(self._parts.ledger.vm.vm)

    async def _cancel(self, body: ResyncCancel) -> None:
        await finish(self._baseline.cancel(body.id, f"cancelled at the primary: {body.text}"))
        self.resyncing = False
        self._leave_place()
        self.channel.send(ResyncCancelled(id=body.id))

    async def _commit(self, body: Commit) -> None:
        end = body.end.position()
        await finish(self._baseline.commit(body.id, body.round, end))
        self.resyncing = False
        self._leave_place()
        self.channel.send(Committed(id=body.id, end=WirePosition.of(end)))


def _take(spool: Spool, frames: Sequence[Bulk]) -> list[Position]:
    """Store frames in order; the cuts to acknowledge. Blocks."""
    return [cut for frame in frames if (cut := spool.take(frame)) is not None]
