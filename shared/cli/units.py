"""Durations, sizes, disks and settings as people type them, to raw numbers; strict, with the valid form named."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from shared.admin.bounds import PLAN_BLOCKS_MAX
from shared.block_devices import BlockDevicePolicy
from shared.errors import UsageError
from shared.events import EventId
from shared.guest_settings import HOURS_MAX, NONE, check_files, parse_consistency, parse_definition
from shared.schedule import NEVER, PastWindow, Recurrence, ResyncMode, Window, parse_time, time_text

INTERVAL_SECONDS_MIN = 1.0
DURATION_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
SIZE_UNITS = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
    "T": 1 << 40,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
EXPORT_NAME_MAX = 255
"""Bytes of an export's name, well below what NBD allows, so that every client takes it."""

COUNT_MAX = 10_000
DEFAULT = "default"
"""A setting's value that stands for the agent's own."""
POINTS_MAX = 1000
NUMBER_MAX = 1 << 24
PRIORITY_MAX = 100

_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]*)")


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``30s``, ``5m``, ``1h`` or ``2d``. Raises UsageError."""
    match = _QUANTITY.fullmatch(text.strip())
    factor = DURATION_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a duration.", "Write seconds or a number with s, m, h or d: 90, 30s, 5m.")
    return float(match[1]) * factor


def parse_authorize(text: str) -> tuple[str, str]:
    """``NAME=STORAGE`` as the two. Raises UsageError."""
    name, equals, storage = text.partition("=")
    if not equals or not name or not storage.startswith("/"):
        raise UsageError(f"{text!r} is no authorization.", "Write NAME=/FOLDER: the name in the primary's certificate.")
    return name, os.path.normpath(storage)


def parse_listen(text: str) -> tuple[str, int | None]:
    """``HOST``, ``:PORT`` or ``HOST:PORT``, an IPv6 address in brackets. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, ""
    if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16):
        raise UsageError(f"{port!r} is no port.", "Write HOST:PORT, :PORT or HOST.")
    return host.removeprefix("[").removesuffix("]"), int(port) if port else None


def parse_interval(text: str) -> float:
    """Seconds of a replication interval: a duration of at least one second. Raises UsageError."""
    seconds = parse_duration(text)
    if seconds < INTERVAL_SECONDS_MIN:
        raise UsageError(f"An interval of {text} is too short.", "The shortest replication interval is 1s.")
    return seconds


def parse_size(text: str) -> int:
    """Bytes of ``4096``, ``512MiB``, ``10G`` (both powers of 1024) or ``10GB`` (powers of 1000).

    Raises UsageError.
    """
    match = _QUANTITY.fullmatch(text.strip())
    factor = SIZE_UNITS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a size.", "Write bytes or a number with KiB, MiB, GiB or TiB: 10GiB.")
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def parse_count(text: str) -> int:
    """A number from 1 to 10,000. Raises UsageError."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= COUNT_MAX):
        raise UsageError(f"{text!r} is not a number from 1 to {COUNT_MAX}.")
    return int(text)


def parse_points(text: str) -> int | None:
    """A number of recovery points from 0 to 1000, or ``default``. Raises UsageError."""
    if text == DEFAULT:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:9]) <= POINTS_MAX):
        raise UsageError(f"{text!r} is not a number of points.", f"Give 0 to {POINTS_MAX}, or default.")
    return int(text)


def parse_points_limit(text: str) -> int | None:
    """Bytes, None for ``default``. Raises UsageError."""
    return None if text == DEFAULT else parse_size(text)


def parse_points_age(text: str) -> float | None:
    """Seconds, None for ``default``. Raises UsageError."""
    return None if text == DEFAULT else parse_duration(text)


def parse_number(text: str) -> int:
    """A whole number above 0. Raises UsageError."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= NUMBER_MAX):
        raise UsageError(f"{text!r} is not a number from 1 to {NUMBER_MAX}.")
    return int(text)


def parse_blocks(text: str) -> int:
    """How many blocks a plan compares with the replica; 0 for none. Raises UsageError."""
    if not (text.isascii() and text.isdigit() and int(text[:9]) <= PLAN_BLOCKS_MAX):
        raise UsageError(f"{text!r} is not a number from 0 to {PLAN_BLOCKS_MAX}.")
    return int(text)


def parse_policy(text: str) -> str:
    """The name of a policy for block devices. Raises UsageError."""
    if text not in set(BlockDevicePolicy):
        raise UsageError(f"{text!r} is no policy for block devices.", f"Write one of {', '.join(BlockDevicePolicy)}.")
    return text


