"""The hot-region map: regions that were written lately are on record, durably, before the first write into them (R2).

After power loss only these regions are in doubt: everything else was in the log, or acknowledged, and on the disk when
its region was let go of (R29). ``docs/maps.md`` has the file, ``docs/tap.md`` the reasoning.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from primary_agent.tap.disks import Disk, Range
from primary_agent.tap.ports import TapPorts
from primary_agent.tap.tasks import SharedSync, Tasks
from shared.map_file import MapFile
from shared.nbd.backend import Mutation

TOUCHED = 4
"""Heat of a region that was written since the last checkpoint began; each checkpoint takes one away."""
IDLE = 1
"""Heat at which a checkpoint lets a region go even where there is plenty of room."""
CHECKPOINT_SECONDS = 30.0
LEASE_SECONDS = 10.0
"""For so long the map vouches for the disks without being renewed (R30)."""
LEASE_SLACK_SECONDS = 0.25

NO_LOG = (1 << 63) - 1
VOID = 1
"""A lease that says that tracking was lost while the state could not say so."""
_NOTE = struct.Struct("<QQQ16s")


@dataclass(frozen=True, slots=True)
class HotNote:
    """What the map says beside its bits.

    ``lease_ns``: until then (nanoseconds, Unix epoch) the disks' files may have been written without the map being
    renewed. ``file`` and ``offset`` are the place in the log of ``epoch`` up to which the log is known to be durable
    and no region that is not hot is in doubt: a log that ends earlier has lost what it must have. Every log does once
    ``file`` is NO_LOG: the dirty map has taken its place.
    """

    lease_ns: int = 0
    file: int = 0
    offset: int = 0
    epoch: bytes = bytes(16)

    def encode(self) -> bytes:
        return _NOTE.pack(self.lease_ns, self.file, self.offset, self.epoch)

    @classmethod
    def decode(cls, note: bytes) -> HotNote:
        """Of an empty note: nothing is known."""
        return cls(*_NOTE.unpack(note)) if len(note) == _NOTE.size else cls()


class HotRegions:
    """The hot regions of one VM's disks. Used on the event loop only.

    ``limit`` is the most regions that are hot at a time. ``checkpoint`` makes disks and tracking durable up to its
    call, and returns the place in the log that this covers, or None where it failed.
    """

    def __init__(
        self,
        ports: TapPorts,
        tasks: Tasks,
        disks: Sequence[Disk],
        map_file: MapFile,
        limit: int,
        checkpoint: Callable[[], Awaitable[HotNote | None]],
    ) -> None:
        self.active = False
        """Whether writes have to wait for their regions: only while something is tracked."""
        self.failure = ""
        """Why the map can't be written any more; from then on it vouches for nothing that is new (R30)."""
        self.on_failure: Callable[[str], None] = lambda _failure: None
        """Told why, before the first write that the map does not vouch for."""
        self.limit = limit
        self._clock = ports.clock
        self._workers = ports.workers
        self._tasks = tasks
        self._disks = disks
        self._map = map_file
        self._checkpoint = checkpoint
        self._shift = map_file.region_bits
        self._heat = [bytearray(-(-disk.size >> self._shift)) for disk in disks]
        self._hot: set[tuple[int, int]] = set()
        self._wanted: set[tuple[int, int]] = set()
        self._waiting: dict[tuple[int, int], int] = {}
        self._note = HotNote.decode(map_file.note)
        self._voided = False
        self._was_void = False
        self._lease_until = -1.0
        """Monotonic; from then on a write has to wait until the lease is renewed."""
        self._renewing = False
        self._sync = SharedSync(tasks, self._record)
        self._checkpoints = asyncio.Lock()
        """One at a time: what a later one has cooled was perhaps written after an earlier one began to sync."""
        self._noting = asyncio.Lock()
        """One note at a time is not durable yet, so that power loss tears no more than one."""
        self._cooling: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    # --- on the hot path --------------------------------------------------------------------------------------------

    def ready(self, disk: Disk, batch: Sequence[Mutation]) -> bool:
        """Whether the batch may be written now: its regions are hot and the lease holds. Notes the use."""
        if not self.active:
            return True
        heat, shift = self._heat[disk.slot], self._shift
        for mutation in batch:
            first = mutation.offset >> shift
            last = (mutation.offset + mutation.length - 1) >> shift
            if not heat[first] or not heat[last]:
                return False
            heat[first] = heat[last] = TOUCHED
            if last - first > 1:
                if not all(heat[first:last]):
                    return False
                heat[first:last] = bytes((TOUCHED,)) * (last - first)
        left = self._lease_until - self._clock.monotonic()
        if left < LEASE_SECONDS / 2:
            if left < 0:
                return False
            self._renew()
        return True

    # --- warming ----------------------------------------------------------------------------------------------------

    async def warm(self, disk: Disk, batch: Sequence[Mutation]) -> None:
        """Wait until the batch may be written. Its regions stay hot until it was: call ``ready``, then write at once.

        Never fails: where the map can't be written, waiting for the end of its lease makes a later start compare all.
        """
        regions = {
            (disk.slot, region)
            for mutation in batch
            for region in range(
                mutation.offset >> self._shift, ((mutation.offset + mutation.length - 1) >> self._shift) + 1
            )
        }
        for region in regions:
            self._waiting[region] = self._waiting.get(region, 0) + 1
        try:
            while self.active and not self.ready(disk, batch):
                if self.failure:
                    self.on_failure(self.failure)
                    # From the end of the lease on, a start after power loss finds the disks written later than that.
                    await self._outlive_lease()
                    self.active = False
                    return
                self._wanted |= regions - self._hot
                await self._sync.run()
        finally:
            for region in regions:
                self._waiting[region] -= 1
                if not self._waiting[region]:
                    del self._waiting[region]

    async def _outlive_lease(self) -> None:
        left = self._lease_until + LEASE_SLACK_SECONDS - self._clock.monotonic()
        if left > 0:
            await asyncio.sleep(left)

    def _take(self, regions: set[tuple[int, int]]) -> None:
        self._hot |= regions
        for slot, region in regions:
            self._heat[slot][region] = TOUCHED

    def _renew(self) -> None:
        if not self._renewing and not self.failure:
            self._renewing = True
            self._tasks.spawn(self._renew_now())

    async def _renew_now(self) -> None:
        try:
            await self._sync.run()
        finally:
            self._renewing = False

    async def _record(self) -> str:
        """One round: make room, then bits and lease durable together. First touches share it."""
        if self.failure:
            return self.failure
        while self._wanted and self.active and (count := len(self._hot)) + len(self._wanted - self._hot) > self.limit:
            if not await self._cool(pressed=True) or len(self._hot) == count:
                # All that is hot is being written: the guest comes first (I14).
                break
        async with self._noting:
            wanted, self._wanted = self._wanted, set()
            lease_ns = VOID if self._voided else int((self._clock.wall() + LEASE_SECONDS) * 1e9)
            until = self._clock.monotonic() + LEASE_SECONDS
            for slot, region in wanted:
                self._map.set_range(self._disks[slot].index, region << self._shift, 1)
            self._note = HotNote(lease_ns, self._note.file, self._note.offset, self._note.epoch)
            if not await self._write_note():
                return self.failure
            self._lease_until = until
            self._take(wanted)
        if self._cooling is None and self.active:
            self._cooling = self._tasks.spawn(self._cool_now_and_then())
        return ""

    async def _write_note(self) -> bool:
        """Make bits and note durable together; False where that failed, once and for all (R17)."""
        try:
            self._map.write()
            self._map.write_note(self._note.encode())
            await self._workers.run(self._map.sync)
        except OSError as error:
            self.failure = self.failure or error.strerror or str(error)
        return not self.failure

    # --- cooling ----------------------------------------------------------------------------------------------------

    async def _cool_now_and_then(self) -> None:
        """Checkpoints while there are hot regions; ends where there are none."""
        try:
            while self._hot and not self.failure:
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHECKPOINT_SECONDS):
                        await self._ended.wait()
                        return
                await self._cool(pressed=False)
        finally:
            self._cooling = None

    async def _cool(self, *, pressed: bool) -> bool:
        """Let go of regions that were not written since this began; whether that could be done."""
        async with self._checkpoints:
            return await self._cool_alone(pressed=pressed)

    async def _cool_alone(self, *, pressed: bool) -> bool:
        busy = {disk.slot for disk in self._disks if disk.stepping}
        for slot, region in self._hot:
            self._heat[slot][region] -= self._heat[slot][region] > IDLE
        note = await self._checkpoint()
        if note is None or self.failure:
            return False
        busy |= {disk.slot for disk in self._disks if disk.stepping}
        most = TOUCHED - 1 if pressed else IDLE
        cold = {
            (slot, region)
            for slot, region in self._hot
            if self._heat[slot][region] <= most and slot not in busy and (slot, region) not in self._waiting
        }
        async with self._noting:
            # What must be in the log has to be durable before the regions count as cold.
            self._note = HotNote(self._note.lease_ns, note.file, note.offset, note.epoch)
            if not await self._write_note():
                return False
        cold = {(slot, region) for slot, region in cold if self._heat[slot][region] <= most}
        for slot, region in cold:
            self._heat[slot][region] = 0
            self._map.clear(self._disks[slot].index, region)
        self._hot -= cold
        # Not synced: a bit that comes back after power loss is compared in vain, and nothing else.
        try:
            self._map.write()
        except OSError as error:
            self.failure = self.failure or error.strerror or str(error)
            return False
        return True

    # --- start and stop ---------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over the bits in the map as hot. They may not be durable, but the lease has to be renewed first."""
        for disk in self._disks:
            self._take({(disk.slot, region) for region in self._map.regions(disk.index)})

    async def renew(self) -> None:
        """Have the lease cover whatever was written until now."""
        await self._sync.run()

    def begin(self) -> None:
        """Something is tracked from now on."""
        self.active = not self.failure
        self._was_void, self._voided = self._voided, False

    def not_begun(self) -> None:
        """What ``begin`` was for did not come about."""
        self.active = False
        if self._was_void:
            self.void()

    def void(self) -> None:
        """Say in the state's place that tracking was lost: in the page cache at once, durable soon. Never fails.

        Else a start would rely on a lease that still runs, for writes that nobody tracked.
        """
        self.active = False
        if not self._voided:
            self._voided, self._lease_until = True, -1.0
            self._note = HotNote(VOID, self._note.file, self._note.offset, self._note.epoch)
            with suppress(OSError):
                self._map.write_note(self._note.encode())
            self._tasks.spawn(self.renew())

    def clear(self, place: HotNote) -> None:
        """Nothing is in doubt: all that was written is durable, and tracked up to ``place``. Raises OSError."""
        self._map.clear_all()
        self._map.write()
        # Until now everything is vouched for; the next tap may stop before it has written anything.
        lease_ns = VOID if self._voided else int(self._clock.wall() * 1e9)
        place = HotNote(lease_ns, place.file, place.offset, place.epoch)
        self._map.write_note(place.encode())

    def log_place(self, epoch: bytes) -> tuple[int, int]:
        """File and offset up to which the log of ``epoch`` was durable at the last checkpoint; zeroes before one."""
        return (self._note.file, self._note.offset) if self._note.epoch == epoch else (0, 0)

    def ranges(self) -> Iterator[tuple[Disk, list[Range]]]:
        """The hot regions of each disk as ranges of bytes."""
        for disk in self._disks:
            hot = sorted(region for slot, region in self._hot if slot == disk.slot)
            size = 1 << self._shift
            yield disk, [(region * size, min(size, disk.size - region * size)) for region in hot]

    def hot_bytes(self) -> int:
        """Bytes of the regions that power loss would leave in doubt now."""
        size = 1 << self._shift
        # Every status tells this, on the thread of the guest's I/O: counted, and a disk's last region may be a part.
        missing = sum(-disk.size % size for disk in self._disks if self._heat[disk.slot][-1])
        return len(self._hot) * size - missing

    async def settle(self) -> None:
        """End the background work."""
        self.active = False
        self._ended.set()
        await self._sync.settle()
        if self._cooling is not None:
            await asyncio.wait({self._cooling})

    def close(self) -> None:
        self._map.close()
