"""Tests of which recovery points are kept and which undo logs are merged."""

from __future__ import annotations

import itertools
import random

import pytest

from replica_agent.record import MarkRecord, PointsRecord, PositionRecord, UndoRecord
from replica_agent.retention import (
    DAY,
    HOUR,
    MERGE_AT_ONCE,
    MONDAY,
    WEEK,
    PinnedCost,
    Retention,
    cut_short,
    hourly_of,
    merge_next,
    pinned_cost,
    thinned,
    without_oldest,
)

START = 1_700_000_000 // HOUR * HOUR


def log(number: int, time: float, *, length: int = 10, point: bool = True) -> UndoRecord:
    def at(segment: int) -> PositionRecord:
        return PositionRecord(epoch=b"e" * 16, segment=segment, entry=0, chain=bytes(16))

    return UndoRecord(
        first=number, last=number, older=at(number), newer=at(number + 1), older_time=time, newer_time=time,
        length=length, chain=bytes(16), point=point,
    )  # fmt: skip


class Story:
    """A replica that applies a cut every so often, with its merges made at once."""

    def __init__(self, rules: Retention) -> None:
        self.rules = rules
        self.logs: list[UndoRecord] = []
        self.time = START
        self.number = 0
        self.pinned: set[int] = set()
        self.kept: set[int] = set()
        """Pinned by an administrator."""
        self.copied = 0

    def cut(self, seconds: float, length: int = 10) -> None:
        """The disks go from the cut at hand to one that is sealed so much later."""
        self.number += 1
        self.logs.append(log(self.number, self.time, length=length))
        self.time += seconds
        self.logs = thinned(self.logs, self.time, self.rules, self.pinned, self.kept)

    def merge(self) -> None:
        while (place := merge_next(self.record, self.rules)) is not None:
            low, high = place
            chosen = self.logs[low:high]
            assert high - low >= 2
            assert not any(each.point for each in chosen[1:]), "a point that is kept was merged away"
            self.copied += sum(each.length for each in chosen)
            merged = log(chosen[0].first, chosen[0].older_time, point=chosen[0].point)
            merged.last, merged.length = chosen[-1].last, max(each.length for each in chosen)
            merged.level = max(each.level for each in chosen) + 1
            self.logs[low:high] = [merged]

    @property
    def record(self) -> PointsRecord:
        marks = [MarkRecord(position=log.older, time=0.0, pinned=True) for log in self.logs if log.first in self.kept]
        return PointsRecord(logs=self.logs, marks=marks)

    @property
    def times(self) -> list[float]:
        return [each.older_time for each in self.logs if each.point]


def test_newest_and_hourly_points_are_kept() -> None:
    story = Story(Retention(newest=4, hourly=24))
    for _ in range(30 * 120):
        story.cut(30)
        story.merge()
    newest = [story.time - 90, story.time - 60, story.time - 30]
    assert story.times[-3:] == newest
    hours = story.times[:-3]
    assert all(time % HOUR == 0 for time in hours)
    # The newest point is the first of its hour, and the 24th.
    assert story.time % HOUR == 0
    assert len(hours) == 23
    assert [b - a for a, b in itertools.pairwise(hours)] == [HOUR] * 22
    assert len(story.logs) <= 24 + 4 + 2 * MERGE_AT_ONCE
    # A byte is copied few times on its way through an hour of 120 cuts, not once with each.
    assert story.copied < 6 * story.number * 10


def test_only_the_newest() -> None:
    story = Story(Retention(newest=1, hourly=0))
    assert not story.rules.keeps_older
    for _ in range(5):
        story.cut(30)
        assert story.logs == []


def test_hourly_points_alone() -> None:
    story = Story(Retention(newest=1, hourly=3))
    for _ in range(10 * 4):
        story.cut(900)
        story.merge()
    assert [(story.time - time) / HOUR for time in story.times] == [2.0, 1.0]


def test_points_do_not_age_away_while_nothing_comes() -> None:
    """Hourly points are counted, not timed: a primary that was down for days does not cost the history before."""
    story = Story(Retention(newest=1, hourly=3))
    for _ in range(8):
        story.cut(HOUR)
    before = story.times
    story.cut(72 * HOUR)
    assert story.times == [*before[1:], story.time - 72 * HOUR]


@pytest.mark.parametrize("step", [86400.0, -86400.0])
def test_a_clock_that_is_set_costs_no_point_but_its_turn(step: float) -> None:
    """P20: times only choose the hours, and an hour that comes again is another one."""
    assert hourly_of([0.0, 1800.0, 3600.0 + step, 3700.0 + step, 3700.0, 3800.0]) == [
        True, False, True, False, True, False,
    ]  # fmt: skip
    story = Story(Retention(newest=2, hourly=5))
    for _ in range(12):
        story.cut(1800)
    story.cut(step)
    for _ in range(8):
        story.cut(1800)
    assert len(story.times) >= 4
    assert len(set(story.times)) == len(story.times)


def test_the_limit_takes_the_oldest() -> None:
    story = Story(Retention(newest=10, hourly=0, limit=35))
    for _ in range(10):
        story.cut(30)
    assert len(story.times) == 3
    story.cut(30, length=1000)
    assert story.times == []


def test_points_that_only_the_limit_costs_are_told_from_those_of_the_rules() -> None:
    logs = [log(number, START + 30 * number) for number in range(5)]
    newest = START + 150
    kept_by_rules = Retention(newest=3, hourly=0)
    assert not cut_short(logs, newest, kept_by_rules, set())
    assert not cut_short(logs, newest, Retention(newest=3, hourly=0, limit=50), set())
    assert not cut_short(logs, newest, Retention(newest=3, hourly=0, limit=20), set())
    assert cut_short(logs, newest, Retention(newest=3, hourly=0, limit=19), set())


