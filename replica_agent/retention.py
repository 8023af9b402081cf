"""Which recovery points are kept, and which undo logs are to be merged: pure decisions on records.

A VM's undo logs form a chain from the oldest point to the newest, which is the disks themselves. A point that is not
kept any more only loses its mark, which costs nothing; the logs around it are merged later, and only then is space
free. Logs before the oldest point that is kept lead nowhere, and are deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace

import msgspec

from replica_agent.record import ExportsRecord, PointsRecord, PositionRecord, UndoRecord

HOUR = 3600.0
DAY = 24 * HOUR
WEEK = 7 * DAY
MONDAY = 4 * DAY
"""The first Monday of the Unix epoch, at midnight UTC."""
NEWEST_DEFAULT = 4
HOURLY_DEFAULT = 24
MERGE_AT_ONCE = 8
"""So many neighbours of one level are merged as soon as they are there: a byte is copied few times on its way."""
LIMIT_LEAST = 64 << 20
"""The limit in bytes where none is set and the disks are small."""
SQUEEZED = 7 / 8
"""Pinned points stay as long as their merged logs would have at most this part of the limit."""
SQUEEZING = 2
"""Until they are merged, all undo logs may have so many times the limit."""


@dataclass(frozen=True, slots=True)
class Retention:
    """``newest`` cuts are kept, and so many points that stand for an hour, a day or a week each.

    All undo logs together have at most ``limit`` bytes, and no point is sealed more than ``age`` seconds before the
    newest one; 0: any.
    """

    newest: int = NEWEST_DEFAULT
    hourly: int = HOURLY_DEFAULT
    limit: int = 0
    daily: int = 0
    weekly: int = 0
    age: float = 0.0

    @property
    def keeps_older(self) -> bool:
        """Whether any point but the newest is kept."""
        return self.newest > 1 or self.hourly > 0 or self.daily > 0 or self.weekly > 0

    def with_own(self, own: PointsRecord, disk_bytes: int) -> Retention:
        """With what a VM has of its own in their place; without a limit its undo logs may have as much as its disks."""
        limit = self.limit if own.limit_bytes is None else own.limit_bytes
        return Retention(
            self.newest if own.newest is None else own.newest,
            self.hourly if own.hourly is None else own.hourly,
            limit or max(LIMIT_LEAST, disk_bytes),
            self.daily if own.daily is None else own.daily,
            self.weekly if own.weekly is None else own.weekly,
            self.age if own.age_seconds is None else own.age_seconds,
        )


@dataclass(frozen=True, slots=True)
class LostPoints:
    """When points were last deleted, or not kept, for want of room (seconds since the Unix epoch), and why."""

    time: float
    text: str


def first_of(times: Sequence[float], period: float, start: float = 0.0) -> list[bool]:
    """Which of the points, the oldest first, stand for their period of time: the first of each.

    A period that comes again because a clock was set back is another one: so the points after it are not lost to the
    ones before it.
    """
    periods = [(time - start) // period for time in times]
    return [index == 0 or periods[index - 1] != each for index, each in enumerate(periods)]


def hourly_of(times: Sequence[float]) -> list[bool]:
    """Which of the points are the first of their hour."""
    return first_of(times, HOUR)


def daily_of(times: Sequence[float]) -> list[bool]:
    """Which of the points are the first of their day, in UTC: so it is the first of its hour, too."""
    return first_of(times, DAY)


def weekly_of(times: Sequence[float]) -> list[bool]:
    """Which of the points are the first of their week, which begins with Monday, in UTC."""
    return first_of(times, WEEK, MONDAY)


def thinned(
    logs: Sequence[UndoRecord],
    newest_time: float,
    rules: Retention,
    held: Set[int],
    pinned: Set[int] = frozenset(),
    *,
    now: float | None = None,
) -> list[UndoRecord]:
    """The undo logs with the marks of the points that are kept.

    ``newest_time`` is when the newest point was sealed, by the primary's clock; a later time than ``now``, by ours,
    ages no point. ``held`` are the ``first`` numbers of the logs whose point somebody reads, or an export shows;
    ``pinned`` those of points that only the limit may end, and last. Logs that lead to nothing are left out, and the
    oldest points where all have more than the limit.
    """
    kept = _kept_by_rules(logs, newest_time, rules, newest_time if now is None else min(now, newest_time))
    return _limited(_marked(logs, kept | held | pinned), rules, held, pinned)


def _kept_by_rules(logs: Sequence[UndoRecord], newest_time: float, rules: Retention, now: float) -> set[int]:
    """The ``first`` numbers of the logs of the points that the rules keep, but for the limit in bytes."""
    marked = [log for log in logs if log.point]
    times = [*(log.older_time for log in marked), newest_time]
    kept = {log.first for log in marked[max(0, len(marked) - max(0, rules.newest - 1)) :]}
    for count, flags in (
        (rules.hourly, hourly_of(times)),
        (rules.daily, daily_of(times)),
        (rules.weekly, weekly_of(times)),
    ):
        found = [log.first for log, is_first in zip(marked, flags, strict=False) if is_first]
        # The newest point may stand for the present one.
        left = count - (1 if flags[-1] else 0)
        kept |= set(found[len(found) - max(0, min(left, len(found))) :])
    if rules.age:
        kept -= {log.first for log in marked if log.older_time < now - rules.age}
    return kept


def _marked(logs: Sequence[UndoRecord], kept: Set[int]) -> list[UndoRecord]:
    """The logs with the marks of those points only, without the ones that lead nowhere."""
    result = [log if log.point == (log.point and log.first in kept) else _unmarked(log) for log in logs]
    return result[next((index for index, log in enumerate(result) if log.point), len(result)) :]


def _limited(logs: list[UndoRecord], rules: Retention, held: Set[int], pinned: Set[int]) -> list[UndoRecord]:
    """Without the oldest points where all have more than the limit.

    Where the oldest is pinned the others go first: they lose their marks, the oldest first, and merging frees what they
    took. While that is not done there may be more than the limit.
    """
    while logs and 0 < rules.limit < total(logs):
        if logs[0].first in pinned and total(logs) <= SQUEEZING * rules.limit:
            squeezed = _squeezed(logs, rules, held | pinned)
            if least(squeezed) <= SQUEEZED * rules.limit:
                return squeezed
        logs = without_oldest(logs)
    return logs


def _squeezed(logs: list[UndoRecord], rules: Retention, kept: Set[int]) -> list[UndoRecord]:
    """With as few points less, the oldest first and none of ``kept``, as the rest may fit into the limit with."""
    result = list(logs)
    for index, log in enumerate(logs):
        if least(result) <= SQUEEZED * rules.limit:
            break
        if log.point and log.first not in kept:
            result[index] = _unmarked(log)
    return result


def total(logs: Sequence[UndoRecord]) -> int:
    """Bytes of all these logs."""
    return sum(log.length for log in logs)


def least(logs: Sequence[UndoRecord]) -> int:
    """Bytes that are left at least when everything between two points is merged."""
    return sum(max(log.length for log in logs[start:stop]) for start, stop in _runs(logs))


def _runs(logs: Sequence[UndoRecord]) -> Iterator[tuple[int, int]]:
    """From each point to the next one: slices of the logs."""
    starts = [index for index, log in enumerate(logs) if log.point or index == 0]
    yield from zip(starts, [*starts[1:], len(logs)], strict=False)


def exported(logs: Sequence[UndoRecord], exports: ExportsRecord) -> set[int]:
    """The ``first`` numbers of the logs whose point an export on record shows, whether or not it is served just now."""
    return logs_of(logs, [export.position for export in exports.kept])


def pinned_of(logs: Sequence[UndoRecord], points: PointsRecord) -> set[int]:
    """The ``first`` numbers of the logs whose point an administrator has pinned."""
    return logs_of(logs, [mark.position for mark in points.marks if mark.pinned])


def logs_of(logs: Sequence[UndoRecord], positions: Sequence[PositionRecord]) -> set[int]:
    """The ``first`` numbers of the logs that begin at one of these points."""
    return {log.first for log in logs if log.point and log.older in positions}


@dataclass(frozen=True, slots=True)
class PinnedCost:
    """What pinned points cost: bytes of undo logs, at least; and whether the oldest of all points is pinned."""

    bytes: int
    oldest: bool


def pinned_cost(points: PointsRecord) -> PinnedCost:
    """What of the undo logs would be there for the pinned points alone, if all between them were merged."""
    pinned = pinned_of(points.logs, points)
    return PinnedCost(least(_marked(points.logs, pinned)), bool(points.logs) and points.logs[0].first in pinned)


def cut_short(
    logs: Sequence[UndoRecord],
    newest_time: float,
    rules: Retention,
    held: Set[int],
    pinned: Set[int] = frozenset(),
    *,
    now: float | None = None,
) -> bool:
    """Whether the limit costs points that :func:`thinned` would keep without it."""
    if not 0 < rules.limit < total(logs):
        return False
    unlimited = thinned(logs, newest_time, replace(rules, limit=0), held, pinned, now=now)
    limited = thinned(logs, newest_time, rules, held, pinned, now=now)
    return sum(log.point for log in unlimited) > sum(log.point for log in limited)


def _unmarked(log: UndoRecord) -> UndoRecord:
    return msgspec.structs.replace(log, point=False)


def without_oldest(logs: Sequence[UndoRecord]) -> list[UndoRecord]:
    """The undo logs without those that lead to the oldest point."""
    later = next((index for index, log in enumerate(logs) if index and log.point), len(logs))
    return list(logs[later:])


def merge_next(record: PointsRecord, rules: Retention) -> tuple[int, int] | None:
    """Which logs to merge next, as a slice; None if there are none.

    Between two points that are both kept for good everything becomes one log. Where the newer one still moves on with
    the newest cuts, neighbours of one level are merged when there are MERGE_AT_ONCE of them; and where it is going to
    be left out before the older one is, whatever their levels. Above the limit, where pinned points are, everything
    between two points is merged.
    """
    logs = record.logs
    runs = list(_runs(logs))
    ranks = _ranks([logs[start] for start, _ in runs], rules, pinned_of(logs, record))
    squeeze = 0 < rules.limit < total(logs)
    for number, (start, stop) in enumerate(runs):
        # Of the points after this run the disks are the newest.
        settled = len(runs) - number > rules.newest and stop < len(logs)
        final = settled and ranks[number + 1] >= ranks[number]
        if stop - start > 1 and (final or squeeze or (settled and stop - start >= MERGE_AT_ONCE)):
            return start, min(stop, start + MERGE_AT_ONCE)
        for low in range(start, stop - MERGE_AT_ONCE + 1):
            if all(log.level == logs[low].level for log in logs[low : low + MERGE_AT_ONCE]):
                return low, low + MERGE_AT_ONCE
    return None


def _ranks(points: Sequence[UndoRecord], rules: Retention, pinned: Set[int]) -> list[int]:
    """How long each of the points, the oldest first, is going to be kept, compared with the others."""
    times = [log.older_time for log in points]
    daily = daily_of(times) if rules.daily else [False] * len(times)
    weekly = weekly_of(times) if rules.weekly else [False] * len(times)
    return [
        3 if log.first in pinned else 2 if of_week else 1 if of_day else 0
        for log, of_day, of_week in zip(points, daily, weekly, strict=True)
    ]
