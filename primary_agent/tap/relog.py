"""Logs again what the disks hold: a replica that differs is brought right in order, by the ordinary way.

Without ranges it only goes to a moment at which everything that is logged is on the disks, and tells that place.
"""

from __future__ import annotations

from collections.abc import Sequence

from primary_agent.tap.disks import Disk, Range
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.locate import Place
from primary_agent.tap.watch import why
from shared.errors import InvalidStateError, NoSpaceError, StorageError, UsageError
from shared.ports import Buffer
from shared.tap_control import RELOG_BYTES_MAX

Group = tuple[list[bytes], list[Buffer], list[int]]


async def relog(engine: TapEngine, index: int, ranges: Sequence[Range]) -> Place:
    """Log anew what disk ``index`` holds in ``ranges`` (offset, length), in the order of the guest's writes.

    Returns the place behind it: everything up to there is on the disks. Raises UsageError for ranges that are too long
    or outside the disk, StorageError where they can't be read, NoSpaceError where the log is nearly full, and
    InvalidStateError where the writes are not tracked; nothing is logged then.
    """
    disk = _checked(engine, index, ranges) if ranges else None
    if disk is not None:
        # Outside the turn, so that the guest does not wait for the disk.
        await engine.workers.run(_read, disk, ranges)
    places: list[Place] = []

    async def turn() -> None:
        if disk is not None:
            engine.tracker.watch.check_unchanged((disk,))
            _append(engine, await engine.workers.run(_read, disk, ranges))
        log = engine.tracker.log
        if log is None:
            raise InvalidStateError("The tap does not track the writes.", "Resynchronize the VM.", code="not_tracking")
        engine.tracker.tell_progress()
        places.append(Place(*log.place, log.position))

    await engine.turns.take(turn)
    return places[0]


def _checked(engine: TapEngine, index: int, ranges: Sequence[Range]) -> Disk:
    disk = next((disk for disk in engine.disks if disk.index == index), None)
    if disk is None:
        raise UsageError(f"The VM has no disk {index}.")
    if any(length <= 0 or offset < 0 or offset + length > disk.size for offset, length in ranges):
        raise UsageError(f"A range lies outside of disk {index}, which has {disk.size} bytes.")
    if sum(length for _, length in ranges) > RELOG_BYTES_MAX:
        raise UsageError(f"The ranges have more than {RELOG_BYTES_MAX} bytes.", "Ask for fewer at a time.")
    files = engine.tracker.files
    if files.limit - files.used_bytes < files.file_bytes:
        # It would be the guest's writes that find no room then, and with them tracking would be lost.
        raise NoSpaceError("The log is nearly full.", "Try again when the replica has taken more of it.")
    return disk


def _read(disk: Disk, ranges: Sequence[Range]) -> list[Group]:
    """Blocks. Raises StorageError."""
    try:
        return list(disk.read_anew(ranges))
    except OSError as error:
        raise StorageError(f"{disk.config.path} can't be read: {why(error)}.", "Repair or replace the disk.") from error


def _append(engine: TapEngine, groups: Sequence[Group]) -> None:
    tracker = engine.tracker
    for entries, payloads, sizes in groups:
        if tracker.log is not None:
            try:
                tracker.log.append(entries, payloads, sizes, tracker.log.stamp())
            except OSError as error:
                tracker.lose_log(error)