def test_a_point_that_is_read_is_neither_deleted_nor_merged() -> None:
    """R22."""
    story = Story(Retention(newest=2, hourly=0))
    for _ in range(3):
        story.cut(30)
    read = story.logs[-1]
    story.pinned = {read.first}
    for _ in range(40):
        story.cut(30)
        story.merge()
        assert story.logs[0].first == read.first
        assert story.logs[0].point
    story.pinned = set()
    story.cut(30)
    assert read.older_time not in story.times


def test_without_the_oldest() -> None:
    logs = [log(1, 1), log(2, 2, point=False), log(3, 3), log(4, 4)]
    assert [each.first for each in without_oldest(logs)] == [3, 4]
    assert without_oldest(logs[3:]) == []
    assert without_oldest([log(1, 1), log(2, 2, point=False)]) == []


@pytest.mark.parametrize("seed", range(5))
def test_any_course_keeps_the_chain(seed: int) -> None:
    """Logs follow each other without a gap, begin with a point, and what is kept follows the rules."""
    rng = random.Random(seed)
    story = Story(Retention(newest=rng.randint(1, 5), hourly=rng.randint(0, 5), limit=rng.choice([0, 200]) or 1 << 40))
    for _ in range(400):
        story.cut(rng.choice([1, 30, 900, 4000]), length=rng.randint(1, 30))
        if rng.random() < 0.5:
            story.merge()
        if rng.random() < 0.1:
            story.logs = without_oldest(story.logs)
        if rng.random() < 0.1:
            story.pinned = {rng.choice(story.logs).first} if story.logs else set()
        for one, two in itertools.pairwise(story.logs):
            assert one.last + 1 == two.first
        if story.logs:
            assert story.logs[0].point
            assert story.logs[-1].last == story.number
        assert len(story.times) <= story.rules.newest + story.rules.hourly + len(story.pinned)


def test_days_and_weeks_are_kept_beside_hours() -> None:
    """Each by its first cut, in UTC; a byte is copied few times on its way into a week's log."""
    story = Story(Retention(newest=3, hourly=24, daily=7, weekly=4))
    story.time = begin = START // DAY * DAY
    for _ in range(45 * 48):
        story.cut(1800)
        story.merge()
    times = story.times
    days = [time for time in times if time % DAY == 0]
    mondays = [time for time in times if (time - MONDAY) % WEEK == 0]
    hours = [time for time in times if time % HOUR == 0 and time > story.time - DAY]
    assert story.time == begin + 45 * DAY
    # The newest point is the first of its hour and its day.
    assert story.time % DAY == 0
    assert len(hours) == 23
    assert [story.time - time for time in days if time > story.time - 7 * DAY] == [n * DAY for n in range(6, 0, -1)]
    assert len(mondays) == 4
    assert [b - a for a, b in itertools.pairwise(mondays)] == [WEEK] * 3
    assert times[0] == mondays[0]
    assert story.copied < 12 * story.number * 10
    assert len(story.logs) <= 2 + 24 + 7 + 4 + 4 * MERGE_AT_ONCE


def test_no_point_is_older_than_it_may_be() -> None:
    story = Story(Retention(newest=100, hourly=24, daily=7, age=6 * HOUR))
    for _ in range(40):
        story.cut(1800)
    assert story.times[0] == story.time - 6 * HOUR
    # While nothing comes nothing is aged, and a primary whose clock is ahead ages nothing either.
    before = [log.first for log in story.logs]
    ahead = thinned(story.logs, story.time + 365 * DAY, story.rules, set(), now=story.time)
    assert [log.first for log in ahead] == before


def test_a_pinned_point_outlives_the_rules_and_age() -> None:
    story = Story(Retention(newest=2, hourly=0, age=2 * HOUR))
    story.cut(30)
    story.cut(30)
    story.kept = {story.logs[-1].first}
    pinned = story.times[-1]
    for _ in range(300):
        story.cut(60)
        story.merge()
    assert story.times == [pinned, story.time - 60]
    assert len(story.logs) <= 2 + 3 * MERGE_AT_ONCE
    story.kept = set()
    story.cut(60)
    assert pinned not in story.times


def test_others_give_way_before_a_pinned_point_and_it_goes_last() -> None:
    """Where all have more than the limit: first what is older, then what is newer and not pinned, then it."""
    story = Story(Retention(newest=6, hourly=0, limit=100))
    for _ in range(4):
        story.cut(60)
    older, pinned = story.logs[0], story.logs[1]
    story.kept = {pinned.first}
    for _ in range(30):
        story.cut(60, length=20)
        # What is between two points overwrites the same blocks again and again.
        story.merge()
        assert pinned.older_time in story.times
        assert sum(each.length for each in story.logs) <= 2 * story.rules.limit
    assert older.older_time not in story.times
    assert len(story.times) >= 2, "no more of the others than had to went"
    story.cut(60, length=90)
    assert pinned.older_time not in story.times
    assert len(story.times) >= 1


def test_what_pinned_points_cost() -> None:
    logs = [log(number, START + 30 * number, length=10 + number) for number in range(4)]
    assert pinned_cost(PointsRecord(logs=logs)) == PinnedCost(0, oldest=False)
    marks = [MarkRecord(position=logs[1].older, time=0.0, pinned=True), MarkRecord(position=logs[2].older, time=0.0)]
    assert pinned_cost(PointsRecord(logs=logs, marks=marks)) == PinnedCost(13, oldest=False)
    assert pinned_cost(PointsRecord(logs=logs[1:], marks=marks)) == PinnedCost(13, oldest=True)
