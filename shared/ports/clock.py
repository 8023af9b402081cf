"""The real clock of the host."""

from __future__ import annotations

import functools
import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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


@functools.cache
def _boot_id() -> str:
    return BOOT_ID.read_text(encoding="ascii").strip()
