"""When a required resync starts and rests, by record, settings and time: pure functions."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from primary_agent.record import DiskRecord, ReplicationRecord, StartedBy, VmRecord
from primary_agent.scheduling import Schedule, check_schedule, paused_until, planned_start, with_window
from shared.config_sections import ResyncSection
from shared.errors import UsageError
from shared.schedule import PastWindow, ResyncMode, Window

ZONE = ZoneInfo("Europe/Berlin")
DAY = datetime(2026, 6, 1, 12, tzinfo=ZONE).timestamp()
NIGHT = datetime(2026, 6, 1, 23, tzinfo=ZONE).timestamp()
EVENING = datetime(2026, 6, 1, 18, 30, tzinfo=ZONE).timestamp()
DEFAULTS = ResyncSection()


def vm(**settings: Any) -> VmRecord:
    return VmRecord(
        vm=bytes(16),
        name="web",
        disks=[DiskRecord(index=0, uuid=bytes(16), path="/d", size=512, export="d")],
        replica_host="b",
        replica_port=1,
        interval_seconds=30.0,
        log_limit_bytes=0,
        created_time=0.0,
        **settings,
    )


def schedule(**settings: Any) -> Schedule:
    return Schedule.of(vm(**settings), DEFAULTS)


def start(
    now: float, record: ReplicationRecord | None = None, *, lost: bool = False, **settings: Any
) -> tuple[float | None, StartedBy]:
    found = planned_start(record or ReplicationRecord(), schedule(**settings), now, ZONE, history_lost=lost)
    assert found.text
    return found.moment, found.by


def test_default_is_the_window_of_the_night() -> None:
    assert schedule() == Schedule(ResyncMode.WINDOW, Window.parse("18:30-06:00"), PastWindow.PAUSE)
    assert start(DAY) == (EVENING, StartedBy.WINDOW)
    assert start(NIGHT) == (NIGHT, StartedBy.WINDOW)


def test_own_settings_go_before_the_agents() -> None:
    assert start(DAY, resync_mode=ResyncMode.AUTOMATIC) == (DAY, StartedBy.AUTOMATIC)
    assert start(NIGHT, resync_mode=ResyncMode.MANUAL) == (None, StartedBy.ADMINISTRATOR)
    assert start(DAY, resync_window_start="11:00") == (DAY, StartedBy.WINDOW)
    assert str(schedule(resync_window_start="11:00").window) == "11:00-06:00"
    agent = ResyncSection(mode=ResyncMode.MANUAL, window="01:00-02:00", past_window=PastWindow.FINISH)
    assert Schedule.of(vm(), agent) == Schedule(ResyncMode.MANUAL, Window.parse("01:00-02:00"), PastWindow.FINISH)


def test_orders_go_before_the_mode() -> None:
    wanted = ReplicationRecord(resync_wanted=True, resync_at=DAY + 100)
    assert start(DAY, wanted) == (DAY, StartedBy.ADMINISTRATOR)
    later = ReplicationRecord(resync_at=DAY + 100)
    for mode in ResyncMode:
        assert start(DAY, later, resync_mode=mode) == (DAY + 100, StartedBy.SCHEDULE)


def test_what_may_be_newer_at_the_replica_waits_for_an_order_in_every_mode() -> None:
    for mode in ResyncMode:
        assert start(NIGHT, lost=True, resync_mode=mode) == (None, StartedBy.ADMINISTRATOR)
    assert start(DAY, ReplicationRecord(resync_wanted=True), lost=True) == (DAY, StartedBy.ADMINISTRATOR)


@pytest.mark.parametrize("by", [None, *StartedBy])
def test_only_what_the_window_started_rests_outside_of_it(by: StartedBy | None) -> None:
    record = ReplicationRecord(started_by=by)
    paused = paused_until(record, schedule(), DAY, ZONE)
    assert (paused is not None) is (by is StartedBy.WINDOW)
    if paused is not None:
        assert paused[0] == EVENING
        assert "opens again at 2026-06-01 18:30" in paused[1]
    assert paused_until(record, schedule(), NIGHT, ZONE) is None
    assert paused_until(record, schedule(resync_past_window=PastWindow.FINISH), DAY, ZONE) is None
    for mode in (ResyncMode.MANUAL, ResyncMode.AUTOMATIC):
        assert paused_until(record, schedule(resync_mode=mode), DAY, ZONE) is None


def test_window_is_replaced_and_checked_as_a_whole() -> None:
    changed = with_window(vm(), "22:00-23:15")
    assert (changed.resync_window_start, changed.resync_window_end) == ("22:00", "23:15")
    assert with_window(changed, None) == vm()
    check_schedule(changed, DEFAULTS)
    with pytest.raises(UsageError, match="web can't be so"):
        check_schedule(vm(resync_window_start="06:00"), DEFAULTS)
