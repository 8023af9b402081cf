"""Failover to this host: the promotion is durable before anything else is done for it, and finishes after any crash.

The order (R14): the primary's session has ended and no other can begin; the cut is the newest that was acknowledged, or
later, or the older point that was asked for; epoch and role are durable, which fences the old primary. The newest cut
is applied first; an older one is read through the undo logs that lead to it, and nothing is applied any more. Then the
disks are handed, durably, to a tap, and only the tap opens them from there on. It writes overlays, so that the disks
and all points stay what they were until the failover is committed (R42).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from protocol.messages import MAX_NAME, ErrorCode, Fence, Open, WirePosition, read_lineage
from protocol.position import NO_EPOCH, Ancestor, Position
from replica_agent.baseline import Baseline
from replica_agent.disk_sets import OtherDisks, begin_epoch, smaller_disks
from replica_agent.finishing import finish
from replica_agent.marks import proof_of
from replica_agent.parts import VmParts
from replica_agent.planned import claim, told
from replica_agent.promoted_layers import check_layers, create_overlays, write_reverse_map
from replica_agent.promoted_tap import PromotedTap, is_written
from replica_agent.record import BeforeRecord, PositionRecord, PromotionRecord
from replica_agent.refusals import Refusal
from replica_agent.settled import settled
from shared.errors import InvalidStateError, NotFoundError
from shared.events import EventId
from shared.states import ReplicaEvent, ReplicationState


@dataclass(slots=True)
class Promotion:
    """Promotes one VM. ``end_sessions`` ends what primaries have open and returns when nothing of it runs any more.

    ``halt`` ends the merging of undo logs, and of an older point's promotion also applying.
    """

    parts: VmParts
    baseline: Baseline
    end_sessions: Callable[[], Awaitable[None]]
    end_exports: Callable[[], Awaitable[None]]
    halt: Callable[[bool], Awaitable[None]]
    tap: PromotedTap | None = None
    silent: bool = False
    """Nothing answers where the tap of a VM should be that this agent handed over."""
    moved_on: bool = True
    """Whether anything may have been written to a VM since its failover that this agent handed over."""
    deciding: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the promotion is being made durable: no session may begin, or it would go on behind the promotion."""

    async def decide(self, point: Position | None = None) -> bool:
        """Make the promotion durable, to ``point``, or to the newest cut; False for a VM that is promoted already.

        Raises InvalidStateError where there is no whole point to promote, NotFoundError where that one is none (any
        more), UndoDamagedError or OSError where it can't be read; nothing was changed then.
        """
        parts = self.parts
        async with self.deciding:
            if (promotion := parts.ledger.promotion) is not None:
                if promotion.handed_over:
                    raise InvalidStateError(
                        f"{parts.ledger.vm.name} was failed over to this host, and handed over to its primary agent.",
                        "There is no copy of it here that could be failed over to.",
                    )
                return False
            self._judge()
            await finish(parts.ports.workers.run(check_layers, parts, self._chosen(point)))
            await self.end_sessions()
            async with parts.order:
                await self._commit(point)
        parts.applier.changed.notify()
        parts.changed.notify()
        return True

    def _judge(self) -> None:
        record, name = self.parts.ledger.replication, self.parts.ledger.vm.name
        if self.parts.closing:
            raise InvalidStateError(f"The replica agent stops: {name} is not failed over.", "Try again when it runs.")
        if record.epoch == NO_EPOCH:
            raise InvalidStateError(
                f"{name} has no recovery point: its initial replication has not been completed.",
                "Only a VM whose initial replication is complete can be failed over.",
            )
        if record.suspect is not None:
            raise InvalidStateError(
                f"The disks of {name} are not trusted to be a whole point: {record.suspect.text}",
                record.suspect.remedy,
            )

    def _newest_cut(self) -> Position:
        """The newest cut that is wholly here: never older than what was acknowledged."""
        cut = self.parts.applier.reachable
        assert cut is not None
        return cut

    def _chosen(self, point: Position | None) -> Position:
        """The cut to promote. Raises NotFoundError where ``point`` is none that can be read, or reached."""
        newest, parts = self._newest_cut(), self.parts
        if point is None or point == newest:
            return newest
        known = parts.history.positions()
        if parts.applier.whole and parts.applier.applied is not None:
            known.append(parts.applier.applied)
        if point not in known:
            raise NotFoundError(
                f"{parts.ledger.vm.name} has no recovery point {point} that it could be failed over to at once.",
                f"See `vmreplica points {parts.ledger.vm.name}`.",
            )
        return point

    async def _commit(self, point: Position | None) -> None:
        parts = self.parts
        epoch = parts.ports.random.bytes(16)
        async with parts.ledger.transaction() as draft:
            # Judged in the transaction's turn: an apply that fails meanwhile drops what a cut chosen before rested on.
            self._judge()
            cut = self._chosen(point)
            newest = self._newest_cut()
            record, state = draft.replication, draft.replication.state
            planned = claim(draft, cut)
            others = OtherDisks([], [])
            if cut != newest:
                others = OtherDisks.of(draft.vm, record.ancestors, cut)
            disks = sorted(draft.vm.disks_at(record.ancestors, cut.epoch)) if others else None
            opened, parts.resync = parts.resync, None
            # Past its commit a resync can't be dropped: its merge is part of what is applied now (R40).
            if draft.resync is not None and draft.resync.end is None:
                draft.resync = None
                state = ReplicationState.WAITING_FOR_START_RESYNCHRONIZE if record.causes else state
            draft.promotion = PromotionRecord(
                epoch=epoch,
                parent=cut.epoch,
                parent_segment=cut.segment,
                entry=cut.entry,
                time=draft.now,
                host=parts.surroundings.host,
                cut=PositionRecord.of(cut),
                received=PositionRecord.of(newest),
                layered=True,
                before=BeforeRecord(epoch=record.epoch, lineage=record.lineage, state=state),
                planned=planned,
                smaller=smaller_disks(draft.vm, record.ancestors, cut),
                disks=disks,
            )
            step = Ancestor(epoch, cut.epoch, cut.segment)
            begin_epoch(draft, step)
            record.epoch = epoch
            draft.step(ReplicaEvent.PROMOTED, "failover")
            left = "" if cut == newest else f" Cut {newest} had been received; what came after {cut} is left out."
            left += f" It has other disks than that: {others}." if others else ""
            proof = proof_of(draft.points, PositionRecord.of(cut))
            left += " At this cut both sides' disks had the same SHA-256 digests." if proof is not None else ""
            draft.event(
                EventId.PROMOTED,
                f"{draft.vm.name} was failed over to {parts.surroundings.host} at cut {cut}: "
                f"epoch {epoch.hex()} begins.{left} {told(planned)}",
                epoch=epoch.hex(),
                parent=cut.epoch.hex(),
                parent_segment=cut.segment,
                planned=planned is not None,
                proven_time=proof.time if proof is not None else None,
            )
        if opened is not None:
            await finish(parts.ports.workers.run(opened.drop))

    async def complete(self) -> None:
        """Bring a durable promotion to its end: apply, hand over, serve, settle. Runs until cancelled."""
        parts = self.parts
        record = parts.ledger.promotion
        assert record is not None
        if not record.serving:
            if not record.older:
                await self._apply(record)
            await self.halt(record.older)
            await self.end_exports()
        self.tap = PromotedTap(parts, record.epoch)
        if record.serving:
            await finish(parts.ports.workers.run(self.tap.prepare))
        else:
            await finish(parts.ports.workers.run(self._hand_over, self.tap, record))
            async with parts.ledger.transaction() as draft:
                assert draft.promotion is not None
                draft.promotion.serving = True
                if not record.layered:
                    # From here on the tap overwrites what the older points rest on.
                    parts.history.unguard(draft)
                draft.event(EventId.TAP, f"The disks of {draft.vm.name} are handed to a tap on this host.")
            await parts.history.tidy()
        parts.changed.notify()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.tap.run())
                tasks.create_task(settled(parts, self.tap))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _apply(self, record: PromotionRecord) -> None:
        """Wait until the disks are at the promoted cut."""
        applier = self.parts.applier
        while True:
            applied = self.parts.ledger.replication.applied
            here = applied is not None and (applied.epoch, applied.segment) == (record.parent, record.parent_segment)
            if here and applier.whole:
                return
            await applier.changed.wait()

    def _hand_over(self, tap: PromotedTap, record: PromotionRecord) -> None:
        """Blocks."""
        if record.layered:
            create_overlays(self.parts, record)
            write_reverse_map(self.parts, record)
        tap.configure()
        if self.parts.applier.spool is not None:
            self.parts.applier.spool.close()
        self.parts.disks.close()

    async def look(self) -> None:
        """See whether the disks of a VM that was handed over are served; called now and then."""
        record = self.parts.ledger.promotion
        handed_over = record is not None and record.handed_over
        self.silent = record is not None and handed_over and not await PromotedTap(self.parts, record.epoch).answers()

    async def ask(self) -> None:
        """Before a primary is told of the failover: something may have been written here just now (I8)."""
        record = self.parts.ledger.promotion
        if record is not None and record.handed_over:
            # Its guest goes on under the primary agent; the tap tells, while it tracks since the failover.
            tap = PromotedTap(self.parts, record.epoch)
            await tap.refresh()
            self.moved_on = record.written or tap.status is None or is_written(tap.status, record.epoch)
        elif record is not None and self.tap is not None:
            await self.tap.refresh()

    # --- committing ------------------------------------------------------------------------------------------------

    async def commit(self) -> None:
        """Keep it for good: what lies over the disks settles in them, and the other points are deleted.

        Idempotent. Raises InvalidStateError where nothing can be committed.
        """
        parts, name = self.parts, self.parts.ledger.vm.name
        async with parts.order, parts.ledger.transaction() as draft:
            record = draft.promotion
            if record is None or record.undoing:
                raise InvalidStateError(f"{name} is not failed over to this host.", f"See `vmreplica status {name}`.")
            if not record.serving:
                raise InvalidStateError(
                    f"{name} is not served yet, so there is nothing to commit.", "Try again when it is."
                )
            if record.committed_time is not None:
                return
            record.committed_time = draft.now
            draft.step(ReplicaEvent.FAILOVER_COMMITTED, "commit")
            draft.event(
                EventId.FAILOVER_COMMITTED,
                f"The failover of {name} is committed: it can't be undone any more, and the other points are deleted.",
            )
            if not record.older:
                parts.history.unguard(draft)
        await parts.history.tidy()
        if self.tap is not None:
            self.tap.poke.notify()
        parts.changed.notify()

    @property
    def written(self) -> bool:
        """Whether anything was written here since the failover; what is not known counts as that."""
        record = self.parts.ledger.promotion
        if record is not None and record.handed_over:
            return record.written or self.moved_on
        status = self.tap.status if self.tap is not None else None
        if status is None or record is None:
            return record is None or record.serving
        return is_written(status, record.epoch)


