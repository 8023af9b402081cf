"""The tap's engine: performs changes of the disks in one order, logged before they are written (I2, R5, R6, R31).

One thread; on the hot path nothing is awaited between a change's number and its place on the disk, so that the order of
numbers, log, disks and cuts is one. No sockets: NBD and control are shells around it.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence

from primary_agent.tap.batches import INLINE_ZEROES, entries_of, groups_of, without_slow_zeroes
from primary_agent.tap.disks import Disk, Range
from primary_agent.tap.hot_regions import HotNote, HotRegions
from primary_agent.tap.intervals import Intervals
from primary_agent.tap.locate import Place, locate
from primary_agent.tap.log import Cut
from primary_agent.tap.ports import TapPorts
from primary_agent.tap.refusal import WriteGate, standing_cut
from primary_agent.tap.resume import resume
from primary_agent.tap.start import Start, read_start
from primary_agent.tap.tasks import Orders, SharedSync, Tasks, Turns
from primary_agent.tap.tracker import Tracker
from primary_agent.tap.watch import why
from protocol.hrl import SealReason
from protocol.position import Position
from shared.errors import StorageError
from shared.nbd.backend import Mutation, errno_of
from shared.nbd.constants import Errno
from shared.tap_config import STATE_NAME, TapConfig
from shared.tap_control import LostReason

QUIET_NS = 10_000_000
"""A disk that was left alone for so long is looked at before it is written again."""
SLOW_SECONDS = 0.1


class TapEngine:
    """The disks of one VM and their log. ``folder`` is the tap's own; ``config`` what an agent wrote there."""

    def __init__(self, folder: str, config: TapConfig, ports: TapPorts) -> None:
        self.config = config
        self.intervals = Intervals(ports.clock, config.interval_seconds)
        self.disks: list[Disk] = []
        self.tasks = Tasks()
        """``tasks.failure`` is done when an unexpected error makes going on impossible."""
        self.last_write_time: float | None = None
        self.gate = WriteGate(ports, folder)
        self._folder = folder
        self._ports = ports
        self._clock = ports.clock
        self.workers = ports.workers
        self.turns = Turns(self.tasks)
        self._syncs: list[SharedSync] = []
        self._tracker: Tracker | None = None
        self._hot: HotRegions | None = None
        self._warming: set[asyncio.Task[None]] = set()
        self._start: Start | None = None
        self._refusing = True
        self.orders = Orders()

    @property
    def tracker(self) -> Tracker:
        """The log's side; there is one from ``start`` on."""
        assert self._tracker is not None, "the engine is not started"
        return self._tracker

    # --- start and stop ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open and lock the disks, recover the log, and be ready for changes.

        Raises VmreplicaError where the tap has to refuse its work; see :func:`read_start`.
        """
        ports = self._ports
        start = await self.workers.run(read_start, ports, self._folder, self.config)
        tracker = Tracker(ports, self.tasks, self.config.vm_id, start.disks, start.files, start.state_file, start.dirty)
        if start.hot is not None:
            tracker.maps.hot = self._hot = HotRegions(
                ports, self.tasks, start.disks, start.hot, self.config.hot_regions, self._checkpoint
            )
            self._hot.on_failure = tracker.lose_devices
        self._syncs = [SharedSync(self.tasks, self._syncer(disk)) for disk in start.disks]
        self._tracker = tracker
        try:
            await resume(self._ports, start, tracker, f"{self._folder}/{STATE_NAME}")
        except BaseException:
            start.close()
            raise
        self._start, self.disks = start, start.disks
        await self.workers.run(self.gate.load, tracker)
        self._refusing = False
        self.intervals.begin(self.tasks, tracker, self.disks)

    def drain(self) -> None:
        """Refuse further changes with ESHUTDOWN."""
        self._refusing = True

    async def stop(self) -> None:
        """Finish what is under way, make everything durable, and record an orderly stop.

        Where something can't be made durable the state stays as after a crash, and StorageError says why.
        """
        self.drain()
        await self.orders.end()
        tracker, start = self.tracker, self._start
        assert start is not None
        await self.quiet()
        self.intervals.end()
        if self._hot is not None:
            await self._hot.settle()
        errors = [error for sync in self._syncs if (error := await sync.run())]
        await tracker.close()
        await self.tasks.settle()
        try:
            await self.workers.run(tracker.close_files, not errors, self._folder)
        except OSError as error:
            errors.append(f"the tap's state can't be written: {why(error)}")
        finally:
            for disk in self.disks:
                disk.file.close()
            start.lock.close()
        if errors:
            raise StorageError(f"Not everything is durable: {'; '.join(errors)}.", "Check the volumes named.")

    async def quiet(self) -> None:
        """Wait until no change is under way that was taken before."""
        while self._warming:
            await asyncio.wait(self._warming)
        await self.turns.settle()

    # --- changes ----------------------------------------------------------------------------------------------------

    def mutate(self, disk: Disk, batch: list[Mutation]) -> asyncio.Future[None] | None:
        """Perform changes in order; see :class:`shared.nbd.backend.ExportBackend`. None: all is done.

        The future, when cancelled before its turn came, stops changes that were not begun.
        """
        if self._refusing or self.gate.refused is not None:
            self.gate.refuse(batch, stopping=self._refusing)
            return None
        fua, zeroes = False, 0
        for mutation in batch:
            if mutation.fua:
                fua = True
            if mutation.payload is None:
                zeroes += mutation.length
        if zeroes:
            batch = without_slow_zeroes(batch)
        if self.turns.busy or zeroes > _inline_zeroes(disk):
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.turns.queue(lambda: self._perform_in_turn(disk, batch, done, fua=fua))
            return done
        if self._hot is not None and not self._hot.ready(disk, batch):
            done = asyncio.get_running_loop().create_future()
            task = self.tasks.spawn(self._perform_when_hot(self._hot, disk, batch, done, fua=fua))
            self._warming.add(task)
            task.add_done_callback(self._warming.discard)
            return done
        self._perform(disk, batch)
        if not fua:
            return None
        self.tasks.spawn(self._answer_when_durable(disk, batch, done := asyncio.get_running_loop().create_future()))
        return done

    def _perform(self, disk: Disk, batch: Sequence[Mutation]) -> None:
        """Number, log and write a group of changes, without waiting for anything (R31)."""
        slow_at = self._clock.monotonic() + SLOW_SECONDS
        time_ns = self._log(disk, batch)
        failed = disk.write(batch, slow_at, self._clock.monotonic, self._is_slow)
        self._finish(disk, batch, time_ns, failed)

    async def _perform_when_hot(
        self, hot: HotRegions, disk: Disk, batch: list[Mutation], done: asyncio.Future[None], *, fua: bool
    ) -> None:
        """Wait for the batch's regions, while other changes go on; only then it gets its numbers (R31)."""
        await hot.warm(disk, batch)
        if done.cancelled():
            return
        if self.turns.busy:
            self.turns.queue(lambda: self._perform_in_turn(disk, batch, done, fua=fua))
            return
        self._perform(disk, batch)
        if fua:
            await self._answer_when_durable(disk, batch, done)
        elif not done.done():
            done.set_result(None)

    def _log(self, disk: Disk, batch: Sequence[Mutation]) -> int:
        """Append a group to the log, or mark it in the dirty map; its time, or 0 if it is not tracked."""
        tracker = self.tracker
        if not tracker.is_tracked:
            return 0
        time_ns = tracker.log.stamp() if tracker.log is not None else int(self._clock.wall() * 1e9)
        if time_ns - disk.done_ns > QUIET_NS:
            tracker.watch.check_unchanged((disk,))
        if tracker.log is not None:
            entries, payloads, sizes = entries_of(disk.index, batch)
            try:
                tracker.log.append(entries, payloads, sizes, time_ns)
            except OSError as error:
                tracker.lose_log(error)
        tracker.mark(disk, batch)
        return time_ns if tracker.is_tracked else 0

    def _is_slow(self, disk: Disk) -> float:
        """A disk takes long: note that the next write is still ours, and when to note it again."""
        if self.tracker.is_tracked:
            self.tracker.watch.about_to_write(disk)
        return self._clock.monotonic() + SLOW_SECONDS

    def _finish(self, disk: Disk, batch: Sequence[Mutation], time_ns: int, failed: Sequence[Range]) -> None:
        """A group is on the disk: log anew what failed, for the disk is the truth (R26), and tell of the progress."""
        self.last_write_time = self._clock.wall()
        tracker = self.tracker
        if time_ns and failed:
            for _ in tracker.log_anew(disk, failed, time_ns):
                pass
            # Where the log was lost over that, the map has to name what the log lacks.
            tracker.mark(disk, batch)
        if time_ns and tracker.is_tracked:
            tracker.watch.saw_through(disk, time_ns)
            if tracker.log is not None:
                tracker.tell_progress()

    async def _perform_in_turn(
        self, disk: Disk, batch: Sequence[Mutation], done: asyncio.Future[None], *, fua: bool
    ) -> None:
        """Perform a batch that had to wait or is long: in groups, between which others than changes go on."""
        for group in groups_of(batch, _inline_zeroes(disk)):
            if done.cancelled():
                return
            if self._hot is not None:
                await self._hot.warm(disk, group)
            if group[0].payload is None and group[0].length > _inline_zeroes(disk):
                await self._zero_in_steps(disk, group[0])
            else:
                self._perform(disk, group)
                await asyncio.sleep(0)
        if fua:
            self.tasks.spawn(self._answer_when_durable(disk, batch, done))
        elif not done.done():
            done.set_result(None)

    async def _zero_in_steps(self, disk: Disk, mutation: Mutation) -> None:
        """Log a long zeroing as one entry, then let workers do it piece by piece."""
        time_ns = self._log(disk, (mutation,))
        disk.stepping = True
        disk.writes += 1
        disk.bytes_written += mutation.length
        offset, end = mutation.offset, mutation.offset + mutation.length
        try:
            while offset < end:
                if self._hot is not None:
                    # Its regions stay hot as long as this goes on; the lease has to be renewed.
                    await self._hot.warm(disk, ())
                self._is_slow(disk)
                offset = await self.workers.run(disk.zero_for_a_while, mutation, offset, self._clock.monotonic)
                disk.unsynced = True
        except OSError as error:
            mutation.error = errno_of(error)
            if time_ns:
                for _ in self.tracker.log_anew(disk, [(mutation.offset, mutation.length)], time_ns):
                    await asyncio.sleep(0)
        finally:
            disk.stepping = False
        self._finish(disk, (mutation,), time_ns, ())

    # --- durability and cuts ----------------------------------------------------------------------------------------

    async def flush(self, disk: Disk) -> int:
        """Make everything durable that was completed before, on the disk and in the log (I4). 0 or an ``Errno``."""
        log_synced = self.tracker.begin_sync()
        disk_sync = self._syncs[disk.slot]
        if disk.unsynced or disk_sync.running:
            await asyncio.shield(disk_sync.begin())
        if log_synced is not None:
            # A log that can't be synced is no error of the guest's (I14): then tracking is lost.
            await asyncio.shield(log_synced)
        return Errno.EIO if disk.failed else Errno.NONE

    async def _answer_when_durable(self, disk: Disk, batch: Sequence[Mutation], done: asyncio.Future[None]) -> None:
        error = await self.flush(disk)
        for mutation in batch:
            if error and mutation.fua and not mutation.error:
                mutation.error = error
        if not done.done():
            done.set_result(None)

    def _syncer(self, disk: Disk) -> Callable[[], Awaitable[str]]:
        async def sync() -> str:
            if not disk.failed:
                disk.unsynced = False
                try:
                    await self.workers.run(disk.file.sync)
                except OSError as error:
                    # For good: pages that failed to reach the disk count as clean now (R17).
                    disk.failed = f"{disk.config.path} can't be made durable: {why(error)}"
                    self.tracker.lose(LostReason.DISK_FAILED, disk.failed)
            return disk.failed

        return sync

    async def _checkpoint(self) -> HotNote | None:
        """Make durable, on the disks and in the log or map, all that was changed before (hot regions)."""
        pairs = zip(self.disks, self._syncs, strict=True)
        syncs = [sync.begin() for disk, sync in pairs if disk.unsynced or sync.running]
        note = await self.tracker.checkpoint()
        for sync in syncs:
            await asyncio.shield(sync)
        return None if any(disk.failed for disk in self.disks) else note

    async def cut(self, reason: SealReason) -> Cut:
        """Seal the current segment now; durable when this returns. Raises InvalidStateError if nothing is tracked."""
        self.orders.check()
        return standing_cut(self) or await self.tracker.cut(reason)

    # --- tracking ---------------------------------------------------------------------------------------------------

    async def begin(self, epoch: bytes) -> None:
        """Track in a fresh log of ``epoch``: what was changed before is on the disks when this returns (R6).

        A no-op if that epoch is tracked. Raises InvalidStateError for an epoch that was used before, NoSpaceError or
        StorageError where no log can be begun.
        """

        async def switch() -> None:
            self.orders.check()
            self.tracker.begin(epoch)

        async with self.orders:
            if await self.tracker.prepare_begin(epoch):
                try:
                    await self._heat_before_tracking()
                    await self.turns.take(switch)
                finally:
                    if self._hot is not None and not self.tracker.is_tracked:
                        self._hot.not_begun()
                await self.tracker.finish_begin()

    async def _heat_before_tracking(self) -> None:
        """Make durable what was changed untracked: no region tells of it, and a compare may read it before power loss.

        Raises StorageError.
        """
        if self._hot is None or self.tracker.is_tracked:
            return
        self._hot.begin()
        # Changes from before that are still under way have no hot regions.
        await self.turns.take(Turns.nothing)
        for sync in self._syncs:
            if error := await sync.run():
                raise StorageError(f"Tracking could not be begun: {error}.", "Repair or replace the disk.")
        await self._hot.renew()

    async def end_tracking(self) -> None:
        """End tracking by order and drop the log."""
        async with self.orders:
            await self.tracker.end()

    async def abandon(self, epoch: bytes) -> None:
        """Give up the log of ``epoch``, whose resync was cancelled; a no-op unless that epoch is tracked."""
        async with self.orders:
            self.tracker.abandon(epoch)

    async def leave_log(self, text: str) -> None:
        """See the tracker."""
        async with self.orders:
            await self.tracker.leave_log(text)

    def set_log_limit(self, limit: int) -> None:
        """The bytes that log files may take. Raises UsageError for less than two files."""
        self.tracker.files.set_limit(limit)

    async def locate(self, epoch: bytes, segment: int, position: Position | None = None) -> Place:
        """The place of ``position``, or of the start of ``segment``. Raises NotFoundError or StorageError."""
        return await locate(self._ports, self.tracker.files, epoch, segment, position)

    # --- reading ----------------------------------------------------------------------------------------------------

    def read_cached(self, disk: Disk, offset: int, length: int) -> bytes | None:
        """The bytes if they are in the page cache, else None: reading them in a worker finds what is wrong."""
        try:
            return disk.file.read_cached(offset, length)
        except OSError:
            return None

    async def read(self, disk: Disk, offset: int, length: int) -> bytes:
        """Raises OSError."""
        data = await self.workers.run(disk.file.read, offset, length)
        if len(data) != length:
            raise OSError(errno.EIO, "the file has become shorter", disk.config.path)
        return data


def _inline_zeroes(disk: Disk) -> int:
    """Bytes that may be zeroed at once on the loop: of a device none, which is waited for."""
    return 0 if disk.block else INLINE_ZEROES
