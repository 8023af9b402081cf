"""How long an NBD server takes for the requests it performs: sums and counts by kind, from decoded to reply queued."""

from __future__ import annotations

from collections.abc import Callable


class Tally:
    """Requests of one kind that were performed, and the seconds that they took together."""

    __slots__ = ("_now", "count", "seconds")

    def __init__(self, now: Callable[[], float]) -> None:
        self.count = 0
        self.seconds = 0.0
        self._now = now

    def add(self, count: int, begun: float) -> None:
        """So many, decoded at ``begun`` on average, are answered now."""
        self.count += count
        self.seconds += count * (self._now() - begun)


class LatencyMeter:
    """Tallies of reads, changes and flushes over all connections, since the server began.

    A change with FUA counts as a flush: it is answered when one has followed. ``now`` is a monotonic clock, in seconds.
    """

    __slots__ = ("changes", "flushes", "now", "passes", "reads")

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.reads = Tally(now)
        self.changes = Tally(now)
        self.flushes = Tally(now)
        self.passes = 0
        """Passes over what connections received: requests that came together waited for the processor together."""