def require_settled(record: PromotionRecord, name: str) -> None:
    """Raises InvalidStateError while what a guest wrote since the failover is not in the disks."""
    if record.layered and record.serving:
        raise InvalidStateError(
            f"What was written to {name} since its failover is not in its disks yet.",
            f"Undo the failover, or commit it and let it settle (`vmreplica failover {name} --commit`), first.",
        )


def refused_after_failover(record: PromotionRecord, name: str, body: Open, *, written: bool) -> Refusal:
    """What is told to a primary that opens a VM which was failed over to this host."""
    lineage = read_lineage(body.lineage)
    goes_on = any(record.epoch in (step.epoch, step.parent) for step in lineage)
    if record.epoch == body.epoch or goes_on:
        # Its history goes on from the failover: the VM ran here, and was failed over to there since. After a compare of
        # whole disks the copy there knows this epoch only as what its first baseline came from.
        return Refusal(
            ErrorCode.BUSY,
            f"{name} ran on {record.host} before, which is not its replica yet.",
            f"Run `vmreplica reverse {name}` on {record.host}.",
        )
    return fenced(record, name, written=written)


def fenced(record: PromotionRecord, name: str, *, written: bool) -> Refusal:
    """What a primary is told that comes back after the failover (I8)."""
    received = record.received.position if record.received is not None else None
    fence = Fence(
        epoch=record.epoch,
        parent=record.parent,
        parent_segment=record.parent_segment,
        received=WirePosition.of(received) if received is not None else None,
        written=written,
        wall_ns=int(record.time * 1e9),
        host=record.host[:MAX_NAME],
    )
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.time))
    cut = f"cut {record.parent_segment} of epoch {record.parent.hex()}"
    if record.parent_segment == 0:
        # Segments count from 1: the state that knew it was lost.
        when, cut = f"{when} at the latest", "a cut that is not known any more"
    return Refusal(
        ErrorCode.FENCED,
        f"{name} was failed over to {record.host} on {when}: epoch {record.epoch.hex()} began there after {cut}.",
        f"Do not run the VM on its old host. To make that the replica, run `vmreplica reverse {name}` on both hosts.",
        fence,
    )
