"""Daily windows and times that administrators give, over both changes of the clocks."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from shared.errors import UsageError
from shared.ports.clock import local_zone
from shared.schedule import (
    Recurrence,
    Window,
    end_of,
    instant_of,
    is_within,
    moment_text,
    next_start,
    parse_moment,
    zone_text,
)

BERLIN = ZoneInfo("Europe/Berlin")
"""02:00 -> 03:00 on 2026-03-29, 03:00 -> 02:00 on 2026-10-25."""
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
"""Changes by half an hour: 02:00 -> 02:30 on 2026-10-04."""
NIGHT = Window.parse("18:30-06:00")


def at(text: str) -> float:
    """The instant of an ISO text with offset."""
    return datetime.fromisoformat(text).timestamp()


def shown(moment: float | None, zone: ZoneInfo = BERLIN) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, zone).isoformat(timespec="minutes")


@pytest.mark.parametrize(
    ("moment", "end"),
    [
        ("2026-06-01T18:29:59+02:00", None),
        ("2026-06-01T18:30:00+02:00", "2026-06-02T06:00+02:00"),
        ("2026-06-01T23:59:59+02:00", "2026-06-02T06:00+02:00"),
        ("2026-06-02T00:00:00+02:00", "2026-06-02T06:00+02:00"),
        ("2026-06-02T05:59:59+02:00", "2026-06-02T06:00+02:00"),
        ("2026-06-02T06:00:00+02:00", None),
    ],
)
def test_window_over_midnight_includes_its_start_and_not_its_end(moment: str, end: str | None) -> None:
    assert shown(end_of(NIGHT, at(moment), BERLIN)) == end
    assert is_within(NIGHT, at(moment), BERLIN) is (end is not None)


def test_window_within_a_day() -> None:
    noon = Window.parse("12:00-13:15")
    assert shown(end_of(noon, at("2026-06-01T12:30+02:00"), BERLIN)) == "2026-06-01T13:15+02:00"
    assert end_of(noon, at("2026-06-01T00:30+02:00"), BERLIN) is None
    assert shown(next_start(noon, at("2026-06-01T12:00+02:00"), BERLIN)) == "2026-06-02T12:00+02:00"


@pytest.mark.parametrize(
    ("moment", "start"),
    [
        ("2026-06-01T06:00+02:00", "2026-06-01T18:30+02:00"),
        ("2026-06-01T18:29:59+02:00", "2026-06-01T18:30+02:00"),
        ("2026-06-01T18:30+02:00", "2026-06-02T18:30+02:00"),
        ("2026-06-02T01:00+02:00", "2026-06-02T18:30+02:00"),
        ("2026-12-31T23:00+01:00", "2027-01-01T18:30+01:00"),
    ],
)
def test_next_start_is_after_the_moment(moment: str, start: str) -> None:
    assert shown(next_start(NIGHT, at(moment), BERLIN)) == start


def test_the_night_of_each_change_of_the_clocks_keeps_to_the_clocks() -> None:
    """Both ends are where the clocks show them: the night in spring is an hour shorter, that in autumn longer."""
    for evening, end, hours in (
        ("2026-03-28T18:30+01:00", "2026-03-29T06:00+02:00", 10.5),
        ("2026-10-24T18:30+02:00", "2026-10-25T06:00+01:00", 12.5),
    ):
        found = end_of(NIGHT, at(evening), BERLIN)
        assert shown(found) == end
        assert found is not None
        assert (found - at(evening)) / 3600 == hours
        assert shown(end_of(NIGHT, found - 1, BERLIN)) == end
        assert end_of(NIGHT, found, BERLIN) is None


def test_times_that_the_clocks_skip_stand_for_the_moment_of_the_change() -> None:
    window = Window.parse("02:30-05:00")
    start = next_start(window, at("2026-03-28T12:00+01:00"), BERLIN)
    assert shown(start) == "2026-03-29T03:00+02:00"
    assert shown(end_of(window, start, BERLIN)) == "2026-03-29T05:00+02:00"
    assert end_of(window, start - 1, BERLIN) is None
    ends = Window.parse("22:00-02:30")
    assert shown(end_of(ends, at("2026-03-29T01:59+01:00"), BERLIN)) == "2026-03-29T03:00+02:00"
    assert (
        shown(instant_of(datetime.fromisoformat("2026-10-04T02:10"), LORD_HOWE), LORD_HOWE) == "2026-10-04T02:30+11:00"
    )


def test_window_that_the_clocks_skip_opens_on_the_next_day() -> None:
    window = Window.parse("02:10-02:50")
    assert shown(next_start(window, at("2026-03-28T12:00+01:00"), BERLIN)) == "2026-03-30T02:10+02:00"
    assert end_of(window, at("2026-03-29T03:00+02:00"), BERLIN) is None


def test_times_that_come_twice_count_when_they_come_first() -> None:
    window = Window.parse("02:15-02:45")
    start = next_start(window, at("2026-10-24T12:00+02:00"), BERLIN)
    assert shown(start) == "2026-10-25T02:15+02:00"
    assert shown(end_of(window, start, BERLIN)) == "2026-10-25T02:45+02:00"
    again = at("2026-10-25T02:20+01:00")
    assert end_of(window, again, BERLIN) is None
    assert shown(next_start(window, again, BERLIN)) == "2026-10-26T02:15+01:00"
    over = Window.parse("18:30-02:30")
    assert shown(end_of(over, at("2026-10-25T02:29+02:00"), BERLIN)) == "2026-10-25T02:30+02:00"
    assert end_of(over, at("2026-10-25T02:10+01:00"), BERLIN) is None


@pytest.mark.parametrize("zone", [BERLIN, LORD_HOWE, ZoneInfo("America/St_Johns"), UTC])
@pytest.mark.parametrize("text", ["18:30-06:00", "02:10-02:50", "00:00-23:59", "01:30-03:30", "23:00-02:15"])
def test_end_and_next_start_agree_through_a_whole_year(zone: ZoneInfo, text: str) -> None:
    """Just before a start the window is closed, at it open; it stays open to its end, which is not the next start."""
    window = Window.parse(text)
    moment = at("2026-01-01T12:00+00:00")
    opened = 0
    while moment < at("2027-01-05T12:00+00:00"):
        start = next_start(window, moment, zone)
        assert start > moment
        end = end_of(window, start, zone)
        assert end is not None
        assert start < end <= next_start(window, start, zone)
        assert end_of(window, start - 1, zone) is None
        assert end_of(window, end - 1, zone) == end
        assert end_of(window, end, zone) is None
        moment, opened = start, opened + 1
    assert 367 <= opened <= 370


@pytest.mark.parametrize("text", ["18:30", "24:00-06:00", "6:00-7:00", "18:30-18:30", "a-b", "18:30-06:00-07:00", ""])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Window.parse(text)


def test_window_is_told_as_it_was_given() -> None:
    assert str(NIGHT) == "18:30-06:00"
    assert (NIGHT.start, NIGHT.end) == (time(18, 30), time(6))


NOW = at("2026-11-27T06:35+01:00")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("02:00", "2026-11-28T02:00+01:00"),
        ("06:36", "2026-11-27T06:36+01:00"),
        ("06:35", "2026-11-28T06:35+01:00"),
        ("2026-11-28 02:00", "2026-11-28T02:00+01:00"),
        ("2026-11-28T02:00", "2026-11-28T02:00+01:00"),
        ("2026-11-28T02:00+05:30", "2026-11-27T21:30+01:00"),
        ("2026-11-28T02:00Z", "2026-11-28T03:00+01:00"),
        ("+2h", "2026-11-27T08:35+01:00"),
        ("+30m", "2026-11-27T07:05+01:00"),
        ("+7d", "2026-12-04T06:35+01:00"),
    ],
)
def test_times_that_are_understood(text: str, moment: str) -> None:
    assert shown(parse_moment(text, NOW, BERLIN)) == moment


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2026-11-27 06:34", "2026-11-27 06:34 (Europe/Berlin, UTC+01:00) is past"),
        ("2026-11-27T06:34+01:00", "is past"),
        ("+169h", "more than 7 days ahead"),
        ("2026-12-04 06:36", "2026-12-04 06:36 (Europe/Berlin, UTC+01:00) is more than 7 days ahead"),
        ("2026-11-28", "is not a time"),
        ("tomorrow", "is not a time"),
        ("25:00", "is not a time"),
        ("+2", "is not a time"),
        ("-2h", "is not a time"),
        ("0001-01-01T00:00", "is not a time"),
        ("9999-12-31T23:59", "more than 7 days ahead"),
        ("+999999d", "more than 7 days ahead"),
    ],
)
def test_times_that_are_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_moment(text, NOW, BERLIN)
    assert reason in caught.value.text
    assert caught.value.remedy


def test_next_time_of_day_over_a_change_of_the_clocks() -> None:
    assert shown(parse_moment("02:30", at("2026-03-28T12:00+01:00"), BERLIN)) == "2026-03-29T03:00+02:00"
    assert shown(parse_moment("02:30", at("2026-10-25T02:40+02:00"), BERLIN)) == "2026-10-26T02:30+01:00"


def test_moment_says_which_zone_was_understood() -> None:
    assert moment_text(NOW, BERLIN) == "2026-11-27 06:35 (Europe/Berlin, UTC+01:00)"
    assert moment_text(NOW + 1, UTC) == "2026-11-27 05:35:01 (UTC)"
    assert zone_text(NOW, ZoneInfo("Asia/Kolkata")) == "Asia/Kolkata, UTC+05:30"


def test_zone_of_the_host_is_that_of_its_file_as_it_is_now(tmp_path: Path) -> None:
    zones, link = tmp_path / "zoneinfo" / "Europe", tmp_path / "localtime"
    zones.mkdir(parents=True)
    system = Path("/usr/share/zoneinfo")
    if not system.is_dir():
        pytest.skip("the system has no time zones")
    for name in ("Berlin", "Helsinki"):
        shutil.copy(system / "Europe" / name, zones / name)
    link.symlink_to(zones / "Berlin")
    assert zone_text(NOW, local_zone("", link)) == "Europe/Berlin, UTC+01:00"
    link.unlink()
    link.symlink_to(zones / "Helsinki")
    assert zone_text(NOW, local_zone("", link)) == "Europe/Helsinki, UTC+02:00"
    assert zone_text(NOW, local_zone(":Asia/Tokyo", link)) == "Asia/Tokyo, UTC+09:00"
    assert local_zone("no/such", link) is UTC
    assert local_zone("", tmp_path / "none") is UTC


# --- recurrences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("daily 03:00", "daily 03:00"),
        ("  Weekly   SUNDAY 23:59", "weekly sunday 23:59"),
        ("never", "None"),
        ("Never", "None"),
    ],
)
def test_recurrence_is_read(text: str, shown: str) -> None:
    assert str(Recurrence.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "daily", "daily 3:00", "weekly 03:00", "weekly someday 03:00", "monthly 03:00"])
def test_what_is_no_recurrence_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Recurrence.parse(text)


def test_recurrence_over_changes_of_the_clocks() -> None:
    """A time that is skipped stands for the change, one that comes twice counts once."""
    zone = ZoneInfo("Europe/Berlin")
    daily = Recurrence.parse("daily 02:30")
    assert daily is not None
    moment = datetime(2026, 3, 27, 12, tzinfo=zone).timestamp()
    found = []
    for _ in range(3):
        moment = daily.after(moment, zone)
        found.append(datetime.fromtimestamp(moment, zone).strftime("%m-%d %H:%M"))
    assert found == ["03-28 02:30", "03-29 03:00", "03-30 02:30"]
    moment = datetime(2026, 10, 24, 12, tzinfo=zone).timestamp()
    first = daily.after(moment, zone)
    assert daily.after(first, zone) - first == 25 * 3600


def test_weekly_recurrence_is_a_week_apart() -> None:
    weekly = Recurrence.parse("weekly sunday 03:00")
    assert weekly is not None
    friday = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
    sunday = weekly.after(friday, UTC)
    assert datetime.fromtimestamp(sunday, UTC) == datetime(2026, 11, 29, 3, tzinfo=UTC)
    assert weekly.after(sunday, UTC) == sunday + 7 * 86400
    assert weekly.after(sunday - 1, UTC) == sunday
