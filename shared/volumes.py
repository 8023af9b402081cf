"""Watches the free space of the volumes that an agent keeps things on, and tells when one is full at this rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shared.ports import Ports
from shared.rates import RateMeter

LOOK_SECONDS = 30.0
ASKED_SECONDS = 1.0
RATE_SECONDS = 3600.0
RATE_KNOWN_SECONDS = 600.0
"""The rate counts as known after so long: what is merged or recycled comes and goes within minutes."""


@dataclass(slots=True)
class Volume:
    """The free space of the volume of one folder, as it was seen last; ``now`` is in monotonic seconds."""

    free: int | None = None
    """In bytes."""
    _rate: RateMeter = field(default_factory=lambda: RateMeter(RATE_SECONDS))
    _first: float | None = None
    _last: float = 0.0

    def see(self, free: int, now: float) -> None:
        """It had ``free`` bytes at ``now``."""
        self.free = free
        self._first = now if self._first is None else self._first
        self._last = now
        self._rate.add(now, -free)

    def full_seconds(self, reserve: int = 0) -> float | None:
        """When only ``reserve`` is left at the rate of the last hour; None where it does not fill, or is not known."""
        if self.free is None or self._first is None or self._last - self._first < RATE_KNOWN_SECONDS:
            return None
        left = self._rate.seconds_left(max(0, self.free - reserve))
        return left if left is not None and left >= 0 else None


class VolumeWatch:
    """The volumes of an agent. Whoever runs the agent runs :meth:`run`; without it nothing is known."""

    def __init__(self, ports: Ports) -> None:
        self.folders: Callable[[], Iterable[str]] = tuple
        """Tells which are to be watched at present."""
        self._ports = ports
        self._volumes: dict[str, Volume] = {}
        self._asked: dict[str, tuple[float, int]] = {}

    def of(self, folder: str) -> Volume:
        """The volume of a watched folder that is ``folder`` or holds it; an unknown one where there is none."""
        return self._volumes.get(self._watched(folder)) or Volume()

    def _watched(self, folder: str) -> str:
        """The watched folder that is ``folder`` or holds it; empty where there is none."""
        while folder and folder not in self._volumes:
            folder = folder.rpartition("/")[0]
        return folder

    async def free(self, folder: str, enough: int) -> int:
        """Free bytes of the volume of ``folder``: now, or up to ASKED_SECONDS ago if ``enough`` bytes were free then.

        Of hundreds of VMs each asks now and then, and few volumes hold them. What was too little is asked anew: one VM
        has made room meanwhile, and the others need not do so as well. Raises OSError.
        """
        watched, now = self._watched(folder) or folder, self._ports.clock.monotonic()
        asked, free = self._asked.get(watched, (float("-inf"), 0))
        if now - asked >= ASKED_SECONDS or free < enough:
            free = await self._ports.workers.run(self._ports.files.free_space, folder)
            self._asked[watched] = (now, free)
        return free

    async def look(self) -> None:
        """See how much is free now. A folder that can't be asked is left out: whoever needs its room will say so."""
        for folder in list(self.folders()):
            try:
                free = await self._ports.workers.run(self._ports.files.free_space, folder)
            except OSError:
                self._volumes.pop(folder, None)
                continue
            self._volumes.setdefault(folder, Volume()).see(free, self._ports.clock.monotonic())

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)