def parse_mode(text: str) -> str | None:
    """How resyncs start, None for ``default``. Raises UsageError."""
    return _word(text, tuple(ResyncMode))


def parse_past_window(text: str) -> str | None:
    """What happens at the window's end, None for ``default``. Raises UsageError."""
    return _word(text, tuple(PastWindow))


def parse_on_off(text: str) -> bool | None:
    """``on`` or ``off``, None for ``default``. Raises UsageError."""
    return {"on": True, "off": False, None: None}[_word(text, ("on", "off"))]


def parse_priority(text: str) -> int:
    """A whole number from -100 to 100. Raises UsageError."""
    if not re.fullmatch(r"-?[0-9]{1,3}", text) or not -PRIORITY_MAX <= int(text) <= PRIORITY_MAX:
        raise UsageError(f"{text!r} is not a number from -{PRIORITY_MAX} to {PRIORITY_MAX}.")
    return int(text)


def parse_rate(text: str) -> list[int]:
    """``none``, ``50MiB``, or ``50MiB/200MiB`` by day and by night, in bytes per second. Raises UsageError."""
    if text == "none":
        return []
    day, slash, night = text.partition("/")
    return [0 if part == "none" else parse_size(part) for part in ([day, night] if slash else [day])]


def parse_window(text: str) -> str | None:
    """``18:30-06:00``, None for ``default``. Raises UsageError."""
    return None if text == DEFAULT else str(Window.parse(text))


def parse_schedule(text: str) -> str:
    """``never``, ``daily 03:00`` or ``weekly sunday 03:00``. Raises UsageError."""
    return str(Recurrence.parse(text) or NEVER)


def parse_freeze(text: str) -> str:
    """``none``, ``agent:/SOCKET``, ``libvirt:DOMAIN`` or ``program:/PATH``. Raises UsageError."""
    parse_consistency(text)
    return text


def parse_hours(text: str) -> int:
    """A number of hours from 0 to 12. Raises UsageError."""
    if not (text.isascii() and text.isdigit() and int(text[:9]) <= HOURS_MAX):
        raise UsageError(f"{text!r} is not a number of hours from 0 to {HOURS_MAX}.")
    return int(text)


def parse_definition_setting(text: str) -> str:
    """``none``, ``libvirt:DOMAIN`` or ``file:/PATH``. Raises UsageError."""
    parse_definition(text)
    return text


def parse_paths(text: str) -> list[str]:
    """Absolute paths with commas between; ``none``: no path. Raises UsageError."""
    paths = [] if text == NONE else text.split(",")
    check_files(paths)
    return paths


def parse_time_of_day(text: str) -> str | None:
    """``18:30``, None for ``default``. Raises UsageError."""
    return None if text == DEFAULT else time_text(parse_time(text))


def parse_event(text: str) -> int:
    """An event by its number or its name. Raises UsageError."""
    names = {number.name.lower(): int(number) for number in EventId}
    if text.isascii() and text.isdigit():
        return int(text[:9])
    number = names.get(text.lower().replace("-", "_"))
    if number is None:
        raise UsageError(f"{text!r} is no event.", f"Give a number, or one of {', '.join(sorted(names))}.")
    return number


def _word(text: str, words: tuple[str, ...]) -> str | None:
    if text == DEFAULT:
        return None
    if text not in words:
        raise UsageError(f"{text!r} is none of {', '.join(words)}.", f"Write one of these, or {DEFAULT}.")
    return text


def parse_disk(text: str) -> dict[str, str]:
    """``PATH[,export=NAME]`` as {path, export?}; a relative path counts from here. Raises UsageError."""
    path, comma, export = text.rpartition(",export=")
    if not comma:
        path = text
    elif not export or len(export.encode()) > EXPORT_NAME_MAX or not export.isprintable():
        raise UsageError(f"{export!r} is not an export name.", f"Use 1 to {EXPORT_NAME_MAX} printable characters.")
    if not path:
        raise UsageError(f"{text!r} names no disk.", "Write --disk PATH or --disk PATH,export=NAME.")
    disk = {"path": os.path.abspath(path)}
    return disk | {"export": export} if comma else disk


def parse_path(text: str) -> str:
    """A path; a relative one counts from here. Raises UsageError."""
    if not text:
        raise UsageError("An empty text names no file.", "Write the path of the disk.")
    return os.path.abspath(text)


