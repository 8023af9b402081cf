"""When a resync may start: daily windows and moments as people give them, in local time, over daylight-saving changes.

Pure functions of instants (seconds since the Unix epoch) and a time zone. A wall time that a change of the clocks skips
stands for the moment of the change; one that comes twice counts when it comes first.
"""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from shared.errors import UsageError

DAY_SECONDS = 86400.0
AHEAD_DAYS = 7
"""A resync may be put off by so many days."""
NEVER = "never"
"""In place of a time: what was scheduled is cancelled."""

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_AFTER = re.compile(r"\+(\d{1,6})([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY_SECONDS}


class ResyncMode(enum.StrEnum):
    """How a required resync starts."""

    MANUAL = "manual"
    AUTOMATIC = "automatic"
    WINDOW = "window"


class PastWindow(enum.StrEnum):
    """What happens to a resync that the window started and that is not done at its end."""

    PAUSE = "pause"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Window:
    """A daily window of local time from ``start`` to before ``end``; it lasts over midnight where end comes first."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Window:
        """``18:30-06:00``. Raises UsageError."""
        start, dash, end = text.partition("-")
        if not dash:
            raise UsageError(f"{text!r} is not a window.", "Write its start and end like 18:30-06:00.")
        window = cls(parse_time(start), parse_time(end))
        if window.start == window.end:
            raise UsageError(
                f"The window {text} is empty.", "Give two different times, or the mode automatic for the whole day."
            )
        return window

    def __str__(self) -> str:
        return f"{time_text(self.start)}-{time_text(self.end)}"


@functools.lru_cache(maxsize=64)
def parse_time(text: str) -> time:
    """``18:30``. Raises UsageError."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a time of day.", "Write hours and minutes from 00:00 to 23:59, like 18:30.")
    return time(int(match[1]), int(match[2]))


def time_text(moment: time) -> str:
    """``18:30``."""
    return f"{moment.hour:02}:{moment.minute:02}"


