"""Failover to this host: the promotion is durable before anything else is done for it, and finishes after any crash.

The order (R14): the primary's session has ended and no other can begin; the cut is the newest that was acknowledged, or
later; epoch and role are durable, which fences the old primary; then everything up to the cut is applied; then the
disks are handed, durably, to a tap, and only the tap opens them from there on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from protocol.messages import ErrorCode
from protocol.position import NO_EPOCH, Ancestor, Position, extend
from replica_agent.baseline import Baseline
from replica_agent.finishing import finish
from replica_agent.parts import VmParts
from replica_agent.planned import claim, told
from replica_agent.promoted_tap import PromotedTap
from replica_agent.record import PromotionRecord, lineage_records
from replica_agent.refusals import Refusal
from shared.errors import InvalidStateError
from shared.events import EventId
from shared.states import ReplicaEvent


@dataclass(slots=True)
class Promotion:
    """Promotes one VM. ``end_sessions`` ends what primaries have open and returns when nothing of it runs any more."""

    parts: VmParts
    baseline: Baseline
    end_sessions: Callable[[], Awaitable[None]]
    end_exports: Callable[[], Awaitable[None]]
    tap: PromotedTap | None = None
    deciding: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the promotion is being made durable: no session may begin, or it would go on behind the promotion."""

    async def decide(self) -> bool:
        """Make the promotion durable; False for a VM that is promoted already.

        Raises InvalidStateError where there is no whole point to promote; nothing was changed then.
        """
        parts = self.parts
        async with self.deciding:
            if parts.ledger.promotion is not None:
                return False
            self._judge()
            await self.end_sessions()
            async with parts.order:
                await self._commit()
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

    async def _commit(self) -> None:
        parts = self.parts
        epoch = parts.ports.random.bytes(16)
        async with parts.ledger.transaction() as draft:
            # Judged in the transaction's turn: an apply that fails meanwhile drops what a cut chosen before rested on.
            self._judge()
            cut = self._newest_cut()
            planned = claim(draft, cut)
            opened, parts.resync = parts.resync, None
            # Past its commit a resync can't be dropped: its merge is part of what is applied now (R40).
            if draft.resync is not None and draft.resync.end is None:
                draft.resync = None
            draft.promotion = PromotionRecord(
                epoch=epoch,
                parent=cut.epoch,
                parent_segment=cut.segment,
                entry=cut.entry,
                time=draft.now,
                host=parts.surroundings.host,
                planned=planned,
            )
            record = draft.replication
            step = Ancestor(epoch, cut.epoch, cut.segment)
            record.lineage = lineage_records(extend(record.ancestors, step))
            record.epoch = epoch
            draft.step(ReplicaEvent.PROMOTED, "failover")
            draft.event(
                EventId.PROMOTED,
                f"{draft.vm.name} was failed over to {parts.surroundings.host} at cut {cut}: "
                f"epoch {epoch.hex()} begins. {told(planned)}",
                epoch=epoch.hex(),
                parent=cut.epoch.hex(),
                parent_segment=cut.segment,
                planned=planned is not None,
            )
        if opened is not None:
            await finish(parts.ports.workers.run(opened.drop))

    async def complete(self) -> None:
        """Bring a durable promotion to its end: apply, hand over, serve. Runs until cancelled."""
        parts = self.parts
        record = parts.ledger.promotion
        assert record is not None
        if not record.serving:
            await self._apply(record)
            await self.end_exports()
        self.tap = PromotedTap(parts, parts.ledger.vm.name, parts.uuid, record.epoch)
        if record.serving:
            await finish(parts.ports.workers.run(self.tap.prepare))
        else:
            await finish(parts.ports.workers.run(self._hand_over, self.tap))
            async with parts.ledger.transaction() as draft:
                assert draft.promotion is not None
                draft.promotion.serving = True
                # From here on the tap overwrites what the older points rest on.
                parts.history.unguard(draft)
                draft.event(EventId.TAP, f"The disks of {draft.vm.name} are handed to a tap on this host.")
            await parts.history.tidy()
        parts.changed.notify()
        await self.tap.run()

    async def _apply(self, record: PromotionRecord) -> None:
        """Wait until the disks are at the promoted cut."""
        applier = self.parts.applier
        while True:
            applied = self.parts.ledger.replication.applied
            here = applied is not None and (applied.epoch, applied.segment) == (record.parent, record.parent_segment)
            if here and applier.whole:
                return
            await applier.changed.wait()

    def _hand_over(self, tap: PromotedTap) -> None:
        """Blocks."""
        if self.parts.applier.spool is not None:
            self.parts.applier.spool.close()
        self.parts.disks.close()
        tap.configure()


def fenced(record: PromotionRecord, name: str) -> Refusal:
    """What a primary is told that comes back after the failover (I8)."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.time))
    cut = f"cut {record.parent_segment} of epoch {record.parent.hex()}"
    if record.parent_segment == 0:
        # Segments count from 1: the state that knew it was lost.
        when, cut = f"{when} at the latest", "a cut that is not known any more"
    return Refusal(
        ErrorCode.FENCED,
        f"{name} was failed over to {record.host} on {when}: epoch {record.epoch.hex()} began there after {cut}.",
        "Do not run the VM on its old host. To replicate from there again, remove the VM at the replica first.",
    )
