"""The real clock of the host."""

from __future__ import annotations

import functools
import os
import time
from datetime import UTC, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LOCALTIME = Path("/etc/localtime")
ZONE_SECONDS = 1.0
"""A change of this host's zone is seen so soon."""


class RealClock:
    """Time of this host (shared.ports.Clock).

    ``monotonic`` is CLOCK_MONOTONIC, which is also what the event loops of asyncio and uvloop count in; read
    directly, so that threads may ask too and no loop's cached time makes it go back.
    """

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def boot_id(self) -> str:
        return _boot_id()

    def zone(self) -> tzinfo:
        # The status of each VM asks.
        return _zone_of(os.environ.get("TZ", ""), int(time.monotonic() / ZONE_SECONDS))


@functools.lru_cache(maxsize=2)
def _zone_of(name: str, _moment: int) -> tzinfo:
    return local_zone(name, LOCALTIME)


def local_zone(name: str, localtime: Path) -> tzinfo:
    """The zone ``name`` (as in TZ), else that of the file ``localtime`` as it is now; UTC where it can't be read."""
    try:
        if name.strip(":"):
            return _named(name.strip(":"))
        link, file = localtime.lstat(), localtime.stat()
        return _of_file(localtime, (link.st_ino, link.st_mtime_ns, file.st_ino, file.st_mtime_ns))
    except (OSError, ValueError, KeyError):
        return UTC


@functools.cache
def _named(name: str) -> tzinfo:
    return ZoneInfo(name)


@functools.lru_cache(maxsize=2)
def _of_file(path: Path, _version: tuple[int, ...]) -> tzinfo:
    _, found, key = os.path.realpath(path).partition("zoneinfo/")
    with path.open("rb") as file:
        return ZoneInfo.from_file(file, key=key if found else "local time")


@functools.cache
def _boot_id() -> str:
    return BOOT_ID.read_text(encoding="ascii").strip()
