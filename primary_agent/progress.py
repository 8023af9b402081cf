"""Progress of a resync or initial replication: what was compared, differed, was sent, and how long it will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from primary_agent.strip import DiskStrip
from protocol.hrl import Geometry
from protocol.messages import ResyncKind
from shared.channel import Channel
from shared.map_file import Range
from shared.ports import Clock
from shared.progress_status import DiskProgress, HeldBack, ProgressStatus
from shared.rates import RateMeter
from shared.resync_runs import RunDisk

STARTING = "starting"
WAITING = "waiting"
COMPARING = "comparing"
EXPORTING = "exporting"
TRACKED_WRITES = "tracked writes"
COMMITTING = "committing"
MERGING = "merging"
TRACKING_BEGUN = "tracking begun"
_STEPS = (TRACKED_WRITES, COMMITTING, MERGING)
"""Phases whose beginning is a step of the run's record."""


@dataclass(slots=True)
class ResyncProgress:
    """Outlives sessions, so that an interrupted resync shows what it did before as well."""

    id: bytes
    kind: ResyncKind
    epoch: bytes
    started_time: float
    clock: Clock
    disks: dict[int, DiskProgress]
    strips: dict[int, DiskStrip]
    work: dict[int, RunDisk]
    """All that was done, by every session of this process: never set back."""
    phase: str = STARTING
    round: int = 1
    text: str = ""
    steps: list[tuple[float, str]] = field(default_factory=list)
    """When a step was reached, in seconds since the Unix epoch."""
    activated_time: float | None = None
    """When a session began to work on it last."""
    rate: RateMeter = field(default_factory=RateMeter)
    wire_rate: RateMeter = field(default_factory=RateMeter)
    held_back: HeldBack | None = None
    _active_since: float | None = None
    _comparing_since: float | None = None
    _active_seconds: float = 0.0
    _compare_seconds: float = 0.0
    _wire_bytes: int = 0
    _channels: list[tuple[Channel, int]] = field(default_factory=list)

    @classmethod
    def of(
        cls, identity: bytes, kind: ResyncKind, epoch: bytes, disks: list[Geometry], started: float, clock: Clock
    ) -> ResyncProgress:
        return cls(
            identity,
            kind,
            epoch,
            started,
            clock,
            {disk.index: DiskProgress(index=disk.index, total_bytes=disk.size, size_bytes=disk.size) for disk in disks},
            {disk.index: DiskStrip(disk.size, len(disks)) for disk in disks},
            {disk.index: RunDisk(index=disk.index, scope_bytes=disk.size) for disk in disks},
        )

    # --- phases ----------------------------------------------------------------------------------------------------

    def enter(self, phase: str, text: str = "") -> None:
        """Show another phase. Every one but waiting is work of a session."""
        now = self.clock.monotonic()
        if phase in _STEPS and phase != self.phase:
            self.reached(phase)
        self._stop_comparing(now)
        if phase == COMPARING:
            self._comparing_since = now
        if phase == WAITING:
            self._stop(now)
        elif self._active_since is None:
            self._active_since = now
            self.activated_time = self.clock.wall()
        self.phase = phase
        self.text = text

    def reached(self, step: str) -> None:
        """A step of the run is done."""
        self.steps.append((self.clock.wall(), step))

    def settle(self) -> None:
        """The session has ended: keep what its channels carried and how long it worked."""
        self._wire_bytes = self.wire_bytes
        self._channels.clear()
        self._stop(self.clock.monotonic())

    def _stop(self, now: float) -> None:
        self._stop_comparing(now)
        if self._active_since is not None:
            self._active_seconds += now - self._active_since
            self._active_since = None

    def _stop_comparing(self, now: float) -> None:
        if self._comparing_since is not None:
            self._compare_seconds += now - self._comparing_since
            self._comparing_since = None

    @property
    def active(self) -> bool:
        """Whether a session works on it."""
        return self._active_since is not None

    @property
    def active_seconds(self) -> float:
        since = self._active_since
        return self._active_seconds + (0.0 if since is None else self.clock.monotonic() - since)

    @property
    def compare_seconds(self) -> float:
        since = self._comparing_since
        return self._compare_seconds + (0.0 if since is None else self.clock.monotonic() - since)

    # --- counting --------------------------------------------------------------------------------------------------

    def begin_disk(self, index: int, scope: Sequence[Range], left: Sequence[Range]) -> None:
        """A session takes up a disk: of ``scope``, ``left`` is not settled and will be compared, the rest is."""
        disk, work = self.disks[index], self.work[index]
        disk.total_bytes = work.scope_bytes = sum(length for _, length in scope)
        disk.settled_bytes = disk.compared_bytes = disk.total_bytes - sum(length for _, length in left)
        self.strips[index].begin(scope, left)

    def range_compared(self, index: int, offset: int, length: int, different: Sequence[Range], hole_bytes: int) -> None:
        """Both sides of a range were compared; ``different`` are the parts of it that differ, in order."""
        differing = sum(part for _, part in different)
        for counters in (self.disks[index], self.work[index]):
            counters.different_bytes += differing
            counters.hole_bytes += hole_bytes
        self.strips[index].compared(offset, length, different, hole=hole_bytes >= length)

    def blocks_sent(self, index: int, count: int) -> None:
        """So many bytes of differing blocks have gone out."""
        self.disks[index].sent_bytes += count
        self.work[index].sent_bytes += count
        self.wire_rate.add(self.clock.monotonic(), self.wire_bytes)

    def range_sent(self, index: int, offset: int, length: int) -> None:
        """All that differs in a compared range has gone out: this side is done with it."""
        self.disks[index].compared_bytes += length
        self.work[index].compared_bytes += length
        self.strips[index].sent(offset)
        now = self.clock.monotonic()
        self.rate.add(now, self.compared_bytes)
        self.wire_rate.add(now, self.wire_bytes)

    def range_settled(self, index: int, offset: int, length: int) -> None:
        """The replica has made the range durable."""
        self.disks[index].settled_bytes += length
        self.work[index].settled_bytes += length
        self.strips[index].settled(offset)

    def count(self, channel: Channel) -> None:
        """Count what goes over ``channel`` from now on."""
        self._channels.append((channel, _traffic(channel)))

    @property
    def wire_bytes(self) -> int:
        """Bytes on the wire for this work, both ways."""
        return self._wire_bytes + sum(_traffic(channel) - before for channel, before in self._channels)

    @property
    def compared_bytes(self) -> int:
        return sum(disk.compared_bytes for disk in self.disks.values())

    def status(self) -> ProgressStatus:
        """As shown."""
        for index, disk in self.disks.items():
            disk.strip = self.strips[index].status()
        disks = list(self.disks.values())
        total = sum(disk.total_bytes for disk in disks)
        compared = self.compared_bytes
        comparing = self.phase in (COMPARING, EXPORTING)
        return ProgressStatus(
            kind=self.kind.value,
            phase=self.phase,
            text=self.text,
            round=self.round,
            started_time=self.started_time,
            total_bytes=total,
            done_bytes=compared,
            compared_bytes=compared,
            different_bytes=sum(disk.different_bytes for disk in disks),
            sent_bytes=sum(disk.sent_bytes for disk in disks),
            wire_bytes=self.wire_bytes,
            active_seconds=self.active_seconds,
            wire_rate_bytes_per_second=self.wire_rate.per_second() if comparing else None,
            rate_bytes_per_second=self.rate.per_second() if comparing else None,
            seconds_left=self.rate.seconds_left(total - compared) if comparing else None,
            held_back=self.held_back,
            disks=disks,
        )


def _traffic(channel: Channel) -> int:
    return channel.bytes_sent + channel.bytes_received
