"""Applies what was received to the disks, cut by cut, in the background; decoupled from receiving.

An apply is: save what is going to be overwritten in an undo log, durably (R25); say durably to which cut it goes;
write; sync the disks; say durably that they are there; only then is the point exposed and the spool's files given back.
A crash anywhere is answered by doing it again from the spool, with the undo log that is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.position import Position
from replica_agent.ceiling import Ceiling
from replica_agent.disks import BaseDisks
from replica_agent.finishing import finish, in_steps
from replica_agent.groups import ApplyProgress, Group, Merge
from replica_agent.history import History
from replica_agent.layout import Layout
from replica_agent.ledger import Ledger
from replica_agent.overwritten import Overwritten
from replica_agent.record import PositionRecord, UndoRecord
from replica_agent.replay import Replay, Source, UnreadableError, UnsavedError
from replica_agent.space import no_space, space_error
from replica_agent.spool import SealedSegment, Spool
from shared.errors import NoSpaceError, StorageError
from shared.events import EventId
from shared.ports import Ports
from shared.stats import ReplicationStatistics
from shared.status import Cause
from shared.tasks import Signal
from shared.undo_log import Link, UndoDamagedError, UndoUnreadableError

GROUP_BYTES = 64 << 20
GROUP_SEGMENTS = 64
"""So many bytes and segments of log are applied at most before the disks are synced and a point is exposed."""
STEP_BYTES = 16 << 20
"""Bytes of log that one piece of work in a worker applies."""
RETRY_SECONDS = 5.0


@dataclass(slots=True)
class Applier:
    """The apply of one VM. ``spool`` and ``merge`` say what there is to do; ``changed`` must be notified of more.

    ``turn`` is held while the disks change: whoever holds it sees them stand still. ``exposed`` is called at each new
    point, synchronously, when the disks are exactly there. ``finished`` is called in a worker with the spool files that
    are done with, after a merge also with the differencing file's.
    """

    ports: Ports
    ledger: Ledger
    disks: BaseDisks
    layout: Layout
    history: History
    reserve: int = 0
    spool: Spool | None = None
    merge: Merge | None = None
    changed: Signal = field(default_factory=Signal)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    exposed: list[Callable[[Position], None]] = field(default_factory=list)
    progress: ApplyProgress = field(default_factory=ApplyProgress)
    ceiling: Ceiling = field(default_factory=Ceiling)
    problem: Cause | None = None
    """Why nothing is applied at the moment although there is something to apply; it is tried again."""
    statistics: ReplicationStatistics | None = None

    # --- what there is to do -----------------------------------------------------------------------------------------

    @property
    def whole(self) -> bool:
        """Whether the disks are exactly the newest point, and ours."""
        record = self.ledger.replication
        between = record.applied is None or record.applying is not None or record.suspect is not None
        return self.disks.opened and not between

    @property
    def idle(self) -> bool:
        """Whether there is nothing to apply."""
        return self._next_group() is None

    @property
    def pending_bytes(self) -> int:
        return sum(segment.length for segment in self.spool.segments) if self.spool is not None else 0

    def _next_group(self) -> Group | None:
        spool, waiting = self.spool, self._waiting()
        if spool is None or self.ledger.replication.suspect is not None or not waiting:
            return None
        least = self.merge.end.segment if self.merge is not None else 0
        begun = self.ledger.replication.applying
        most = GROUP_SEGMENTS
        if begun is not None and begun.epoch == spool.epoch:
            # The disks may already hold something of it, and its undo log has what exactly that overwrites.
            least = max(least, begun.segment)
            most = least - waiting[0].number + 1
        chosen: list[SealedSegment] = []
        size = 0
        for segment in waiting:
            full = size + segment.length > GROUP_BYTES or len(chosen) >= min(most, GROUP_SEGMENTS)
            if chosen and (full or self.ceiling.stops(chosen[-1].end)) and segment.number > least:
                break
            chosen.append(segment)
            size += segment.length
        if chosen[-1].number < least:
            return None
        return Group(tuple(chosen), self.merge)

    def _waiting(self) -> list[SealedSegment]:
        """What of the spool is to be applied: not what a commit has just made a point, and nothing behind a gap.

        A commit is durable before its segments leave the spool, and whoever asks in between sees both. Behind a gap
        only a resync brings the disks forward. What lies behind a promoted cut was never acknowledged, though a start
        may find it whole: the failover has cut it off.
        """
        segments, promotion = self.spool.segments if self.spool is not None else [], self.ledger.promotion
        if promotion is not None and promotion.older:
            # The disks stay what they are: an older point is read through the undo logs that lead to it.
            return []
        if promotion is not None:
            epoch, last = promotion.parent, promotion.parent_segment
            segments = [segment for segment in segments if segment.end.epoch == epoch and segment.number <= last]
        first = next((number for number, segment in enumerate(segments) if self._follows(segment)), len(segments))
        return segments[first:]

    def _follows(self, segment: SealedSegment) -> bool:
        """Whether the segment begins where the disks are, or, with a merge, where its epoch's log begins."""
        if self.merge is not None:
            return segment.start.segment == 0
        return segment.start == self.applied

    @property
    def applied(self) -> Position | None:
        """The newest point."""
        applied = self.ledger.replication.applied
        return applied.position if applied is not None else None

    @property
    def reachable(self) -> Position | None:
        """The newest cut to which the disks can be brought with what was received."""
        waiting = self._waiting()
        return waiting[-1].end if waiting else self.applied

    async def caught_up(self) -> None:
        """Wait until everything received is applied. Raises NoSpaceError where that can't happen now."""
        while not self.idle:
            if self.problem is not None:
                raise NoSpaceError(self.problem.text, self.problem.remedy)
            await self.changed.wait()

    # --- applying ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Apply for ever; ends by being cancelled, or with an error that no retry and no resync heals."""
        while True:
            if (group := self._next_group()) is None or self.ceiling.stops(self.applied):
                await self.changed.wait()
                continue
            redone = self.ledger.replication.applying is not None
            try:
                async with self.turn:
                    await self._apply(group)
            except NoSpaceError as error:
                await self._wait_for_space(error)
            except (UnsavedError, UndoDamagedError, UndoUnreadableError) as error:
                await self._go_on_unsaved(error)
            except _HaltedError:
                continue
            except (OSError, StorageError) as error:
                await self._fail(error, redone=redone)
            else:
                self.problem = None
            self.changed.notify()

    async def _apply(self, group: Group) -> None:
        replay = Replay(self.ports.files, self.ledger.vm.vm, self.disks)
        target = PositionRecord.of(group.target)
        if not self._begun(group):
            await self._begin(replay, group, target)
        self.progress = ApplyProgress(total=group.bytes, merging=group.merge is not None)
        saved = await self.history.saved()
        for source in group.sources:
            await self._replay(replay, source, saved)
        await finish(self.ports.workers.run(self._sync))
        identities = await finish(self.ports.workers.run(self.disks.identities))
        async with self.ledger.transaction() as draft:
            draft.replication.applied = target
            draft.replication.applied_time = group.segments[-1].time_ns / 1e9
            draft.replication.applying = None
            draft.replication.identities = identities
            draft.replication.boot_id = self.ports.clock.boot_id()
            self.history.advance(draft)
            if group.merge is not None:
                draft.resync = None
            if self.statistics is not None:
                self.statistics.applied(draft.now)
                draft.statistics = self.statistics.plain()
        spool = self.spool
        assert spool is not None
        self.history.unguarded = False
        self._expose(group)
        await finish(self.ports.workers.run(self._give_back, spool, group))
        await self.history.tidy()

    def _begun(self, group: Group) -> bool:
        """Whether the disks may already hold something of the group."""
        if group.merge is not None:
            resync = self.ledger.resync
            return resync is not None and resync.merging
        return self.ledger.replication.applying is not None

    async def _begin(self, replay: Replay, group: Group, target: PositionRecord) -> None:
        """Everything that comes before the first write. Raises NoSpaceError, and what saving raises."""
        await self._make_room(replay, group)
        undo = await self._save(group)
        if undo is not None:
            self.history.unguarded = False
        else:
            # From here on nobody can begin to read what no undo log keeps.
            self.history.abandon()
        try:
            async with self.ledger.transaction() as draft:
                if draft.promotion is not None and draft.promotion.older:
                    raise _HaltedError("an older point was promoted")
                draft.replication.applying = target
                draft.replication.identities = None
                draft.replication.undo = undo
                if undo is None:
                    self.history.unguard(draft)
                if draft.resync is not None and group.merge is not None:
                    draft.resync.merging = True
        except BaseException:
            # Nothing was changed yet.
            self.history.unguarded = False
            raise
        if undo is not None:
            await self.history.publish(undo)
        else:
            await self.history.tidy()

    async def _make_room(self, replay: Replay, group: Group) -> None:
        while True:
            try:
                await finish(self.ports.workers.run(self._check_room, replay, group))
            except NoSpaceError as error:
                if not await self.history.give_way(error.text):
                    raise
            else:
                return

    async def _save(self, group: Group) -> UndoRecord | None:
        record, resync = self.ledger.replication, self.ledger.resync
        untrusted = group.merge is not None and (resync is None or not resync.trusted)
        if record.applied is None or untrusted:
            return None
        newer_time = group.segments[-1].time_ns / 1e9
        link = Link(record.applied.position, group.target, record.applied_time or 0.0, newer_time)
        return await self.history.save(group.sources, link)

    def _check_room(self, replay: Replay, group: Group) -> None:
        """Before the first write: is there room for all of it? Blocks. Raises NoSpaceError.

        What the segments weigh is an upper bound that costs nothing to know. Where even that does not fit, the holes
        that would be filled are counted, and the reserve may be used: that is what it is kept for.
        """
        free = self.ports.files.free_space(self.layout.folder)
        if group.merge is not None or free >= group.bytes + self.reserve:
            return
        missing = replay.room(group.sources) + self.reserve // 2 - free
        if missing > 0:
            raise no_space(self.layout.folder, missing)

    async def _replay(self, replay: Replay, source: Source, saved: Overwritten | None) -> None:
        def done(count: int) -> None:
            self.progress.done += count

        try:
            await in_steps(self.ports, replay.apply(source, saved), STEP_BYTES, done)
        except OSError as error:
            raise space_error(error, self.layout.folder, STEP_BYTES) from error

    def _sync(self) -> None:
        try:
            self.disks.sync()
        except OSError as error:
            raise _SyncOfDisksError(str(error)) from error

    def _expose(self, group: Group) -> None:
        # In place, since a worker may just be appending the next one.
        assert self.spool is not None
        del self.spool.segments[: len(group.segments)]
        if group.merge is not None:
            self.merge = None
        for callback in list(self.exposed):
            callback(group.target)

    def _give_back(self, spool: Spool, group: Group) -> None:
        """Blocks. The point is durable, so nothing of this is needed any more; a crash leaves it to the next start."""
        for segment in group.segments:
            spool.recycle(segment)
        if group.merge is not None:
            self.ports.files.remove(group.merge.differences)

    # --- trouble -----------------------------------------------------------------------------------------------------

    async def _wait_for_space(self, error: NoSpaceError) -> None:
        if self.ledger.replication.applying is not None:
            # Its own undo log may be what takes the room; the points before it go first.
            if await self.history.give_way(error.text):
                return
            if self.ledger.replication.undo is not None:
                await self._go_on_unsaved(error)
                return
        cause = Cause(code="no_space", text=error.text, time=self.ports.clock.wall(), remedy=error.remedy)
        if self._is_new(cause):
            await self.ledger.note(EventId.APPLY_FAILED, error.text, cause=cause.code)
        await self._wait(cause)

    async def _go_on_unsaved(self, error: Exception) -> None:
        """The undo log of this apply does not have what it has to: the apply goes on, and the older points end."""
        async with self.ledger.transaction() as draft:
            if draft.promotion is not None and draft.promotion.older:
                # One of them was promoted meanwhile, and nothing is applied any more.
                return
            self.history.abandon()
            draft.event(EventId.DAMAGED, f"Older recovery points are lost. {error}", cause="unsaved")
            self.history.unguard(draft)
        await self.history.tidy()

    async def _fail(self, error: Exception, *, redone: bool) -> None:
        """What was received could not be applied, and only a resync helps.

        Where the disks were already being changed they may be anything now: no promotion and no export until a resync
        has committed (R17). Otherwise they still are the newest point.

        After a failover nobody is left to resync from, but the spool still holds everything that these disks had not
        synced: writing all of it again, and syncing that, heals what a failed sync lost. So it is tried again.
        """
        cause = Cause(
            code="spool_damaged" if isinstance(error, UnreadableError) else "disk_failed",
            text=f"What was received could not be applied: {error}",
            time=self.ports.clock.wall(),
            remedy="Check the volume, then resynchronize at the primary.",
        )
        suspect = redone or self.disks.touched
        identities = None if suspect else await finish(self.ports.workers.run(self.disks.identities))
        async with self.ledger.transaction() as draft:
            promoted = draft.promotion is not None
            if not promoted or self._is_new(cause):
                draft.event(EventId.APPLY_FAILED, cause.text, cause=cause.code)
            if not promoted:
                draft.require_resync(cause, suspect=suspect, reread=isinstance(error, _SyncOfDisksError))
                if not suspect:
                    draft.replication.applying = None
                    self.history.withdraw(draft)
                    draft.replication.identities = identities
        self.history.unguarded = self.history.unguarded and suspect
        if promoted:
            cause.remedy = "Check the volume; it is tried again."
            await self._wait(cause)
        elif self.spool is not None:
            # At once, in the step that ends the transaction: a failover must not count on these any more.
            self.spool.segments.clear()

    def _is_new(self, cause: Cause) -> bool:
        """Whether it is another problem than the one that is shown, and not that one met again."""
        return self.problem is None or self.problem.code != cause.code

    async def _wait(self, cause: Cause) -> None:
        """Show why nothing is applied, and since when, and let some time pass."""
        if self._is_new(cause):
            self.problem = cause
        self.changed.notify()
        await asyncio.sleep(RETRY_SECONDS)


class _HaltedError(Exception):
    """The disks must not be changed any more."""


class _SyncOfDisksError(StorageError):
    """Syncing the disks failed: what can be read of them is not what would survive."""

    code = "sync_failed"