def instant_of(wall: datetime, zone: tzinfo) -> float:
    """The instant at which the clocks of ``zone`` show ``wall`` (its own zone is ignored)."""
    first = wall.replace(tzinfo=zone, fold=0)
    instant = first.timestamp()
    if datetime.fromtimestamp(instant, zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return instant
    return _change_between(wall.replace(tzinfo=zone, fold=1).timestamp(), instant, zone)


def _change_between(before: float, after: float, zone: tzinfo) -> float:
    """The instant at which the zone's offset changes, to the second."""
    low, high = int(before), int(after)
    offset = datetime.fromtimestamp(low, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return float(high)


def is_within(window: Window, moment: float, zone: tzinfo) -> bool:
    """Whether the window is open at ``moment``."""
    return end_of(window, moment, zone) is not None


def end_of(window: Window, moment: float, zone: tzinfo) -> float | None:
    """When the window that is open at ``moment`` closes; None while it is closed."""
    today = datetime.fromtimestamp(moment, zone).date()
    for day in (today - timedelta(days=1), today):
        start, end = _window_of(window, day, zone)
        if start <= moment < end:
            return end
    return None


def next_start(window: Window, moment: float, zone: tzinfo) -> float:
    """When the window opens next after ``moment``."""
    today = datetime.fromtimestamp(moment, zone).date()
    # A window that a change of the clocks swallows does not open that day.
    for days in range(4):
        start, end = _window_of(window, today + timedelta(days=days), zone)
        if moment < start < end:
            return start
    raise AssertionError(f"the window {window} never opens")


def _window_of(window: Window, day: date, zone: tzinfo) -> tuple[float, float]:
    """Start and end of the window that opens on ``day``."""
    last = day if window.start < window.end else day + timedelta(days=1)
    return instant_of(datetime.combine(day, window.start), zone), instant_of(datetime.combine(last, window.end), zone)


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A time of day, on each day or on one of the week (Monday is 0)."""

    time: time
    weekday: int | None = None

    @classmethod
    def parse(cls, text: str) -> Recurrence | None:
        """``daily 03:00``, ``weekly sunday 03:00``; None for ``never``. Raises UsageError."""
        words = text.lower().split()
        match words:
            case ["never"]:
                return None
            case ["daily", moment]:
                return cls(parse_time(moment))
            case ["weekly", day, moment] if day in WEEKDAYS:
                return cls(parse_time(moment), WEEKDAYS.index(day))
        raise UsageError(f"{text!r} is not a schedule.", "Write never, 'daily 03:00' or 'weekly sunday 03:00'.")

    def __str__(self) -> str:
        day = "daily" if self.weekday is None else f"weekly {WEEKDAYS[self.weekday]}"
        return f"{day} {time_text(self.time)}"

    def after(self, moment: float, zone: tzinfo) -> float:
        """When it comes next after ``moment``."""
        today = datetime.fromtimestamp(moment, zone).date()
        for days in range(9):
            day = today + timedelta(days=days)
            if self.weekday in (None, day.weekday()):
                instant = instant_of(datetime.combine(day, self.time), zone)
                if instant > moment:
                    return instant
        raise AssertionError(f"{self} never comes")


def parse_moment(text: str, now: float, zone: tzinfo) -> float:
    """The instant that an administrator means at ``now``.

    ``2026-11-28 02:00`` and ``02:00`` (when it comes next) are in ``zone``, unless they bring an offset of their own
    (``2026-11-28T02:00+01:00``, ``...Z``); ``+2h``, ``+30m`` and ``+1d`` count from now. Raises UsageError for what is
    none of these, is past, or more than a week ahead.
    """
    given = text.strip()
    if (after := _AFTER.fullmatch(given)) is not None:
        moment = now + int(after[1]) * _UNITS[after[2]]
    elif _TIME.fullmatch(given):
        moment = _next_time(parse_time(given), now, zone)
    else:
        moment = _parse_date(given, zone)
    if moment < now:
        raise UsageError(f"{moment_text(moment, zone)} is past.", "Give a time to come, e.g. 02:00 or +2h.")
    if moment > now + AHEAD_DAYS * DAY_SECONDS:
        raise UsageError(
            f"{moment_text(moment, zone)} is more than {AHEAD_DAYS} days ahead.",
            f"Give a time up to {moment_text(now + AHEAD_DAYS * DAY_SECONDS, zone)}.",
        )
    return moment


def _next_time(wall: time, now: float, zone: tzinfo) -> float:
    today = datetime.fromtimestamp(now, zone).date()
    moments = (instant_of(datetime.combine(today + timedelta(days=days), wall), zone) for days in range(3))
    return next(moment for moment in moments if moment > now)


def _parse_date(text: str, zone: tzinfo) -> float:
    try:
        wall = datetime.fromisoformat(text)
        if wall.tzinfo is not None:
            return wall.timestamp()
        if len(text) > len("2026-11-28"):
            return instant_of(wall, zone)
    except (ValueError, OverflowError):
        pass
    raise UsageError(
        f"{text!r} is not a time.", "Write 02:00, '2026-11-28 02:00', 2026-11-28T02:00+01:00, +2h or +30m."
    )


def moment_text(moment: float, zone: tzinfo) -> str:
    """``2026-11-28 02:00 (Europe/Berlin, UTC+01:00)``: local time, and in which zone."""
    try:
        local = datetime.fromtimestamp(moment, zone)
    except (ValueError, OverflowError):
        return f"the time {moment:.0f}"
    seconds = "%H:%M:%S" if local.second else "%H:%M"
    return f"{local.strftime('%Y-%m-%d ' + seconds)} ({zone_text(moment, zone)})"


def zone_text(moment: float, zone: tzinfo) -> str:
    """The zone's name, and its offset at ``moment``."""
    name = "UTC" if zone is UTC else str(zone)
    offset = datetime.fromtimestamp(moment, zone).isoformat(timespec="seconds")[19:]
    return name if name.startswith("UTC") else f"{name}, UTC{offset}"
