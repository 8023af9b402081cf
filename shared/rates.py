"""Rates, rations and remaining times of long work, and durations and sizes in words."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class RateMeter:
    """Rate of a growing total over the last ``window_seconds``; time is an argument."""

    window_seconds: float = 10.0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now: float, total: int) -> None:
        """Note that the total was ``total`` at ``now`` (monotonic seconds)."""
        samples = self._samples
        if samples and now - samples[-1][0] < self.window_seconds / 50:
            return
        samples.append((now, total))
        while len(samples) > 2 and now - samples[0][0] > self.window_seconds:
            samples.popleft()

    def per_second(self) -> float | None:
        """The rate, or None as long as it is not known."""
        if len(self._samples) < 2:
            return None
        (first, low), (last, high) = self._samples[0], self._samples[-1]
        return (high - low) / (last - first) if last > first else None

    def seconds_left(self, remaining: int) -> float | None:
        """How long ``remaining`` takes at this rate, or None where it can't be told."""
        rate = self.per_second()
        return remaining / rate if rate else None


def duration_text(seconds: float) -> str:
    """A duration for people: ``0.4 s``, ``12 s``, ``5 min 3 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s".replace(".0 s", " s")
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    for limit, big, name, small, rest in (
        (3600, 60, "min", 1, "s"),
        (86400, 3600, "h", 60, "min"),
        (1 << 62, 86400, "d", 3600, "h"),
    ):
        if whole < limit:
            return f"{whole // big} {name} {whole % big // small} {rest}"
    raise AssertionError("unreachable")


def size_text(count: float) -> str:
    """A number of bytes for people, in powers of 1024: ``512 B``, ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


class Ration:
    """Lets ``most`` through at once, and after that ``rate`` a second; no more than ``most`` are ever saved up."""

    def __init__(self, most: int, rate: float, now: float) -> None:
        self._most, self._rate = most, rate
        self._left, self._at = float(most), now

    def take(self, now: float) -> bool:
        """Whether one more may pass at ``now`` (monotonic seconds)."""
        self._left = min(self._most, self._left + self._rate * (now - self._at))
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
