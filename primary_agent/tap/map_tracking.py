"""Tracking in the maps: the dirty map takes the place of a log that can't go on, is completed, and is let go (R28)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from primary_agent.tap.changes import LoggedChanges, LogUnreadableError, read_changes
from primary_agent.tap.dirty_map import DirtyMap
from primary_agent.tap.disks import Disk, Range
from primary_agent.tap.hot_regions import HotRegions
from primary_agent.tap.log_files import LogFile
from primary_agent.tap.ports import TapPorts
from shared.nbd.backend import Mutation
from shared.tap_control import LostReason

ADD_AT_ONCE = 4096
"""Ranges that are brought into the dirty map before others get their turn."""
WHOLE = frozenset({LostReason.LOG_FULL, LostReason.ABANDONED, LostReason.DISKS_CHANGED, LostReason.REVERSED})
"""Losses of a log that has all that was ever written to it."""
BOUNDED = WHOLE | {LostReason.LOG_FAILED, LostReason.BEGIN_FAILED}
"""Losses of the log after which the dirty map still names all that changed."""
NOT_WHOLE = frozenset({LostReason.LOG_FAILED, LostReason.UNCLEAN_STOP})
"""Losses after which the log may lack what it had; behind the last checkpoint only the hot regions tell of that."""


class MapTracking:
    """Both maps of one VM, as tracking uses them. Errors are the caller's, who knows what is lost by them."""

    def __init__(self, ports: TapPorts, disks: Sequence[Disk], dirty: DirtyMap | None) -> None:
        self.dirty = dirty
        """The dirty map; None where there is none that can be written."""
        self.hot: HotRegions | None = None
        """The hot-region map, once the engine has set it; None where there is none that can be written."""
        self._ports = ports
        self._disks = disks

    def in_force(self) -> bool:
        return self.dirty is not None and self.dirty.in_force

    @property
    def is_synced(self) -> bool:
        """Whether all that the dirty map says, if it is in force, has been written before the last sync of it began."""
        return self.dirty is None or not self.dirty.in_force or not self.dirty.unsynced

    def is_complete(self, epoch: bytes) -> bool:
        """Whether the dirty map has wholly taken the place of the log of ``epoch``."""
        return self.dirty is not None and self.dirty.is_complete(epoch)

    def is_older(self, epoch: bytes) -> bool:
        """Whether the dirty map was in force before tracking in ``epoch`` began, and still is."""
        return self.dirty is not None and self.dirty.in_force and self.dirty.note.epoch != epoch

    def covers(self, reason: LostReason) -> bool:
        """Whether the maps can name all that changed when the log goes on no more for ``reason``."""
        if self.dirty is None or self.dirty.broken or reason not in BOUNDED:
            return False
        # A log that failed may not hold what was written to it; then only the hot regions tell where that was.
        return reason is not LostReason.LOG_FAILED or (self.hot is not None and self.hot.active)

    def mark(self, disk: Disk, batch: Sequence[Mutation]) -> None:
        """The bits of a batch are in the page cache when this returns. Raises OSError."""
        assert self.dirty is not None
        self.dirty.mark(disk, batch)

    def begin(self, epoch: bytes, changes: LoggedChanges) -> None:
        """At a start after an unclean stop: the dirty map takes the place of the log of ``epoch``. Raises OSError."""
        dirty = self.dirty
        assert dirty is not None
        if not dirty.is_complete(epoch):
            end = changes.end.segment if changes.end is not None else changes.base_segment
            dirty.begin(epoch, changes.base_segment, end, catch_up=True)
            return
        # Complete before, it stays so: until what is added now is durable, the hot regions name it.
        for index, ranges in changes.ranges.items():
            dirty.add(index, ranges)
        dirty.write()
        dirty.note_catch_up()

    async def read(self, log: Sequence[LogFile], epoch: bytes, reason: LostReason) -> LoggedChanges:
        """What the files of the log of ``epoch`` say that has changed. Raises LogUnreadableError and OSError."""
        sizes = {disk.index: disk.size for disk in self._disks}
        torn = reason in NOT_WHOLE and self.hot is not None
        durable = self.hot.log_place(epoch) if self.hot is not None else (0, 0)
        files = [file for file in log if file.header.epoch == epoch]
        # The files may begin before the map's base: what the replica has had since is in no doubt.
        after = self.dirty.note.base_segment if self.dirty is not None and self.dirty.note.epoch == epoch else 0
        return await self._ports.workers.run(
            lambda: read_changes(self._ports.files, files, sizes, after=after, durable=durable, torn=torn)
        )

    async def complete(self, changes: LoggedChanges, epoch: bytes, reason: LostReason) -> None:
        """Bring into the map what the log knew, then say durably that it is complete.

        Raises LogUnreadableError where that leaves a gap behind the map's base, and OSError.
        """
        dirty = self.dirty
        assert dirty is not None
        if not dirty.reaches(epoch, changes.base_segment):
            raise LogUnreadableError(f"the log's first segments, up to {changes.base_segment}, are missing")
        if reason not in WHOLE and self.hot is not None:
            for disk, ranges in self.hot.ranges():
                dirty.add(disk.index, ranges)
        for index, ranges in changes.ranges.items():
            for start in range(0, len(ranges), ADD_AT_ONCE):
                dirty.add(index, ranges[start : start + ADD_AT_ONCE])
                await asyncio.sleep(0)
        if epoch == dirty.note.epoch:
            dirty.keep_cuts(changes.cuts)
        dirty.write()
        await self._ports.workers.run(dirty.sync)
        dirty.complete()
        await self._ports.workers.run(dirty.sync)

    async def let_go(self) -> None:
        """Take the dirty map out of force, durably before its bits go. Raises OSError."""
        dirty = self.dirty
        assert dirty is not None
        dirty.drop()
        await self._ports.workers.run(dirty.sync)
        if not dirty.in_force:
            dirty.clear()

    def hot_ranges(self) -> list[tuple[Disk, list[Range]]]:
        """Each disk with its regions that were written lately, as far as that is known."""
        return list(self.hot.ranges()) if self.hot is not None else [(disk, []) for disk in self._disks]

    def void(self) -> None:
        """Nobody tracked what changed."""
        if self.hot is not None:
            self.hot.active = False
        if self.dirty is not None:
            self.dirty.void()

    def void_lease(self) -> None:
        """Nobody tracked what changed, and the state can't say so."""
        if self.hot is not None:
            self.hot.void()

    def close(self) -> None:
        if self.dirty is not None:
            self.dirty.file.close()
        if self.hot is not None:
            self.hot.close()
