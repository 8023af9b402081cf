"""Tracking: whether writes go to the log, its cuts, its durability, and how it is begun, ended and lost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn, Protocol

from primary_agent.tap.changes import LoggedChanges, LogUnreadableError
from primary_agent.tap.devices import take_samples
from primary_agent.tap.dirty_map import DirtyMap
from primary_agent.tap.disks import Disk, Range
from primary_agent.tap.hot_regions import NO_LOG, HotNote
from primary_agent.tap.log import Cut, LogFullError, LogWriter
from primary_agent.tap.log_files import LogFiles
from primary_agent.tap.map_tracking import MapTracking
from primary_agent.tap.ports import TapPorts
from primary_agent.tap.recovery import Tail
from primary_agent.tap.state import LogEnd, Loss, Stamp, StateFile, Status, TapState
from primary_agent.tap.supply import Supply
from primary_agent.tap.tasks import SharedSync, Tasks
from primary_agent.tap.watch import NO_SPACE, Watch, why
from protocol.hrl import SealReason
from shared.errors import InvalidStateError, StorageError
from shared.nbd.backend import Mutation
from shared.ports import File, FileSystem
from shared.tap_control import DiskChange, LostReason, Tracking

STATE_RETRY_SECONDS = 5.0
ENDING_SECONDS = 10.0
"""How long a new beginning waits until the end before it is durable."""
EMPTY_CUTS_MAX = 1000
"""Unreleased sealed segments above which an interval does not seal another empty one."""


class Listener(Protocol):
    """Who wants to know. Calls come on the event loop and must not block."""

    def progressed(self) -> None:
        """The log has grown, and its writes are on the disks."""

    def sealed(self, cut: Cut) -> None:
        """A cut is sealed and durable."""

    def tracking_changed(self) -> None:
        """Tracking was begun, ended or lost, durably."""


class _Before(NamedTuple):
    """Where tracking stood before a new epoch was begun."""

    tracking: Tracking
    epoch: bytes
    loss: Loss | None
    first_file: int


class Tracker:
    """The log's side of a tap. ``log`` is set exactly while tracking is on; ``disks`` are all of the VM's."""

    def __init__(
        self,
        ports: TapPorts,
        tasks: Tasks,
        vm: bytes,
        disks: Sequence[Disk],
        files: LogFiles,
        state_file: StateFile,
        dirty: DirtyMap | None = None,
    ) -> None:
        self.log: LogWriter | None = None
        self.maps = MapTracking(ports, disks, dirty)
        self.tracking = Tracking.OFF
        self.epoch = b""
        self.loss: Loss | None = None
        self.newest_cut: Cut | None = None
        """The newest cut that is sealed and durable."""
        self.released_segment = 0
        self.resting = False
        """No writes are taken, and an empty segment is not sealed at the end of an interval."""
        self.files = files
        self.listeners: list[Listener] = []
        self.sync = SharedSync(tasks, self._sync)
        self._ports = ports
        self._tasks = tasks
        self.watch = Watch(ports.clock, state_file, self.lose)
        self._supply = Supply(ports, tasks, files)
        self._vm = vm
        self._disks = disks
        self._geometry = [disk.config.geometry for disk in disks]
        self._state_file = state_file
        self._first_file = files.next_sequence
        self._unpublished: deque[Cut] = deque()
        """Cuts whose seals are written but not durable yet, oldest first."""
        self._ending: asyncio.Task[None] | None = None
        self._former: LogWriter | None = None
        """The log before a new epoch's, until that epoch is durable."""
        self._dropping: asyncio.Task[None] | None = None
        self._closing = False
        self._samples = b""
        """The digest of the samples of block devices; empty until an orderly stop has taken them."""

    # --- start and stop ---------------------------------------------------------------------------------------------

    def restore(self, state: TapState | None, loss: Loss | None, former: bytes = b"") -> None:
        """Take over what the state file says; ``loss`` is what this start found out.

        ``former``: the epoch that was tracked last, where the state is damaged and does not tell it.
        """
        if state is not None:
            self.tracking, self.epoch, self.loss = state.tracking, state.epoch, state.loss
            self._first_file = state.first_file
        if loss is not None:
            self.tracking, self.loss, self.epoch = Tracking.LOST, loss, former or self.epoch
        if self.tracking not in (Tracking.ON, Tracking.MAP):
            self._first_file = self.files.next_sequence
            self.maps.void()

    @property
    def is_tracked(self) -> bool:
        """Whether log or dirty map name what changes."""
        return self.log is not None or self.tracking is Tracking.MAP

    def activate(self, path: str, twice: bool) -> None:
        """Write the state of a running tap durably, into both slots if asked to. Blocks. Raises OSError.

        ``path`` is the name that a new state file gets.
        """
        for _ in range(1 + twice):
            self._state_file.write(self._state(Status.ACTIVE))
        self._state_file.sync()
        self._state_file.publish(self._ports.files, path)

    def resume(self, tail: Tail, file: File) -> None:
        """Go on with the log that ends in ``tail``. Raises OSError."""
        log = LogWriter(self.files, self._ports.clock, self._vm, self._geometry, tail.cursor)
        self.log = log
        first_entry, segment_bytes = tail.first_entry, tail.segment_bytes
        log.resume(file, tail.newest_ns, ended=tail.ended, first_entry=first_entry, segment_bytes=segment_bytes)
        self.newest_cut = tail.sealed
        self._supply.wanted = True
        self._supply.replenish()

    def seal_recovered(self) -> None:
        """Seal the segment that a kill left open; published by the next sync."""
        if self.log is not None:
            try:
                self._unpublished.append(self.log.cut(SealReason.RECOVERY))
            except OSError as error:
                self.lose_log(error)

    def tidy(self) -> None:
        """Remove the rest of a log that is not needed any more."""
        if self.log is None and self._ending is None:
            self.files.drop()

    async def close(self) -> None:
        """Seal the log and make it durable, unless tracking is lost over it. The state stays ACTIVE."""
        self._closing = True
        self._supply.wanted = False
        if self.log is not None:
            try:
                await self.cut(SealReason.SHUTDOWN, go_on=False)
            except InvalidStateError:
                # Lost in its last moment: then that is what the state says.
                pass
        await self.settle()
        if self.tracking is Tracking.MAP:
            await self.sync.run()
            await self.settle()
        await self.sync.settle()

    async def settle(self) -> None:
        """Wait until an end or a loss of tracking is durable."""
        if self._ending is not None:
            await asyncio.shield(self._ending)

    def close_files(self, clean: bool, folder: str) -> None:
        """Close everything; ``clean`` writes the CLEAN state of the tap's ``folder`` first. Blocks. Raises OSError."""
        try:
            if clean:
                if self.is_tracked:
                    hot = self.maps.hot_ranges()
                    now = self._ports.clock.monotonic
                    self._samples = take_samples(self._ports.files, folder, self._ports.random, now, hot)
                if self.maps.hot is not None:
                    # What stays hot although nothing is in doubt does no harm.
                    with suppress(OSError):
                        self.maps.hot.clear(self.place)
                self._state_file.write(self._state(Status.CLEAN))
                self._state_file.sync()
        finally:
            if self.log is not None:
                self.log.close()
            self.maps.close()
            self.files.close()
            self._state_file.close()

    def _state(self, status: Status) -> TapState:
        end = None
        if status is Status.CLEAN and self.log is not None:
            position = self.log.position
            end = LogEnd(*self.log.place, position.segment, position.entry, position.chain)
        return TapState(
            vm=self._vm,
            status=status,
            boot_id=self._ports.clock.boot_id(),
            tracking=self.tracking,
            epoch=self.epoch,
            first_file=self._first_file,
            loss=self.loss,
            disks=[Stamp.of(disk.index, disk.file.identity()) for disk in self._disks],
            end=end,
            doubt=self.maps.is_older(self.epoch),
            samples=self._samples,
            hotless=self.maps.hot is None,
        )

    # --- what is written --------------------------------------------------------------------------------------------

    def mark(self, disk: Disk, batch: Sequence[Mutation]) -> None:
        """In the dirty map's time: its bits are in the page cache before the disk changes. Never fails."""
        if self.tracking is not Tracking.MAP:
            return
        try:
            self.maps.mark(disk, batch)
        except OSError as error:
            self.lose(LostReason.MAP_FAILED, f"the dirty map can't be written: {why(error)}")
        else:
            self.watch.about_to_write(disk)

    def log_anew(self, disk: Disk, ranges: Sequence[Range], time_ns: int) -> Iterator[None]:
        """Log what the disk now holds in ranges that are in doubt, as a part of their group (R26).

        To be iterated to its end; each step reads and logs a few MiB. Loses tracking where that is not possible.
        """
        try:
            for entries, payloads, sizes in disk.read_anew(ranges):
                if self.log is None:
                    return
                try:
                    self.log.append(entries, payloads, sizes, time_ns)
                except OSError as error:
                    self.lose_log(error)
                    return
                yield
        except OSError as error:
            text = f"{disk.config.path} can't be read where its content is in doubt: {why(error)}"
            self.lose(LostReason.DISK_FAILED, text)

    # --- cuts -------------------------------------------------------------------------------------------------------

    async def cut(self, reason: SealReason, *, go_on: bool = True) -> Cut:
        """Seal the current segment at this very moment (R5); durable when this returns (R34).

        Raises InvalidStateError while nothing is tracked, or if tracking is lost meanwhile.
        """
        self.watch.check_unchanged(self._disks)
        log = self.log
        if log is None:
            self._not_tracking()
        try:
            cut = log.cut(reason, go_on=go_on)
        except OSError as error:
            self.lose_log(error)
            self._not_tracking()
        self._unpublished.append(cut)
        await self.sync.run()
        if self.log is not log:
            self._not_tracking()
        return cut

    @property
    def first_segment(self) -> int:
        """The oldest segment that is wholly kept; 0 while nothing is tracked."""
        if self.log is None:
            return 0
        # The oldest file may begin in the middle of the segment that its header names.
        return max(self.released_segment, self.files.used[0].header.segment) + 1

    def _not_tracking(self) -> NoReturn:
        text = f"Tracking was lost: {self.loss.text}." if self.loss else "The tap does not track the writes."
        raise InvalidStateError(text, "Resynchronize the VM.", code="not_tracking")

    def wants_interval_cut(self) -> bool:
        """Whether the end of an interval should seal the segment: an empty one only so many times."""
        if self.log is None or (self.resting and self.log.segment_is_empty):
            return False
        return not self.log.segment_is_empty or self.log.segment - self.released_segment <= EMPTY_CUTS_MAX

    def begin_sync(self) -> asyncio.Future[str] | None:
        """Start to make durable what is logged now; None where that is done already. To be shielded."""
        synced = self.log is None or self.log.is_synced
        if synced and self.maps.is_synced and not self.sync.running:
            return None
        return self.sync.begin()

    async def _sync(self) -> str:
        """Make durable what is in the log now, and publish the cuts in it; and the dirty map, where it is in force."""
        log = self.log
        if log is None:
            return await self._sync_map()
        folder = self.files.folder if log.folder_unsynced else ""
        synced, cuts = log.begin_sync(), len(self._unpublished)
        try:
            await self._ports.workers.run(_sync_files, self._ports.files, synced, folder)
        except OSError as error:
            if log is self.log:
                # It is never tried again: pages that failed to reach the disk count as clean now (R17).
                self.lose(LostReason.LOG_FAILED, f"the log can't be made durable: {why(error)}")
            return why(error)
        if log is self.log:
            log.end_sync(synced)
            for _ in range(cuts):
                self.newest_cut = self._unpublished.popleft()
                for listener in self.listeners:
                    listener.sealed(self.newest_cut)
        return await self._sync_map()

    async def _sync_map(self) -> str:
        """Make the dirty map durable, where it is in force."""
        dirty = self.maps.dirty
        if dirty is None or self.maps.is_synced:
            return ""
        try:
            await self._ports.workers.run(dirty.sync)
            return ""
        except OSError as error:
            failed = why(error)
        if self.tracking is Tracking.MAP:
            self.lose(LostReason.MAP_FAILED, f"the dirty map can't be made durable: {failed}")
        elif self.tracking is Tracking.ON:
            # An older map beside the log: it proves nothing any more, which a later start has to know.
            try:
                self._state_file.write(self._state(Status.ACTIVE))
                await self._ports.workers.run(self._state_file.sync)
            except OSError as error:
                self.lose(LostReason.STATE_FAILED, f"the state file can't be made durable: {why(error)}")
        return failed

    async def checkpoint(self) -> HotNote | None:
        """Make tracking durable; the place in the log that this covers, or None where it failed.

        The disks have to be synced by the caller, from the same moment on.
        """
        log, tracking = self.log, self.tracking
        if tracking is Tracking.MAP and not self.maps.is_complete(self.epoch):
            # Until the map is complete only the hot regions may name what a failed log has lost.
            return None
        note = self.place
        pending = self.begin_sync()
        failed = await asyncio.shield(pending) if pending is not None else ""
        if failed:
            return None
        # What was lost meanwhile may not be in the map yet, and then only the hot regions name it.
        return note if self.log is log and self.tracking is tracking else None

    @property
    def place(self) -> HotNote:
        """How far the log reaches, for the hot regions' map."""
        if self.log is not None:
            return HotNote(0, *self.log.place, self.log.epoch)
        return HotNote(0, NO_LOG, 0, self.epoch) if self.tracking is Tracking.MAP else HotNote()

    def release(self, epoch: bytes, segment: int) -> None:
        """The replica has everything up to this segment durably (I5). Raises InvalidStateError where it can't."""
        if self.log is None or epoch != self.epoch:
            self._not_tracking()
        newest = self.newest_cut.position.segment if self.newest_cut else 0
        if segment > newest:
            text = f"Segment {segment} can't be released: the newest durable cut is {newest}."
            raise InvalidStateError(text, "Release what was acknowledged only.", code="not_sealed")
        self.released_segment = max(self.released_segment, segment)
        self.files.release(self.released_segment)
        if self.maps.in_force() and self._dropping is None:
            # The baseline of this epoch is committed: what came before it is not in doubt any more.
            self._dropping = self._tasks.spawn(self._let_go_of_map())

    async def forget(self, epoch: bytes) -> None:
        """What changed before the log of ``epoch`` is on record elsewhere: an older map is let go of, durably."""
        if self.log is None or epoch != self.epoch or not self.maps.is_older(epoch):
            return
        if self._dropping is None:
            self._dropping = self._tasks.spawn(self._let_go_of_map())
        await asyncio.shield(self._dropping)

    async def _let_go_of_map(self) -> None:
        try:
            if self.log is not None:
                await self.maps.let_go()
        except OSError:
            # A map that is broken takes over nothing any more; left in force, it costs a compare in vain.
            return
        finally:
            self._dropping = None

    # --- begin, end, loss -------------------------------------------------------------------------------------------

    async def prepare_begin(self, epoch: bytes) -> bool:
        """Do what has to wait before ``begin``; False where that epoch is tracked already.

        Raises InvalidStateError for an epoch that was used, NoSpaceError or StorageError where no log can be begun.
        """
        if epoch == self.epoch:
            if self.tracking is Tracking.ON:
                return False
            text = f"Tracking in epoch {epoch.hex()} has ended or was lost and can't be taken up again."
            raise InvalidStateError(text, "Begin a new epoch.", code="epoch_used")
        if self._ending is not None:
            await asyncio.wait({self._ending}, timeout=ENDING_SECONDS)
            if not self._ending.done() and self.tracking is Tracking.MAP:
                text = "What the log knew is still being brought into the dirty map, so that no epoch can be begun."
                raise InvalidStateError(text, "It is tried again.", code="map_filling")
            if not self._ending.done():
                text = "The tap can't write its state, so that no tracking can be begun."
                raise StorageError(text, "Check the volume of the tap's folder.")
        await self._supply.first()
        return True

    def begin(self, epoch: bytes) -> None:
        """From this moment on track in a fresh log of ``epoch``; no change of a disk may be under way (R6).

        Raises StorageError, and tracking is lost, where the log can't be begun.
        """
        before = _Before(self.tracking, self.epoch, self.loss, self._first_file)
        self._former, self.log = self.log, None
        self.tracking, self.epoch, self.loss = Tracking.ON, epoch, None
        self._first_file = self.files.next_sequence
        try:
            self._state_file.write(self._state(Status.ACTIVE))
            for disk in self._disks:
                self.watch.saw_through(disk, 0)
            log = LogWriter.begin(self.files, self._ports.clock, self._vm, self._geometry, epoch)
        except OSError as error:
            self._begin_failed(before, error)
            raise StorageError(f"Tracking could not be begun: {why(error)}.", "Check the log's volume.") from error
        if self.tracking is not Tracking.ON:
            log.close()
            self._not_tracking()
        self._forget_cuts()
        self.log = log
        self._supply.wanted = True
        if self.maps.hot is not None:
            self.maps.hot.begin()

    def _begin_failed(self, before: _Before, error: OSError) -> None:
        """What was tracked before goes on in the dirty map, where there is one; else tracking is lost."""
        epoch = self.epoch
        former, self._former = self._former, None
        self.tracking, self.epoch, self.loss, self._first_file = before
        loss = Loss.of(LostReason.BEGIN_FAILED, f"the log could not be begun: {why(error)}", self._ports.clock.wall())
        self.log = former
        if former is not None and self._take_to_map(loss):
            return
        if former is None and self.tracking is Tracking.MAP and self.maps.in_force():
            try:
                self._state_file.write(self._state(Status.ACTIVE))
            except OSError:
                pass
            else:
                self.files.drop()
                return
        self.epoch = epoch
        self._end(Tracking.LOST, loss)

    async def finish_begin(self) -> None:
        """Make the beginning durable, and only then let go of the log before.

        Raises InvalidStateError if tracking is lost meanwhile.
        """
        log = self.log
        try:
            await self._ports.workers.run(self._state_file.sync)
        except OSError as error:
            self.lose(LostReason.STATE_FAILED, f"the state file can't be made durable: {why(error)}")
        await self.sync.settle()
        self._close_former()
        if self.log is not log or log is None:
            self._not_tracking()
        self.files.release_before(self._first_file)
        self._supply.replenish()
        self._tell_tracking()

    def _close_former(self) -> None:
        if self._former is not None:
            self._former.close()
            self._former = None

    async def end(self) -> None:
        """End tracking by order and drop the log; durable when this returns."""
        if self.tracking is Tracking.OFF:
            return
        self._end(Tracking.OFF, None)
        await self.settle()

    def abandon(self, epoch: bytes) -> None:
        """Nobody will take this log: an older dirty map goes on with what it knows; without one tracking ends."""
        if self.tracking is not Tracking.ON or epoch != self.epoch:
            return
        if self.maps.is_older(self.epoch):
            # Only the map names what changed before this log, so what the log knows has to come to it.
            self.lose(LostReason.ABANDONED, "the resynchronization that the log was for was cancelled")
        else:
            self._end(Tracking.OFF, None)

    async def leave_log(self, text: str) -> None:
        """The dirty map takes the place of the log, and is complete when this returns, if it can be."""
        await self._map_let_go()
        if self.tracking is Tracking.ON:
            self.lose(LostReason.DISKS_CHANGED, text)
        await self.settle()

    async def to_map(self) -> None:
        """By order the dirty map takes the place of the log from this moment on, as if the log were full.

        A no-op where it has. Raises InvalidStateError where nothing is tracked, or there is no map that could.
        """
        await self._map_let_go()
        if self.tracking is Tracking.ON:
            self.lose(LostReason.REVERSED, "the direction of replication was reversed, so that the log goes to nobody")
        if self.tracking is not Tracking.MAP:
            self._not_tracking()

    async def _map_let_go(self) -> None:
        """A map that is being let go of can't take the log's place: wait until it is."""
        if self._dropping is not None:
            await asyncio.shield(self._dropping)

    def lose_log(self, error: OSError) -> None:
        """The log could not be written."""
        if isinstance(error, LogFullError):
            self.lose(LostReason.LOG_FULL, str(error))
        elif error.errno in NO_SPACE:
            self.lose(LostReason.LOG_FULL, f"the volume of the log is full: {why(error)}")
        else:
            self.lose(LostReason.LOG_FAILED, f"the log can't be written: {why(error)}")

    def lose(self, reason: LostReason, text: str, changes: Sequence[DiskChange] = ()) -> None:
        """The log does not name everything that changes any more: the dirty map takes over, where it can.

        The state says so before this returns, as far as a killed process goes. The guest goes on (I14).
        """
        if self.tracking not in (Tracking.ON, Tracking.MAP):
            return
        loss = Loss.of(reason, text, self._ports.clock.wall(), changes)
        if self.tracking is Tracking.ON and self._take_to_map(loss):
            return
        self._end(Tracking.LOST, loss)

    def lose_devices(self, failure: str) -> None:
        """The hot-region map can't be written: files tell that they were written later, block devices do not (R30)."""
        if any(disk.block for disk in self._disks):
            text = (
                f"the hot-region map can't be written ({failure}), and block devices tell no time of their last write"
            )
            self.lose(LostReason.MAP_FAILED, text)

    def _take_to_map(self, loss: Loss) -> bool:
        """Go on in the dirty map (R28); False where it can't be written."""
        log, dirty = self.log, self.maps.dirty
        if log is None or dirty is None or not self.files.used or self._dropping is not None:
            return False
        if not self.maps.covers(loss.reason):
            return False
        base = self.first_segment - 1
        try:
            dirty.begin(self.epoch, base, log.segment, catch_up=False)
            self.log, self.tracking, self.loss = None, Tracking.MAP, loss
            self._state_file.write(self._state(Status.ACTIVE))
        except OSError:
            self.log, self.tracking = log, Tracking.ON
            return False
        self._supply.wanted = False
        self._forget_cuts()
        self._ending = self._tasks.spawn(self._finish_map(self._ending, log))
        return True

    def begin_map(self, loss: Loss, changes: LoggedChanges) -> None:
        """At a start after an unclean stop: the dirty map takes the place of the log. Raises OSError."""
        self.tracking, self.loss = Tracking.MAP, loss
        self.maps.begin(self.epoch, changes)

    def resume_map(self, changes: LoggedChanges | None) -> None:
        """Complete the dirty map, where that is still to be done; None: from the log's files."""
        # A log that was lost during this start is being brought into the map already.
        if self.tracking is Tracking.MAP and not self.maps.is_complete(self.epoch) and self._ending is None:
            self._ending = self._tasks.spawn(self._finish_map(self._ending, None, changes))

    async def _finish_map(
        self, before: asyncio.Task[None] | None, log: LogWriter | None, changes: LoggedChanges | None = None
    ) -> None:
        """Make the taking over durable, and bring into the map what the log knew; only then may the log go."""
        if before is not None:
            await before
        await self.sync.settle()
        if log is not None:
            log.close()
        if self.tracking is Tracking.MAP and not await self.sync.run() and await self._state_durable():
            self._tell_tracking()
        try:
            if self.tracking is Tracking.MAP and changes is None:
                changes = await self.maps.read(list(self.files.used), self.epoch, self._map_reason)
            if self.tracking is Tracking.MAP and changes is not None:
                await self.maps.complete(changes, self.epoch, self._map_reason)
        except LogUnreadableError as error:
            self.lose(LostReason.LOG_DAMAGED, str(error))
        except OSError as error:
            self.lose(LostReason.MAP_FAILED, f"the dirty map can't be completed: {why(error)}")
        if self.tracking is Tracking.MAP:
            if self.log is None and not self._closing:
                self.files.drop()
            self._tell_tracking()

    @property
    def _map_reason(self) -> LostReason:
        return self.loss.reason if self.loss is not None else LostReason.UNCLEAN_STOP

    def _end(self, tracking: Tracking, loss: Loss | None) -> None:
        log, self.log = self.log, None
        self.tracking, self.loss = tracking, loss
        self._first_file = self.files.next_sequence
        self.maps.void()
        self._supply.wanted = False
        self._forget_cuts()
        try:
            self._state_file.write(self._state(Status.ACTIVE))
        except OSError:
            written = False
            self.maps.void_lease()
        else:
            written = True
        self._ending = self._tasks.spawn(self._finish_end(self._ending, log, written=written))

    async def _finish_end(self, before: asyncio.Task[None] | None, log: LogWriter | None, *, written: bool) -> None:
        """Make the end durable; only then may the log's files go."""
        if before is not None:
            await before
        if not await self._state_durable(written=written):
            return
        await self.sync.settle()
        if log is not None:
            log.close()
        self._close_former()
        if self.log is None:
            self.files.drop()
        self._tell_tracking()

    async def _state_durable(self, *, written: bool = True) -> bool:
        """Make the state durable, however long that takes; False where the tap ends before."""
        while True:
            try:
                if not written:
                    self._state_file.write(self._state(Status.ACTIVE))
                await self._ports.workers.run(self._state_file.sync)
                return True
            except OSError:
                # What failed to be synced has to be written again, or syncing it would prove nothing.
                written = False
                if not self.is_tracked:
                    self.maps.void_lease()
            if self._closing:
                return False
            await asyncio.sleep(STATE_RETRY_SECONDS)

    def _forget_cuts(self) -> None:
        self._unpublished.clear()
        self.newest_cut = None
        self.released_segment = 0

    def tell_progress(self) -> None:
        """The log has grown, and its writes are on the disks."""
        for listener in self.listeners:
            listener.progressed()

    def _tell_tracking(self) -> None:
        for listener in self.listeners:
            listener.tracking_changed()


def _sync_files(files: FileSystem, opened: Sequence[File], folder: str) -> None:
    for file in opened:
        file.sync()
    if folder:
        files.sync_folder(folder)
