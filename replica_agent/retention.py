"""Which recovery points are kept, and which undo logs are to be merged: pure decisions on records.

A VM's undo logs form a chain from the oldest point to the newest, which is the disks themselves. A point that is not
kept any more only loses its mark, which costs nothing; the logs around it are merged later, and only then is space
free. Logs before the oldest point that is kept lead nowhere, and are deleted.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import msgspec

from replica_agent.record import ExportsRecord, PointsRecord, UndoRecord

HOUR = 3600.0
NEWEST_DEFAULT = 4
HOURLY_DEFAULT = 24
MERGE_AT_ONCE = 8
"""So many neighbours of one level are merged as soon as they are there: a byte is copied few times on its way."""


@dataclass(frozen=True, slots=True)
class Retention:
    """``newest`` cuts and ``hourly`` points are kept; all undo logs together have at most ``limit`` bytes (0: any)."""

    newest: int = NEWEST_DEFAULT
    hourly: int = HOURLY_DEFAULT
    limit: int = 0

    @property
    def keeps_older(self) -> bool:
        """Whether any point but the newest is kept."""
        return self.newest > 1 or self.hourly > 0


@dataclass(frozen=True, slots=True)
class LostPoints:
    """When points were last deleted, or not kept, for want of room (seconds since the Unix epoch), and why."""

    time: float
    text: str


def hourly_of(times: Sequence[float]) -> list[bool]:
    """Which of the points, the oldest first, stand for their hour: the first of each.

    An hour that comes again because a clock was set back is another one: so the points after it are not lost to the
    ones before it.
    """
    hours = [time // HOUR for time in times]
    return [index == 0 or hours[index - 1] != hour for index, hour in enumerate(hours)]


def thinned(logs: Sequence[UndoRecord], newest_time: float, rules: Retention, pinned: Set[int]) -> list[UndoRecord]:
    """The undo logs with the marks of the points that are kept.

    ``newest_time`` is when the newest point was sealed; ``pinned`` are the ``first`` numbers of the logs whose point
    somebody reads, or an export shows. Logs that lead to nothing are left out, and the oldest points where all have
    more than the limit.
    """
    marked = [log for log in logs if log.point]
    hourly = hourly_of([*(log.older_time for log in marked), newest_time])
    kept = {log.first for log in marked[max(0, len(marked) - max(0, rules.newest - 1)) :]}
    of_hours = [log.first for log, is_first in zip(marked, hourly, strict=False) if is_first]
    # The newest point may stand for the present hour.
    count = rules.hourly - (1 if hourly[-1] else 0)
    kept |= set(of_hours[len(of_hours) - max(0, min(count, len(of_hours))) :])
    kept |= pinned & {log.first for log in marked}
    result = [log if log.point == (log.first in kept) else _unmarked(log) for log in logs]
    total = sum(log.length for log in result)
    while result and (not result[0].point or 0 < rules.limit < total):
        total -= result[0].length
        del result[0]
    return result


def exported(logs: Sequence[UndoRecord], exports: ExportsRecord) -> set[int]:
    """The ``first`` numbers of the logs whose point an export on record shows, whether or not it is served just now."""
    shown = [export.position for export in exports.kept]
    return {log.first for log in logs if log.point and log.older in shown}


def cut_short(logs: Sequence[UndoRecord], newest_time: float, rules: Retention, pinned: Set[int]) -> bool:
    """Whether the limit costs points that :func:`thinned` would keep without it."""
    if not 0 < rules.limit < sum(log.length for log in logs):
        return False
    unlimited = thinned(logs, newest_time, Retention(rules.newest, rules.hourly), pinned)
    return len(unlimited) > len(thinned(logs, newest_time, rules, pinned))


def _unmarked(log: UndoRecord) -> UndoRecord:
    return msgspec.structs.replace(log, point=False)


def without_oldest(logs: Sequence[UndoRecord]) -> list[UndoRecord]:
    """The undo logs without those that lead to the oldest point."""
    later = next((index for index, log in enumerate(logs) if index and log.point), len(logs))
    return list(logs[later:])


def merge_next(record: PointsRecord, newest: int) -> tuple[int, int] | None:
    """Which logs to merge next, as a slice; None if there are none.

    Between two points that are both kept for good everything becomes one log. Where the newer one still moves on with
    the newest cuts, neighbours of one level are merged when there are MERGE_AT_ONCE of them.
    """
    logs = record.logs
    starts = [index for index, log in enumerate(logs) if log.point or index == 0]
    for number, start in enumerate(starts):
        stop = starts[number + 1] if number + 1 < len(starts) else len(logs)
        points_after = len(starts) - number
        # Of the points after this run the disks are the newest.
        if stop - start > 1 and points_after > newest and stop < len(logs):
            return start, min(stop, start + MERGE_AT_ONCE)
        for low in range(start, stop - MERGE_AT_ONCE + 1):
            if all(log.level == logs[low].level for log in logs[low : low + MERGE_AT_ONCE]):
                return low, low + MERGE_AT_ONCE
    return None
