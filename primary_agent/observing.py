"""What changes from one status of a tap to the next that deserves an event: sizes of disks, and how full the log is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shared.events import EventId
from shared.forecasts import LOG_FRACTIONS
from shared.health import log_level, log_text
from shared.rates import RateMeter
from shared.tap_control import LogUsage, TapStatus

HYSTERESIS = 0.05
"""Of the log's limit: a fraction that was told is told again once the log was so much below it."""
RATE_SECONDS = 600.0
RATE_KNOWN_SECONDS = 60.0
"""The log grows by whole files: its rate counts as known after so long."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing worth an event."""

    event: EventId
    text: str
    data: dict[str, Any]


@dataclass(slots=True)
class TapObserver:
    """Compares statuses; time is an argument, in monotonic seconds."""

    _sizes: dict[int, int] = field(default_factory=dict)
    _level: int = 0
    _rate: RateMeter = field(default_factory=lambda: RateMeter(RATE_SECONDS))
    _first: float | None = None
    _last: float = 0.0

    def observe(self, status: TapStatus, now: float) -> Iterator[Observation]:
        """What is new in ``status``."""
        self._first = now if self._first is None else self._first
        self._last = now
        self._rate.add(now, status.log.used)
        yield from self._resized(status)
        yield from self._filled(status.log)

    def forget_sizes(self) -> None:
        """The sizes of the disks were taken over: what is seen next is compared with those."""
        self._sizes.clear()

    def log_full_seconds(self, log: LogUsage) -> float | None:
        """When the log reaches its limit at its rate of the last minutes; None where it does not grow."""
        if self._first is None or self._last - self._first < RATE_KNOWN_SECONDS:
            return None
        left = self._rate.seconds_left(log.limit - log.used)
        return left if left is not None and left >= 0 else None

    def _resized(self, status: TapStatus) -> Iterator[Observation]:
        for disk in status.disks:
            found = disk.found_size if disk.found_size is not None else disk.size
            before = self._sizes.get(disk.index, disk.size)
            self._sizes[disk.index] = found
            if found != before:
                text = f"{disk.path} was resized from {before} to {found} bytes"
                text += "." if found == disk.size else f"; {disk.size} bytes are replicated."
                data = {"disk": disk.index, "size_bytes": disk.size, "before_bytes": before, "found_bytes": found}
                yield Observation(EventId.DISK_RESIZED, text, data)

    def _filled(self, log: LogUsage) -> Iterator[Observation]:
        level = log_level(log.used, log.limit)
        if level > self._level:
            data = {"used_bytes": log.used, "limit_bytes": log.limit, "fraction": LOG_FRACTIONS[level - 1]}
            text = log_text(log.used, log.limit, self.log_full_seconds(log))
            yield Observation(EventId.LOG_FILLING, text, data)
            self._level = level
        while self._level > level and log.used < (LOG_FRACTIONS[self._level - 1] - HYSTERESIS) * log.limit:
            self._level -= 1