SETTINGS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "interval": ("interval_seconds", parse_interval, "time between two cuts, e.g. 30s or 5m"),
    "log-limit": ("log_limit_bytes", parse_size, "size of the log above which a resync is required, e.g. 10GiB"),
    "replica": ("replica", str, "HOST or HOST:PORT of the replica agent"),
    "hot-region-size": (
        "hot_region_bytes",
        parse_size,
        "size of a hot region, 1MiB to 64MiB (default 4MiB); from the tap's next start",
    ),
    "hot-regions": (
        "hot_regions",
        parse_number,
        "the most regions that are hot, which is what power loss leaves to compare (default 4096)",
    ),
    "block-device-policy": (
        "block_device_policy",
        parse_policy,
        "compare, trust or strict: when block devices are compared because the tap was stopped",
    ),
    "resync-mode": ("resync_mode", parse_mode, "manual, automatic, window or default: how a required resync starts"),
    "resync-window": (
        "resync_window",
        parse_window,
        "daily window in which it starts, in the primary's local time, e.g. 18:30-06:00, or default",
    ),
    "resync-window-start": ("resync_window_start", parse_time_of_day, "start of that window, e.g. 18:30, or default"),
    "resync-window-end": ("resync_window_end", parse_time_of_day, "end of that window, e.g. 06:00, or default"),
    "resync-past-window": (
        "resync_past_window",
        parse_past_window,
        "pause, finish or default: what becomes of a resync that the window started at the window's end",
    ),
    "resync-back-off": (
        "resync_back_off",
        parse_on_off,
        "on, off or default: whether reading slows down when the guest's latency rises",
    ),
    "resync-priority": ("resync_priority", parse_priority, "-100 to 100: higher ones come first in the queue"),
    "verify-schedule": (
        "verify_schedule",
        parse_schedule,
        "when both sides are compared by themselves: never, 'daily 03:00' or 'weekly sunday 03:00', local time",
    ),
    "consistency": (
        "consistency",
        parse_freeze,
        "how the guest is frozen for application-consistent cuts: none, agent:/SOCKET, libvirt:DOMAIN, program:/PATH",
    ),
    "consistency-hours": (
        "consistency_hours",
        parse_hours,
        "one such cut after so many hours, 1 to 12; 0: only by order (vmreplica cut VM --consistent)",
    ),
    "definition": (
        "definition",
        parse_definition_setting,
        "what the VM needs to start goes to the replica: none, libvirt:DOMAIN or file:/PATH",
    ),
    "definition-files": (
        "definition_files",
        parse_paths,
        "small files that go with it, e.g. the NVRAM, with commas between: /PATH,/PATH or none",
    ),
    "resync-read-rate": (
        "resync_read_rate",
        parse_rate,
        "cap of reading disks for a resync, in bytes a second: none, 50MiB, or 50MiB/200MiB by day/night",
    ),
    "resync-send-rate": ("resync_send_rate", parse_rate, "cap of sending what differs"),
    "initial-read-rate": ("initial_read_rate", parse_rate, "cap of reading disks for an initial replication"),
    "initial-send-rate": ("initial_send_rate", parse_rate, "cap of sending for it"),
    "replication-send-rate": ("replication_send_rate", parse_rate, "cap of sending the log"),
    "points-newest": (
        "points_newest",
        parse_points,
        "at the replica: how many newest cuts are kept, or default",
    ),
    "points-hourly": ("points_hourly", parse_points, "at the replica: how many hourly points are kept, or default"),
    "points-daily": ("points_daily", parse_points, "at the replica: how many daily points are kept, or default"),
    "points-weekly": ("points_weekly", parse_points, "at the replica: how many weekly points are kept, or default"),
    "points-limit": (
        "points_limit_bytes",
        parse_points_limit,
        "at the replica: size that all undo logs may have, 0 (that of the disks) or default",
    ),
    "points-age": (
        "points_age_seconds",
        parse_points_age,
        "at the replica: how much older than the newest a point may be, e.g. 7d, 0 (any) or default",
    ),
}
"""What ``set`` changes: key to (name in the agent, parser, help)."""
REPLICA_SETTINGS = frozenset(name for name, _, _ in SETTINGS.values() if name.startswith("points_"))
"""Those of them that are the replica's."""


def parse_setting(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` as (name in the agent, raw value). Raises UsageError."""
    key, equals, value = text.partition("=")
    # The names of the JSON are as good as the short ones.
    by_name = {name: key for key, (name, _, _) in SETTINGS.items()}
    known = SETTINGS.get(by_name.get(key, key))
    if not equals or known is None:
        keys = ", ".join(f"{name}=..." for name in SETTINGS)
        raise UsageError(f"{text!r} is not a setting.", f"Write one of {keys}.")
    name, parse, _ = known
    return name, parse(value)
