"""What of a tap's successive statuses becomes an event: sizes of disks and levels of the log."""

from __future__ import annotations

import msgspec

from primary_agent.observing import TapObserver
from shared.events import EventId
from shared.tap_control import DiskStatus, LogUsage, TapStatus, Tracking

MIB = 1 << 20


def status(used: int = 0, found: int | None = MIB) -> TapStatus:
    disk = DiskStatus(
        index=0, path="/d", size=MIB, export="disk0", uri="", clients=0, writes=0, bytes_written=0, found_size=found
    )
    return TapStatus(
        vm="",
        name="web",
        pid=1,
        version="",
        boot_id="",
        tracking=Tracking.ON,
        lost=None,
        epoch=None,
        position=None,
        sealed=None,
        first_segment=0,
        log=LogUsage(used=used, limit=100, files=1, file_bytes=1, folder=""),
        disks=[disk],
        interval=1.0,
        nbd_uri="",
        writes=0,
        bytes_written=0,
        last_write_time=None,
    )


def told(observer: TapObserver, status: TapStatus, now: float = 0.0) -> list[EventId]:
    return [seen.event for seen in observer.observe(status, now)]


def test_each_level_is_told_once_on_the_way_up() -> None:
    """And again only after the log was well below it: no chatter around a level."""
    observer, fractions = TapObserver(), []
    for used in (10, 50, 60, 49, 51, 74, 75, 80, 95, 99, 71, 76, 69, 76, 10, 92):
        seen = list(observer.observe(status(used), 0.0))
        fractions.append([each.data["fraction"] for each in seen])
        assert all(each.event is EventId.LOG_FILLING and f"({used} %)" in each.text for each in seen)
    assert fractions == [[], [0.5], [], [], [], [], [0.75], [], [0.9], [], [], [], [], [0.75], [], [0.9]]


def test_time_left_is_told_once_the_rate_is_known() -> None:
    observer = TapObserver()
    for second in range(0, 200, 15):
        list(observer.observe(status(second // 10), float(second)))
        known = observer.log_full_seconds(status(second // 10).log)
        assert (known is not None) == (second >= 60)
    assert known is not None and 700 < known < 1000, "81 % are left, at 10 s each"
    for second in range(200, 1000, 15):
        list(observer.observe(status(19), float(second)))
    assert observer.log_full_seconds(status(19).log) is None, "it does not grow any more"


def test_each_size_is_told_once() -> None:
    observer = TapObserver()
    assert told(observer, status()) == []
    assert told(observer, status(found=2 * MIB)) == [EventId.DISK_RESIZED]
    assert told(observer, status(found=2 * MIB)) == []
    (back,) = observer.observe(status(found=MIB), 0.0)
    assert back.text == f"/d was resized from {2 * MIB} to {MIB} bytes."


def test_a_tap_that_tells_no_size_has_none_that_changed() -> None:
    assert told(TapObserver(), status(found=None)) == []
    older = msgspec.convert(
        {name: value for name, value in msgspec.to_builtins(status().disks[0]).items() if name != "found_size"},
        DiskStatus,
    )
    assert older.found_size is None
