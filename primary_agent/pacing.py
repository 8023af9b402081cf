"""Caps on rates: how fast this host reads disks for compares and sends to replicas, in all and for each VM.

A bucket lets bytes through at its rate, which is asked anew for each slice, so that a change counts at once; what waits
is served in turn, one slice of each VM after the other, whatever number of tasks a VM has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from primary_agent.record import VmRecord
from shared.config_sections import RatesSection
from shared.ports import Clock
from shared.schedule import Window, is_within

RATES = tuple(name for name in RatesSection.__struct_fields__ if name.endswith("_rate"))
"""The names of the caps, in the configuration and of a VM."""
SLICE_SECONDS = 0.1
"""What a bucket lets through at once takes so long at its rate."""
SLICE_BYTES_MIN = 4096
UNLIMITED = 1 << 62
PIECE_SECONDS = 0.1
PIECE_BYTES = 1 << 20
"""Where reading is held to a rate, what is read at once takes so long at it, and is a multiple of so many bytes."""
LOOK_SECONDS = 1.0
"""A slice that lasts longer is looked at again so often, since the rate may have been changed meanwhile."""


class Gate(Protocol):
    """What bytes have to pass."""

    async def take(self, count: int) -> int:
        """Wait for a slice of up to ``count`` bytes; returns its bytes."""
        ...

    def rate(self) -> int:
        """Bytes per second that get through now; 0 for no cap."""
        ...


class Bucket:
    """Lets bytes through at ``rate()`` bytes per second; 0 for no cap."""

    def __init__(self, clock: Clock, rate: Callable[[], int]) -> None:
        self.rate = rate
        self._clock = clock
        self._turn = asyncio.Lock()
        """Whoever comes first waits for the bucket; the others wait for him (in their order)."""
        self._debt = 0.0
        """Bytes that were let through and not yet paid for,"""
        self._paid_at = clock.monotonic()
        """as of then (monotonic seconds)."""

    async def take(self, count: int) -> int:
        """Wait for a slice of up to ``count`` bytes; returns its bytes."""
        rate = self.rate()
        if rate <= 0:
            return count
        async with self._turn:
            while (rate := self.rate()) > 0:
                self._pay(rate)
                if self._debt < 1:
                    break
                await asyncio.sleep(min(self._debt / rate, LOOK_SECONDS))
            if rate <= 0:
                self._debt = 0.0
                return count
            taken = min(count, max(int(rate * SLICE_SECONDS), SLICE_BYTES_MIN))
            self._debt += taken
            return taken

    def _pay(self, rate: int) -> None:
        """Time pays for what was let through; more is not saved up, so that no burst follows a pause."""
        now = self._clock.monotonic()
        self._debt = max(0.0, self._debt - rate * (now - self._paid_at))
        self._paid_at = now


class Pacer:
    """Paces one kind of work of one VM: ``disk`` before reading, ``wire`` before sending so many bytes."""

    def __init__(self, disk: Sequence[Gate], wire: Sequence[Gate]) -> None:
        self._disk = disk
        self._wire = wire
        self._reading = asyncio.Lock()
        self._sending = asyncio.Lock()

    async def disk(self, count: int) -> None:
        """Wait until ``count`` bytes of the disks may be read."""
        await _pass(self._reading, self._disk, count)

    def piece_bytes(self) -> int:
        """How much to read at once at most: at a low rate a little, so that it comes in no bursts."""
        lowest = min((rate for gate in self._disk if (rate := gate.rate()) > 0), default=0)
        if lowest == 0:
            return UNLIMITED
        return max(1, int(lowest * PIECE_SECONDS) // PIECE_BYTES) * PIECE_BYTES

    async def wire(self, count: int) -> None:
        """Wait until ``count`` bytes may be sent."""
        await _pass(self._sending, self._wire, count)


async def _pass(one: asyncio.Lock, buckets: Sequence[Gate], count: int) -> None:
    """Through all buckets, slice by slice. A VM stands in line only once, so that many tasks bring it no more."""
    async with one:
        left = count if buckets else 0
        while left > 0:
            # Slice by slice through each: they fill up at the same time, and the slowest alone counts.
            taken = await buckets[0].take(left)
            for bucket in buckets[1:]:
                part = taken
                while part > 0:
                    part -= await bucket.take(part)
            left -= taken


@dataclass(slots=True)
class Rates:
    """The caps of this host, with the buckets that all its VMs share."""

    clock: Clock
    caps: RatesSection
    window: Window
    """What counts as night, where the section names no window of its own."""
    buckets: dict[str, Bucket] = field(default_factory=dict)
    watching: set[object] = field(default_factory=set)
    """The guests whose disks are being read for a compare."""

    def pacer(self, vm: Callable[[], VmRecord], *, initial: bool, precedence: Gate | None = None) -> Pacer:
        """For the compare of a VM, whose record is asked anew each time; ``precedence`` holds it back for its guest."""
        kind = "initial" if initial else "resync"
        first = () if precedence is None else (precedence,)
        return Pacer((*first, *self._of(f"{kind}_read_rate", vm)), self._of(f"{kind}_send_rate", vm))

    def sender(self, vm: Callable[[], VmRecord]) -> Pacer:
        """For the log of a VM."""
        return Pacer((), self._of("replication_send_rate", vm))

    def _of(self, name: str, vm: Callable[[], VmRecord]) -> tuple[Bucket, Bucket]:
        shared = self.buckets.get(name)
        if shared is None:
            shared = self.buckets[name] = Bucket(self.clock, lambda: self._now(getattr(self.caps, name)))
        return Bucket(self.clock, lambda: self._now(getattr(vm(), name))), shared

    def _now(self, rates: Sequence[int]) -> int:
        """The rate that holds now, of one for the day and perhaps another one for the night; 0 for no cap."""
        if len(rates) < 2:
            return rates[0] if rates else 0
        night = Window.parse(self.caps.night) if self.caps.night else self.window
        return rates[1] if is_within(night, self.clock.wall(), self.clock.zone()) else rates[0]
