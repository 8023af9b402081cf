"""One session with the replica: decide what it is for, then stream the log, drive a resync, or wait for orders.

A session is bound to one connection to the replica and one to the tap. Whatever no longer fits ends it (``Replan``):
the next one is planned from durable records and from what both sides tell, so that there is one way to begin and none
to patch up.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import NoReturn

import msgspec

from primary_agent.conclusions import Replan, conclude
from primary_agent.dialing import Dialled, expect
from primary_agent.export_waiting import until_brought
from primary_agent.forecast import foresee
from primary_agent.judgement import causes_of, is_history_lost, judge_rebuilt, learn_indexes, view_of
from primary_agent.parts import Parts
from primary_agent.planned_session import PlannedSession
from primary_agent.problems import note_session
from primary_agent.progress import MERGING, WAITING
from primary_agent.record import ResyncRecord, mint
from primary_agent.replication import Acked
from primary_agent.resync import ResyncDriver
from primary_agent.resyncing import abandon
from primary_agent.rounds import another_round
from primary_agent.starting import Starting
from primary_agent.streaming import CutLedger, LogSender, SentCut
from primary_agent.tap_link import Connection, TapUnavailableError
from primary_agent.tracking_loss import note_loss
from protocol.messages import (
    Applied,
    Body,
    Committed,
    FailoverPrepared,
    FailoverVoided,
    Received,
    ResyncCancel,
    ResyncCancelled,
    ResyncKind,
    ResyncReady,
    Unsettled,
)
from protocol.position import NO_EPOCH, Position
from shared.hrl_follower import LogDamagedError
from shared.planning import (
    CommitConfirmed,
    Decision,
    GoOnWithResync,
    InitialRequired,
    NextRound,
    RestartResync,
    Resume,
    ResyncCause,
    ResyncRequired,
    decide,
)
from shared.sides import ReplicaView
from shared.states import ReplicationState
from shared.tasks import Signal, together

RELEASE_SECONDS = 0.1
"""Acknowledgements are told to the tap at most so often."""
STORE_SECONDS = 2.0
"""The acknowledged cut and the statistics are written down at most so often."""


class Session:
    """The work of one session, from its OPENED to its end."""

    def __init__(self, parts: Parts, dialled: Dialled, connection: Connection) -> None:
        self.ledger = CutLedger(dialled.view("").received)
        self._parts = parts
        self._replication = parts.replication
        self._ports = parts.surroundings.ports
        self._dialled = dialled
        self._replica: ReplicaView = dialled.view(str(parts.address))
        self._starting = Starting(parts, self._replica)
        self._connection = connection
        self._answers: asyncio.Queue[Body] = asyncio.Queue()
        self._planned = PlannedSession(parts, dialled, self._replica, self._answers)
        self._acknowledged = Signal()
        self._orders = parts.replication.orders
        self._epoch_needed = NO_EPOCH
        self.fruitful = False
        """Whether the replica has made something durable over this session: then the next failure is another one."""
        self._released: Position | None = None
        self._stored_at = -STORE_SECONDS

    async def run(self) -> None:
        """Work until something ends the session; always raises (see the module)."""
        try:
            await together(
                self._work(),
                self._receive(),
                self._watch_orders(),
                self._watch_tap(),
                self._settle_acknowledgements(),
            )
            raise Replan("the session's work is done")
        except Exception as error:
            self._replication.runs.interrupt(str(error) or type(error).__name__)
            raise
        finally:
            self._parts.settle_progress()

    # --- deciding --------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        decision = await self._decide()
        conclude(decision, self._replication.vm.name)
        await note_session(self._replication)
        if (host := self._dialled.welcome.host) != self._replication.record.peer_host:
            await self._replication.update(peer_host=host)
        if self._replication.record.recovered is not None:
            await judge_rebuilt(self._replication, self._parts.tap, self._replica, decision)
        await self._planned.settle()
        await until_brought(self._replication, self._replica, self._drop_stray_resync)
        match decision:
            case Resume(position):
                await self._stream(position)
            case InitialRequired():
                await self._until_ordered()
                await until_brought(self._replication, self._replica, self._drop_stray_resync)
                await self._resync(None)
            case ResyncRequired(cause, text, evidence):
                if self._replication.state is not ReplicationState.RESYNCHRONIZING:
                    await self._require(cause, text, evidence)
                    await self._until_ordered()
                await self._resync(None)
            case GoOnWithResync(known=known):
                await self._resync(await self._continued(known=known))
            case NextRound(reason=reason, held=held):
                await self._resync(await another_round(self._parts, held, reason))
            case RestartResync(reason):
                await self._replication.tell_restart(reason)
                await self._resync(None)

    async def _decide(self) -> Decision:
        if not self._parts.tap.serves(await self._parts.tap.refresh()):
            raise Replan("the tap takes over other disks")
        await abandon(self._replication, self._parts.tap)
        await learn_indexes(self._replication, self._replica)
        while True:
            decision = decide(view_of(self._replication, self._connection), self._replica)
            if not isinstance(decision, CommitConfirmed):
                return decision
            await self._adopt("the replica shows the proposed baseline", None)

    async def _require(self, cause: ResyncCause, text: str, evidence: dict[str, object]) -> None:
        """Put the cause on record; the state then says that a resync is required. Does not end this session."""
        known = {found.code for found in self._replication.record.causes}
        if (known and cause is ResyncCause.ADMINISTRATOR) or (cause is ResyncCause.REVERSED and cause.value in known):
            return
        if cause is ResyncCause.TRACKING_LOST:
            # The tap's own words and evidence, where nobody has put them down yet.
            await note_loss(self._parts)
            if self._replication.record.causes:
                return
        await self._replication.require_resync(cause, text, evidence)
        if cause is ResyncCause.HISTORY_LOST:
            # Whoever asked did not know what would be overwritten.
            await self._replication.update(resync_wanted=False, resync_at=None)

    async def _until_ordered(self) -> None:
        """Have the replica drop what was cancelled here, unless it may be another primary's; then wait."""
        if not is_history_lost(causes_of(self._replication)):
            await self._drop_stray_resync()
        await self._starting.until_started()

    # --- streaming -------------------------------------------------------------------------------------------------

    def _sender(self, epoch: bytes) -> LogSender:
        self._epoch_needed = epoch
        vm = self._replication.vm.vm
        return LogSender(
            vm,
            epoch,
            self._dialled.channel,
            self._parts.tap,
            self._connection,
            self.ledger,
            self._ports,
            began_at_cut=self._note_acknowledged,
            pacer=self._parts.surroundings.pacing.sender(lambda: self._replication.vm),
            churn=self._parts.churn,
            sizes=lambda: {disk.index: disk.size for disk in self._replication.vm.disks},
        )

    async def _stream(self, position: Position) -> None:
        await self._drop_stray_resync()
        with closing(self._sender(position.epoch)) as sender:
            if not await sender.seek(position):
                text = f"The replica stands at {position}, whose chain is not in this side's log."
                await self._require(ResyncCause.CHAIN, text, {"received": str(position)})
                raise Replan("the session is planned anew")
            try:
                await together(sender.run(), self._planned.deliver(sender))
            except LogDamagedError as error:
                await self._log_damaged(error)

    async def _log_damaged(self, error: LogDamagedError) -> NoReturn:
        """What the log was for can't go on: a resync whose tracked log it is starts anew."""
        if self._replication.record.resync is not None:
            await self._replication.tell_restart(error.text)
            await self._replication.update(resync=None)
        else:
            evidence = {"file": error.path, "offset": error.offset, "reason": error.reason}
            await self._require(ResyncCause.LOG_DAMAGED, error.text, evidence)
        raise Replan from error

    async def _drop_stray_resync(self) -> None:
        """A resync that only the replica still knows of would keep it from taking the log."""
        stray = self._replica.resync
        if stray is None:
            return
        self._dialled.channel.send(ResyncCancel(id=stray.id, text="it is not open at the primary"))
        expect(await self._answers.get(), ResyncCancelled)

    # --- resync ----------------------------------------------------------------------------------------------------

    async def _continued(self, *, known: bool) -> ResyncRecord:
        """The open resync, as it goes on; what kind it is from now on is durable, for the sessions after this one."""
        resync = self._replication.record.resync
        assert resync is not None
        # A replica that dropped its part may have lost its baseline as well.
        if not known and resync.kind is not self._kind():
            resync = msgspec.structs.replace(resync, kind=self._kind())
            await self._replication.change_resync(resync)
        return resync

    def _kind(self) -> ResyncKind:
        """In place where the replica has no point that has to be protected."""
        return ResyncKind.INITIAL if self._replica.epoch == NO_EPOCH else ResyncKind.RESYNC

    async def _resync(self, resync: ResyncRecord | None) -> None:
        """Drive ``resync``, or a fresh one, to its commit, and stream on from there."""
        progress = self._parts.show_progress(resync, self._kind())
        if rests := self._starting.rests():
            progress.enter(WAITING, rests)
            await self._starting.until_open()
        bounded = await self._starting.is_bounded() if resync is None else resync.kind is ResyncKind.BOUNDED
        place = self._parts.surroundings.queue.place(
            self._replication.vm.name,
            lambda: self._replication.vm.resync_priority,
            bounded=bounded,
            told=lambda text: progress.enter(WAITING, text),
        )
        async with place:
            if resync is None:
                resync = await self._mint()
                progress = self._parts.show_progress(resync, resync.kind)
                await foresee(self._parts)
            driver = ResyncDriver(
                self._parts.surroundings,
                self._replication,
                resync,
                self._parts.address,
                self._dialled,
                self._parts.tap,
                self._connection,
                progress,
                self._answers,
                settled=self._note_settled,
                precedence=self._parts.precedence,
            )
            await driver.begin_tracking()
            if resync.bounded_by_map and self._connection.status.doubt is None:
                # The map is gone that bounded it: whole disks, under another epoch.
                await self._replication.update(resync=None)
                raise Replan("the session is planned anew")
            self._epoch_needed = resync.epoch
            await together(driver.compare(), self._starting.until_closed())
        end = await driver.cut()
        with closing(self._sender(resync.epoch)) as sender:
            sender.hold_after(end.segment)
            received = self._replica.received
            start = received if received is not None and received.epoch == resync.epoch else None
            if not await sender.seek(start):
                raise TapUnavailableError("The log of the resynchronization's epoch is not where it has to be.")
            try:
                await together(sender.run(), self._commit(driver, sender, end))
            except LogDamagedError as error:
                await self._log_damaged(error)

    async def _commit(self, driver: ResyncDriver, sender: LogSender, end: Position) -> None:
        await driver.commit(sender, self.ledger, end)
        await self._adopt("the replica confirmed the commit", sender.last_cut)
        # The log is streamed on in this session.
        await self._planned.deliver(sender)

    async def _adopt(self, cause: str, cut: SentCut | None) -> None:
        """The commit is known to be durable: from now on its epoch is the baseline, and its log may be released."""
        progress = self._parts.progress
        if progress is not None:
            if progress.kind is ResyncKind.INITIAL:
                self._replication.statistics.initial(progress.status().sent_bytes)
            progress.enter(MERGING, "the replica merges what it received")
        end = await self._replication.adopt(cause)
        if cut is not None and cut.position == end:
            self._note_acknowledged(cut)

    async def _mint(self) -> ResyncRecord:
        received = self._replica.received
        same = received is not None and received.epoch == self._replication.record.epoch
        kind = self._kind()
        if kind is ResyncKind.RESYNC and await self._starting.is_bounded():
            kind = ResyncKind.BOUNDED
        resync = mint(
            identity=self._ports.random.bytes(16),
            epoch=self._ports.random.bytes(16),
            kind=kind,
            replication=self._replication.record,
            parent_segment=received.segment if received is not None and same else 0,
            now=self._ports.clock.wall(),
        )
        await self._replication.begin_resync(resync)
        return resync

    # --- messages --------------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            message = await self._dialled.channel.receive()
            match message:
                case Received():
                    self._take_received(message.position.position())
                case Applied():
                    self._take_applied(message.position.position())
                case ResyncReady() | Unsettled() | Committed() | ResyncCancelled():
                    self._answers.put_nowait(message)
                case FailoverPrepared() | FailoverVoided():
                    self._answers.put_nowait(message)
                case _:
                    self._parts.take_beside(message)
            self._planned.hear(message)

    def _take_received(self, position: Position) -> None:
        newly = self.ledger.acknowledge(position)
        now = self._ports.clock.wall()
        for cut in newly:
            latency = now - cut.time_ns / 1e9
            self._replication.statistics.acknowledged(now, latency=latency, size=cut.size)
        if newly:
            self.fruitful = True
            self._note_acknowledged(newly[-1])

    def _note_acknowledged(self, cut: SentCut) -> None:
        # What a resync sends is acknowledged for good only by its commit.
        if cut.position.epoch == self._replication.record.epoch:
            self._replication.acked = Acked(cut.position, cut.time_ns, cut.place)
            self._acknowledged.notify()

    def _note_settled(self) -> None:
        self.fruitful = True

    def _take_applied(self, position: Position) -> None:
        self._parts.applied = position
        self._replication.statistics.applied(self._ports.clock.wall())
        self._replication.runs.merged(position.epoch)
        progress = self._parts.progress
        if progress is not None and progress.phase == MERGING and position.epoch == progress.epoch:
            self._parts.progress = None

    async def _settle_acknowledgements(self) -> None:
        """Tell the tap what it may free, and now and then write down how far the replica has got."""
        while True:
            acked, epoch = self._replication.acked, self._replication.record.epoch
            if acked is None or acked.position.epoch != epoch or acked.position == self._released:
                await self._acknowledged.wait()
                continue
            if self._connection.tracks(epoch):
                await self._connection.client.release(epoch, acked.position.segment)
            self._released = acked.position
            now = self._ports.clock.monotonic()
            if now - self._stored_at >= STORE_SECONDS:
                self._stored_at = now
                await self._replication.store_progress()
            await asyncio.sleep(RELEASE_SECONDS)

    # --- what ends a session ---------------------------------------------------------------------------------------

    async def _watch_orders(self) -> None:
        while self._replication.orders == self._orders:
            await self._replication.changed.wait()
        raise Replan("the session is planned anew")

    async def _watch_tap(self) -> None:
        while self._connection.alive and (
            self._epoch_needed == NO_EPOCH or self._connection.tracks(self._epoch_needed)
        ):
            await self._parts.tap.changed.wait()
        if not self._connection.alive:
            raise TapUnavailableError("The tap's connection ended.")
        raise Replan("the session is planned anew")
