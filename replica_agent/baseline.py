"""The steps of a resync or initial replication at the replica: begin, another round, cancel, commit.

Each is one durable transaction with its files made before and deleted after it, so that a crash between any two steps
leaves either the state before or the state after, and files that the next start removes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from protocol.errors import ProtocolError
from protocol.hrl import Geometry
from protocol.messages import ResyncBegin, ResyncKind, ResyncReady, Unsettle
from protocol.position import NO_EPOCH, Ancestor, Lineage, Position, knows
from replica_agent.coming_back import make_room
from replica_agent.disk_sets import begin_epoch, changed_set, exchange, exchange_at_once, joining
from replica_agent.finishing import finish
from replica_agent.groups import Merge
from replica_agent.growing import grow
from replica_agent.ledger import Draft
from replica_agent.parts import VmParts
from replica_agent.record import AncestorRecord, DiskRecord, PositionRecord, ResyncRecord
from replica_agent.replay import Replay, Source
from replica_agent.resync import OpenResync
from replica_agent.resync_judgement import judge_begin
from replica_agent.reversal import read_doubt, through_of
from replica_agent.space import require_room, space_error
from replica_agent.spool import Spool
from replica_agent.strangers import remove_strangers
from shared.events import EventId
from shared.states import ReplicaEvent

BEGIN_BYTES = 1 << 20
"""A resync does not begin with less room than this beside the reserve."""


@dataclass(slots=True)
class Baseline:
    """Makes baselines of one VM."""

    parts: VmParts

    # --- begin -----------------------------------------------------------------------------------------------------

    async def begin(
        self, body: ResyncBegin, disks: Sequence[Geometry] = (), disk_set: int = 0, lineage: Lineage = ()
    ) -> list[ResyncReady]:
        """Begin, or go on with, a resync; everything received of the present epoch is applied first (I5).

        ``disks`` are the primary's, its set of the number ``disk_set``: ours grow to their sizes, and a newer set takes
        the place of ours with the commit. ``lineage`` is the primary's.
        Raises ProtocolError, NoSpaceError, OSError; nothing was changed then.
        """
        judge_begin(body)
        await self.parts.applier.caught_up()
        return await finish(self._begin(body, disks, disk_set, lineage))

    async def _begin(
        self, body: ResyncBegin, disks: Sequence[Geometry], disk_set: int, lineage: Lineage
    ) -> list[ResyncReady]:
        parts = self.parts
        async with parts.order:
            through = through_of(parts.ledger.replication, body.parent, lineage)
            self._judge(body, through)
            resync = parts.resync
            if resync is not None and resync.is_followed_by(body):
                resync = await self._next_round(resync, body)
            elif resync is None or not resync.is_continued_by(body):
                await grow(parts, disks)
                await make_room(parts, disks, disk_set)
                if parts.ledger.replication.epoch == NO_EPOCH:
                    await exchange_at_once(parts, disks, disk_set)
                changed = changed_set(disks, disk_set, parts.ledger.vm)
                resync = await self._start(body, through, changed, disk_set)
            await finish(parts.ports.workers.run(self._check_room))
            ready = resync.enter(body)
        parts.changed.notify()
        return ready

    def _judge(self, body: ResyncBegin, through: AncestorRecord | None) -> None:
        record = self.parts.ledger.replication
        if not self.parts.applier.idle:
            raise ProtocolError("the log that was received before is still being applied", code="busy")
        if self.parts.ledger.promotion is not None:
            raise ProtocolError("the VM was failed over here", code="fenced")
        if self.parts.importing is not None:
            raise ProtocolError("a first copy is being imported into the disks", code="busy")
        if body.epoch in (NO_EPOCH, record.epoch) or knows(record.ancestors, body.epoch):
            raise ProtocolError(f"epoch {body.epoch.hex()} was begun before", code="state")
        if body.kind is ResyncKind.INITIAL and record.epoch != NO_EPOCH:
            raise ProtocolError(
                "an initial replication would overwrite the recovery point that this replica holds", code="state"
            )

        joined = body.parent == record.epoch or through is not None
        if body.kind is ResyncKind.BOUNDED and (not joined or record.epoch == NO_EPOCH):
            raise ProtocolError("a bounded resynchronization of another baseline than this replica's", code="state")

    def _check_room(self) -> None:
        require_room(self.parts.ports.files, self.parts.layout.folder, BEGIN_BYTES, self.parts.surroundings.reserve)

    async def _start(
        self, body: ResyncBegin, through: AncestorRecord | None, disks: list[DiskRecord] | None, disk_set: int
    ) -> OpenResync:
        """A fresh resync in place of whatever was open. Its file is durable before the store names it."""
        parts = self.parts
        record = parts.ledger.replication
        if not record.reread and not await finish(parts.ports.workers.run(self._sync_disks)):
            async with parts.ledger.transaction() as draft:
                draft.replication.reread = True
                text = "The disks can't be made durable as they are: the resynchronization sends all of them anew."
                draft.event(EventId.DAMAGED, text, cause="sync_failed")
        fresh = ResyncRecord(
            id=body.id,
            kind=body.kind,
            epoch=body.epoch,
            parent=body.parent,
            parent_segment=body.parent_segment,
            round=body.round,
            started_time=parts.ports.clock.wall(),
            in_place=record.epoch == NO_EPOCH,
            disks=disks,
            disk_set=disk_set if disks is not None else 0,
            through=through,
        )
        opened = parts.open_resync(fresh, await finish(parts.ports.workers.run(read_doubt, parts, fresh)))
        await finish(parts.ports.workers.run(self._prepare, opened))
        async with parts.ledger.transaction() as draft:
            draft.resync = fresh
            initial = record.epoch == NO_EPOCH
            draft.step(ReplicaEvent.INITIAL_STARTED if initial else ReplicaEvent.RESYNC_STARTED)
            draft.event(
                EventId.RESYNC_STARTED,
                f"{'Initial replication' if initial else 'Resynchronization'} {body.id.hex()} began.",
                epoch=body.epoch.hex(),
            )
        former, parts.resync = parts.resync, opened
        await finish(parts.ports.workers.run(self._clear, former, opened))
        return opened

    def _sync_disks(self) -> bool:
        """Whether all that will be read of the disks is durable. Blocks.

        An apply that failed leaves writes in the page cache: they would be told equal, and be gone with the next power
        loss although their range is settled.
        """
        self.parts.disks.open()
        try:
            self.parts.disks.sync_all()
        except OSError:
            return False
        return True

    def _prepare(self, opened: OpenResync) -> None:
        """Blocks."""
        opened.disks.join(joining(opened.record, self.parts.ledger.vm))
        # Left over from a begin that a crash interrupted.
        opened.tracked.drop()
        try:
            opened.differences.create()
        except OSError as error:
            opened.differences.close()
            raise space_error(error, self.parts.layout.folder, BEGIN_BYTES) from error

    def _clear(self, former: OpenResync | None, opened: OpenResync) -> None:
        """What the new resync makes useless: the one before, and the partial segment of the present epoch. Blocks."""
        if former is not None and former.record.id == opened.record.id:
            # The fresh differencing file has taken the place of the former one.
            former.differences.close()
            former.tracked.drop()
        elif former is not None:
            former.drop_received()
        spool = self.parts.applier.spool
        if spool is not None:
            spool.drop()
            self.parts.applier.spool = self._idle_spool()
        else:
            # What a lost state had received: nothing of it can be applied any more.
            remove_strangers(self.parts, {opened.tracked.epoch})

    def _idle_spool(self) -> Spool | None:
        applied = self.parts.ledger.replication.applied
        return self.parts.spool_from(applied.position) if applied is not None else None

    # --- rounds ----------------------------------------------------------------------------------------------------

    async def _next_round(self, former: OpenResync, body: ResyncBegin) -> OpenResync:
        """Another round of the open resync, in one durable step: what it received stays, the tracked log goes (R32)."""
        parts = self.parts
        record = msgspec.structs.replace(former.record, round=body.round, epoch=body.epoch, unsettle=True)
        opened = replace(
            former, record=record, tracked=parts.spool_from(parts.start_of(body.epoch), former.geometry), key=None
        )
        # Left over from a round that a crash interrupted before the store named it.
        await finish(parts.ports.workers.run(opened.tracked.drop))
        async with parts.ledger.transaction() as draft:
            draft.resync = record
            what = "initial replication" if parts.ledger.replication.epoch == NO_EPOCH else "resynchronization"
            draft.event(
                EventId.RESYNC_ROUND,
                f"Round {body.round} of the {what} {body.id.hex()} began: its tracked log was lost at the primary.",
                epoch=body.epoch.hex(),
                round=body.round,
            )
        parts.resync = opened
        await finish(parts.ports.workers.run(former.tracked.drop))
        return opened

    async def unsettle(self, body: Unsettle) -> list[ResyncReady] | None:
        """Take back what was settled of these ranges; with the last of them, what is settled still, durably.

        Raises ProtocolError, NoSpaceError, OSError, or SyncFailedError, of which the caller has to draw the
        conclusions.
        """
        async with self.parts.order:
            opened = self.parts.resync
            if opened is None:
                raise ProtocolError("UNSETTLE outside a resynchronization", code="state")
            ranges = opened.accept_unsettle(body)
            await self.parts.ports.workers.run(lambda: opened.differences.unsettle(ranges, last=body.last))
            if not body.last:
                return None
            record = msgspec.structs.replace(opened.record, unsettle=False)
            async with self.parts.ledger.transaction() as draft:
                draft.resync = record
            opened.record = record
            return opened.ready()

    # --- cancel ----------------------------------------------------------------------------------------------------

    async def cancel(self, identity: bytes, cause: str) -> None:
        """Drop the open resync if it is that one. Raises ProtocolError after its commit."""
        parts = self.parts
        async with parts.order:
            record = parts.ledger.resync
            if record is None or record.id != identity:
                return
            if record.end is not None:
                raise ProtocolError("the resynchronization is committed and can't be cancelled", code="state")
            await self.drop(cause, event=self._cancelled())

    def _cancelled(self) -> ReplicaEvent:
        """What a cancel is on this side, whose own reasons for a resync stay."""
        record = self.parts.ledger.replication
        sound = not (record.causes or record.reread or record.suspect is not None)
        return ReplicaEvent.RESYNC_CANCELLED if sound else ReplicaEvent.RESYNC_DROPPED

    async def drop(
        self, cause: str, *, reread: bool = False, event: ReplicaEvent = ReplicaEvent.RESYNC_DROPPED
    ) -> None:
        """Drop the open resync; ``order`` is held. Disks and points are as they were (I7).

        ``event``: what that is, of a resync. ``reread``: what was written in place can't be trusted to be what is read
        back.
        """
        parts = self.parts
        opened = parts.resync
        async with parts.ledger.transaction() as draft:
            self.drop_in(draft, cause, event)
            draft.replication.reread = draft.replication.reread or reread
        parts.resync = None
        if opened is not None:
            await finish(parts.ports.workers.run(opened.drop))
        parts.changed.notify()

    def drop_in(self, draft: Draft, cause: str, event: ReplicaEvent = ReplicaEvent.RESYNC_DROPPED) -> None:
        """The part of a transaction that drops the open resync."""
        if draft.resync is None or draft.resync.end is not None:
            return
        initial = draft.replication.epoch == NO_EPOCH
        draft.resync = None
        draft.step(ReplicaEvent.INITIAL_DROPPED if initial else event, cause)

    # --- commit ----------------------------------------------------------------------------------------------------

    async def commit(self, identity: bytes, number: int, end: Position) -> None:
        """Make the resync the baseline, durably; the merge follows by itself.

        Raises ProtocolError where anything is missing, NoSpaceError where the merge would not have room (R39).
        """
        parts = self.parts
        async with parts.order:
            opened = parts.resync
            if opened is None or (opened.record.id, opened.record.round) != (identity, number):
                raise ProtocolError("COMMIT of a resynchronization that is not open", code="stale")
            opened.judge_commit(end)
            merge = Merge(opened.sources(), end, opened.differences.path)
            tracked = [Source.of(s) for s in opened.tracked.segments if s.number <= end.segment]
            await self._reserve(opened, [*merge.sources, *tracked])
            await self._commit(opened, merge)
        parts.applier.changed.notify()
        parts.changed.notify()

    async def _reserve(self, opened: OpenResync, sources: list[Source]) -> None:
        """Take the room that the merge needs; the disks' content stays as it is (R39)."""
        parts = self.parts
        async with parts.ledger.transaction() as draft:
            # Taking room changes the files' times, which then prove nothing any more.
            draft.replication.identities = None
        await finish(parts.ports.workers.run(self._take_room, opened, sources))

    def _take_room(self, opened: OpenResync, sources: list[Source]) -> None:
        """Blocks."""
        parts = self.parts
        replay = Replay(parts.ports.files, parts.vm, parts.disks, opened.sizes)
        opened.differences.trim()
        parts.pool.empty()
        needed = replay.room(sources)
        require_room(parts.ports.files, parts.layout.folder, needed, parts.surroundings.reserve // 2)
        if not needed:
            # What replaces data takes no room; asking for it range by range would take longer than the commit.
            return
        try:
            replay.reserve(sources)
        except OSError as error:
            raise space_error(error, parts.layout.folder, needed) from error

    async def _commit(self, opened: OpenResync, merge: Merge) -> None:
        parts, record = self.parts, opened.record
        async with parts.ledger.transaction() as draft:
            replication = draft.replication
            initial = replication.epoch == NO_EPOCH
            step = Ancestor(record.epoch, record.parent, record.parent_segment)
            if record.through is not None:
                through = Ancestor(record.through.epoch, record.through.parent, record.through.parent_segment)
                begin_epoch(draft, through)
            begin_epoch(draft, step)
            replication.epoch = record.epoch
            replication.applying = PositionRecord.of(merge.end)
            trusted = replication.suspect is None and not replication.reread
            if not trusted:
                # What the older points rest on may be anything (R38).
                parts.history.unguard(draft)
            replication.suspect = None
            replication.reread = False
            replication.causes = []
            replication.reversal = None
            replication.seeded = False
            source = opened.differences.source
            assert draft.resync is not None
            draft.resync.end = PositionRecord.of(merge.end)
            draft.resync.differences_end = PositionRecord.of(source.end)
            draft.resync.differences_length = source.length
            draft.resync.trusted = trusted
            exchange(draft, record)
            draft.step(ReplicaEvent.INITIAL_COMPLETED if initial else ReplicaEvent.RESYNC_COMPLETED)
            draft.event(
                EventId.BASELINE_COMMITTED,
                f"{'Initial replication' if initial else 'Resynchronization'} {record.id.hex()} committed: "
                f"the baseline is {merge.end}.",
                epoch=record.epoch.hex(),
                segment=merge.end.segment,
                settled_bytes=opened.differences.settled_bytes,
                received_bytes=opened.received_bytes,
            )
        parts.resync = None
        parts.disks.settle(parts.ledger.vm.geometry)
        parts.applier.merge = merge
        parts.applier.spool = opened.tracked
        await finish(parts.ports.workers.run(opened.differences.close))
        # A crash leaves it; no record names it any more.
        await finish(parts.ports.workers.run(parts.ports.files.remove, parts.layout.doubt))
