"""The precedence of a VM's guest: its latency is watched while its disks are read, and reading is held back by it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from primary_agent.backing_off import BackOff
from primary_agent.pacing import Bucket
from primary_agent.tap_link import TapLink
from shared.errors import UnreachableError, VmreplicaError
from shared.ports import Clock
from shared.progress_status import HeldBack
from shared.tap_control import TapStatus
from shared.tasks import Signal

POLL_SECONDS = 0.25
ANSWER_SECONDS = 1.0
"""A tap that does not answer for so long has a guest that waits as long."""


class Shown(Protocol):
    """Where it is shown that reading is held back."""

    held_back: HeldBack | None


class Precedence:
    """Of one VM's guest before what reads its disks. ``enabled`` is asked anew each time."""

    def __init__(self, clock: Clock, tap: TapLink, enabled: Callable[[], bool], watching: set[object]) -> None:
        """``watching`` are the guests of this agent whose disks are being read, of all VMs."""
        self.control = BackOff()
        self._clock = clock
        self._tap = tap
        self._enabled = enabled
        self._watching = watching
        self._bucket = Bucket(clock, lambda: int(self.control.rate or 0))
        self._read = 0
        self._disturbed_at = 0.0
        """Until then something was read, as far as was noticed."""
        self._resumed = Signal()

    def quiet(self, status: TapStatus, taken: float) -> None:
        """A status of the tap that was ``taken`` then (monotonic seconds), whether or not a compare is under way."""
        if self._watching:
            # Other VMs' disks may lie beside this one's.
            self._disturbed_at = self._clock.monotonic()
        if self._watching or taken <= self._disturbed_at:
            self.control.disturbed()
        else:
            self.control.quiet(status.latency, taken)

    async def take(self, count: int) -> int:
        """Wait for a slice of up to ``count`` bytes; returns its bytes (see :class:`primary_agent.pacing.Bucket`)."""
        while self.control.pausing:
            await self._resumed.wait()
        taken = await self._bucket.take(count)
        self._read += taken
        return taken

    def rate(self) -> int:
        """Bytes per second that are allowed now; 0 for no limit."""
        return int(self.control.rate or 0)

    async def watch(self, progress: Shown) -> None:
        """Hold reading back as the guest needs it, and show so; until cancelled."""
        self._watching.add(self)
        self.control.begin(self._clock.monotonic())
        try:
            while True:
                await self._look()
                progress.held_back = self.held_back()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._watching.discard(self)
            self._disturbed_at = self._clock.monotonic()
            self.control.end()
            progress.held_back = None
            self._resumed.notify()

    async def _look(self) -> None:
        connection = self._tap.connection
        if not self._enabled():
            self.control.lift(self._clock.monotonic())
        elif connection is not None and connection.alive:
            try:
                latency = await connection.client.latency(ANSWER_SECONDS)
            except UnreachableError:
                self.control.silent()
            except VmreplicaError:
                # A tap of another version: nothing is known.
                self.control.lift(self._clock.monotonic())
            else:
                self.control.sample(latency, self._read, self._clock.monotonic())
        if not self.control.pausing:
            self._resumed.notify()

    def held_back(self) -> HeldBack | None:
        """How much reading is held back, None where it is not."""
        control = self.control
        if control.pausing:
            return HeldBack(rate_bytes_per_second=0, measuring=True)
        if control.rate is None:
            return None
        told = control.judgement
        return HeldBack(
            rate_bytes_per_second=int(control.rate),
            latency_seconds=told.latency if told is not None else None,
            usual_latency_seconds=told.usual if told is not None else None,
        )
