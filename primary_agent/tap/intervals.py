"""The cuts that the tap makes by itself, whether or not an agent runs (R44)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from primary_agent.tap.disks import Disk
from primary_agent.tap.tasks import Tasks
from primary_agent.tap.tracker import Tracker
from protocol.hrl import SealReason
from shared.errors import InvalidStateError
from shared.ports import Clock
from shared.tap_control import Tracking


class Intervals:
    """Seals the log every ``seconds``; while the dirty map tracks, looks at the disks instead (I10)."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.seconds = seconds
        self._clock = clock
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def begin(self, tasks: Tasks, tracker: Tracker, disks: Sequence[Disk]) -> None:
        self._running = tasks.spawn(self._run(tracker, disks))

    def set(self, seconds: float) -> None:
        """The next cut is made ``seconds`` from now, and then every so many."""
        self.seconds = seconds
        self._changed.set()

    def end(self) -> None:
        if self._running is not None:
            self._running.cancel()

    async def _run(self, tracker: Tracker, disks: Sequence[Disk]) -> None:
        due = self._clock.monotonic() + self.seconds
        while True:
            try:
                async with asyncio.timeout(max(0.0, due - self._clock.monotonic())):
                    await self._changed.wait()
                self._changed.clear()
                due = self._clock.monotonic() + self.seconds
                continue
            except TimeoutError:
                due = max(due, self._clock.monotonic() - self.seconds) + self.seconds
            if tracker.wants_interval_cut():
                try:
                    await tracker.cut(SealReason.INTERVAL)
                except InvalidStateError:
                    # Tracking was lost over it, which is told to whoever listens.
                    continue
            elif tracker.tracking is Tracking.MAP:
                tracker.watch.check_unchanged(disks)
