"""Enlarges a disk's file by order, as a write of the tap's own, so that nobody takes it for somebody else's.

The configuration names the size first: from then on a start takes the file at either size. The tap goes on at the size
that it serves, until its configuration has the new one. No file is ever made smaller.
"""

from __future__ import annotations

import errno

from primary_agent.tap.disks import Disk
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.watch import why
from shared.errors import InvalidStateError, StorageError, UsageError
from shared.tap_control import DiskFile


async def enlarge(engine: TapEngine, index: int, size: int) -> DiskFile:
    """Make the file of disk ``index`` ``size`` bytes long, durably; 0 only looks at it. A no-op where it is as long.

    Raises UsageError, InvalidStateError for what can't be enlarged by the tap, and StorageError with the reason.
    """
    disk = next((disk for disk in engine.disks if disk.index == index), None)
    if disk is None:
        raise UsageError(f"The VM has no disk {index}.")
    async with engine.orders:
        if size and await _length(engine, disk) != size:
            _check(disk, size)
            await engine.turns.take(lambda: _extend(engine, disk, size))
        if size and await engine.flush(disk):
            raise StorageError(f"{disk.config.path} was enlarged, and {disk.failed}.", "Repair or replace the disk.")
        return DiskFile(size=await _length(engine, disk), block=disk.block)


def _check(disk: Disk, size: int) -> None:
    if disk.block or disk.layers is not None:
        kind = "a block device" if disk.block else "in layers"
        raise InvalidStateError(
            f"{disk.config.path} is {kind}: the tap can't enlarge it.", "Enlarge the device itself."
        )
    if disk.found_size != disk.size or size <= disk.size:
        raise InvalidStateError(
            f"{disk.config.path} has {disk.found_size} bytes, is served with {disk.size}, and would get {size}.",
            "Look at `vmreplica status`: somebody else has resized it.",
        )


async def _extend(engine: TapEngine, disk: Disk, size: int) -> None:
    """In its turn, so that nothing else writes meanwhile."""
    tracker = engine.tracker
    if tracker.is_tracked:
        if tracker.maps.hot is not None:
            # The file's times change, which has to be vouched for like those of any write (R30).
            await tracker.maps.hot.warm(disk, ())
        tracker.watch.check_unchanged((disk,))
        if not tracker.is_tracked or disk.found_size != disk.size:
            raise InvalidStateError(f"{disk.config.path} was changed by somebody else.", "See `vmreplica status`.")
        tracker.watch.about_to_write(disk)
    # Nobody takes the times that it gets for somebody else's.
    disk.stepping, disk.larger = True, size
    try:
        await _set_size(engine, disk, size)
    finally:
        disk.stepping = False
    if tracker.is_tracked:
        # The last batch is still the last one that the log tells.
        tracker.watch.saw_through(disk, disk.done_ns)


async def _set_size(engine: TapEngine, disk: Disk, size: int) -> None:
    try:
        await engine.workers.run(disk.file.truncate, size)
    except OSError as error:
        disk.larger = 0
        remedy = "Look at the volume it lies on, and its quotas."
        if error.errno == errno.EFBIG:
            remedy = "Its file system takes no files of that size: move it to another one, or choose less."
        text = f"{disk.config.path} can't be enlarged to {size} bytes: {why(error)}."
        raise StorageError(text, remedy) from error
    disk.found_size, disk.unsynced = size, True


async def _length(engine: TapEngine, disk: Disk) -> int:
    """Bytes of the disk's file, or of the device. Raises StorageError."""
    try:
        return (await engine.workers.run(disk.file.identity)).size
    except OSError as error:
        text = f"{disk.config.path} can't be looked at: {why(error)}."
        raise StorageError(text, "Check the volume it lies on.") from error
